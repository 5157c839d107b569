// Package seccompdiff compares the filters of crisp/runtime/seccomp with those
// that libseccomp makes of the same profiles, by running both over many calls.
//
// It is a module of its own because it needs cgo and libseccomp's headers,
// which crisp itself does without.
package seccompdiff
