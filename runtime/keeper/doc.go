// Package keeper is the parent of every container on a node. It runs plans,
// writes output to log files, reaps, records exits, and holds descriptors, at
// the word of daemons that come and go; package client is their side of it,
// package wire the protocol between them.
//
//	      daemons
//	         |  one session each
//	+--------+---------+
//	| table of entries |<--- reaper: SIGCHLD, wait4
//	+--------+---------+
//	         |  one entry each
//	process, descriptors, outputs ---> log file, attached pipes
//
// The keeper decides nothing: what a start does is in its plan. It must
// survive any daemon and any message, and stay small: an idle container
// costs two parked goroutines and no buffer.
//
// Locks: keeper.mu guards the table and is held while a child is cloned, so
// that the reaper knows every process that it can meet; it is never held
// while waiting for a peer, a child or a disk. output.mu and the lock of a log
// are taken without it.
package keeper
