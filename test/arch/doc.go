// Package arch holds tests of the code's shape: which package may import
// which, that every package says what it is for, that functions and files
// stay short. What they allow is listed with a reason.
package arch
