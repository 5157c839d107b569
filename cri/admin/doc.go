// Package admin serves what people need to know of a daemon and the CRI has no call
// for: its state, what operations wait for, its goroutines, profiles, the disk.
//
// It is plain HTTP with JSON on a socket in the state directory that only root may
// use, and which the commands of the same release call: it is no interface for
// others. Answers have names, IDs and errors, but neither environments nor
// annotations nor credentials.
package admin
