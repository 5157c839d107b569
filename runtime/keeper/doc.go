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
//	process, descriptors, outputs ---> spool ---> log file
//	                              \-> attached pipes
//
// The keeper decides nothing: what a start does is in its plan. It must
// survive any daemon and any message, and stay small: an idle container
// costs two parked goroutines and a page of memory for each stream.
//
// It may be killed at any instruction. What must not be lost is held by the
// daemon, too: pipes, spools, logs, terminals, pidfds, namespaces; package
// spool explains how each byte of output gets into a log once whoever moves it.
// Where systemd started the keeper, its store of descriptors is a third holder,
// in case that both are killed at once, but for commands (exec), which do not
// outlive their daemon. A holder process of our own in its
// place would cost each node memory for something that needs two kills in a
// tenth of a second, and could be killed by the same hand.
//
// The next keeper is not the parent of what it gets, be it a container or a
// command: it awaits their ends by pidfd, and package orphan tells it how they
// ended. A container ends for it, too, when its first process only waits for
// others of its PID namespace whose parent never reaps them.
//
// A log that refuses a write (a full disk) is tried again and again, and the
// writer waits once its pipe is full. After half a minute lines are dropped,
// counted, and told in the keeper's log, so that no container stands still for
// ever; when there is room all goes on. The end of a process is told at most
// two seconds late for that.
//
// It goes on as another program, of a newer daemon, by executing it: the
// process stays, with its children and descriptors, and what it holds passes
// through a memfd. Everything stands still for that at a point where nothing
// is in this process's memory alone. The new program is first asked, in a
// process of its own, whether it can read the state; if not, or if it cannot
// be executed, the old one goes on. Connections end, attached pipes stay.
//
// Locks: keeper.mu guards the table and is held while a child is cloned, so
// that the reaper knows every process that it can meet; it is never held
// while waiting for a peer, a child or a disk. A child may stand still as soon
// as it is born, frozen, throttled or stopped by its container, and only those
// who asked for it wait. output.mu and the lock of a log
// are taken without it.
package keeper
