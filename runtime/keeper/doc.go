// Package keeper is the parent of every container on a node. It runs plans,
// writes output to log files, reaps, records exits, and holds descriptors, on
// behalf of daemons that come and go; package client is their side of it,
// package wire the protocol between them.
//
//	      daemons
//	         |  one session each
//	+--------+---------+
//	| table of entries |<--- reaper: SIGCHLD, pidfds, wait4
//	+--------+---------+
//	         |  one entry each
//	process, descriptors, outputs ---> spool ---> log file
//	                              \-> attached pipes
//
// The keeper decides nothing: what a start does is in its plan. It must
// survive any daemon and any message, and stay small: an idle container
// costs two parked goroutines and a page of memory for each stream.
//
// It may be killed at any instruction. What must not be lost is held by the
// daemon, too: pipes, spools, logs, terminals, pidfds, namespaces; package
// spool explains how each byte of output is logged exactly once across keepers.
// Where systemd started the keeper, its file descriptor store is a third
// holder, in case both are killed at once; commands (exec), which do not
// outlive their daemon, are not stored. A holder process of our own would cost
// every node memory for a case that takes two kills within a tenth of a second,
// and the same cause could kill it as well.
//
// The next keeper is not the parent of the containers and commands that it
// takes over: it waits for their exits by pidfd, and package orphan reports
// their exit status. A container is also treated as ended when its init only
// waits for other processes of its PID namespace whose parent never reaps them.
//
// A failed write to a log (a full disk) is retried, and the container's writer
// blocks once its pipe is full. After half a minute lines are dropped, counted,
// and reported in the keeper's log, so that no container blocks forever; when
// there is room again, logging resumes. This delays the report of an exit by at
// most two seconds.
//
// To upgrade, it executes the program of a newer daemon: the process stays,
// with its children and descriptors, and its state passes through a memfd.
// Everything is paused for that at a point where no state exists only in this
// process's memory. The new program is first run in a process of its own to
// check that it can read the state; if it cannot, or if the execve fails, the
// old one continues. Connections end, attached pipes stay.
//
// Locks: keeper.mu guards the table and is held while a child is cloned, so
// that the reaper knows every process that it can meet; it is never held while
// waiting for a peer, a child or a disk. A child may hang as soon as it is
// cloned, frozen, throttled or stopped by its container, and only the request
// that started it waits. output.mu and the lock of a log are taken without
// keeper.mu.
package keeper
