// Package pause holds the smallest program that can be PID 1 of a pod: it
// ignores SIGCHLD, so that the kernel reaps its orphans, and waits forever.
//
// As PID 1 of a namespace only SIGKILL from outside kills it. The program is a
// static ELF image of one page, assembled by hand.
package pause
