// Package table is the daemon's table of its processes: a row for whatever the
// keeper has started or holds for it, be it a container, a pod with or without
// a process of its own, or a command. It exists so that a keeper may die.
//
// A row is there before its start is sent, and is in one of three states:
//
//	starting ──► started ──► ended
//
// When the keeper has died, [Table.Run] connects to the next one and goes
// through the rows. What the new keeper has, because it is the old one after
// all or has only executed another program, it keeps. What it lacks is handed
// to it with all descriptors: containers continue to write into the same pipes.
// A row that is still starting is marked, and handed over by its own
// [Row.Started]; so there is no moment of a start at which a keeper can come and
// miss it.
//
// A process whose keeper died is the daemon's child from then on, as package
// orphan has it: how it ended is asked there, see [Row.Exit]. Ends that the dead
// keeper had recorded on disk, and those that the new one holds without having
// reported them, are reported once more; whoever takes reports must bear two of
// one end.
//
// The table knows nothing of records. It holds no lock while it reports.
package table
