// Package arch holds tests of the code's shape: which package may import which,
// that every package documents its purpose, that functions and files stay
// short, that cleaning up does not miss what it is for. Exceptions are listed with a reason.
package arch
