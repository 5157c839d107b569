// Package table is the daemon's table of its processes: a row for everything
// that the keeper has started or holds for it, a container, a pod with or
// without a process of its own, or a command. It exists so that a keeper may
// die.
//
// A row exists before its start is sent, and is in one of three states:
//
//	starting ──► started ──► ended
//
// When the keeper has died, [Table.Run] connects to the next one and hands it
// every row that it lacks, with all descriptors: containers continue to write
// into the same pipes. The keeper may have some rows, if it is the old one
// after all or has only executed another program. A row that is still starting
// is marked, and handed over by its own [Row.Started]; so a keeper cannot miss
// a row, whenever it connects.
//
// A process whose keeper died is the daemon's child from then on; package
// orphan gets its exit status, see [Row.Exit]. Exits that the dead keeper had
// recorded on disk, and those that the new one holds without having reported
// them, are reported again; hooks must tolerate duplicates.
//
// The table knows nothing of the daemon's records. It holds no lock while it calls hooks.
package table
