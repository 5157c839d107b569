// Package crash ends the daemon, or makes it err, at every point of every
// operation that changes the machine, and looks what becomes of it.
//
// The points are not written down here. Package pod has one before and after
// each do and undo of its step tables and each write of a record, in builds
// with the tag "crash"; an operation is run once, undisturbed, to learn which
// ones it passes, and then once for each of them. "make crash" runs it all.
package crash
