// Package crash kills the daemon, or injects an error, at every failpoint of
// every operation that changes the machine, and checks the outcome.
//
// The failpoints are not listed here. In builds with the tag "crash", package pod
// has one before and after each do and undo of its step tables and each write of
// a record, and crisp's own network around each step of ADD, DEL and GC. An operation is run once without disturbance to learn which failpoints
// it hits, and then once for each of them.
//
// Other tests of the package kill daemon and keeper at random moments, compare
// random calls with a model of the CRI's rules, and inject faults into everything
// that the daemon depends on: network plugins, disks, memory, power.
//
// "make crash", "make faults" and "make soak" run them; with REPORT=1 they update
// the tables in docs/reliability.md.
package crash
