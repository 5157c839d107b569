package keeper

import "runtime/debug"

// The heap of a keeper is small and short-lived, so it is collected often, and what
// is above a limit as soon as possible. The limit must have room for everything that
// is held: above it the collector would run all the time, and each run scans the
// stacks of all goroutines.
const (
	gcPercent  = 40
	memoryBase = 12 << 20 // without entries
	// entryMemory is more than a container or pod uses, with its goroutines: 7 KiB
	// with a thousand of each.
	entryMemory = 16 << 10
	// memoryStep is the number of entries for which the limit changes at once:
	// each change stops the program for some microseconds.
	memoryStep = 64
)

// memoryLimit is the limit, in bytes, with a number of entries.
func memoryLimit(entries int) int64 {
	steps := (entries + memoryStep - 1) / memoryStep
	return memoryBase + int64(steps)*memoryStep*entryMemory
}

// putLocked adds an entry to the table.
func (k *keeper) putLocked(e *entry) {
	k.entries[e.id] = e
	k.limitMemoryLocked()
}

// dropLocked removes an entry from the table.
func (k *keeper) dropLocked(id string) {
	delete(k.entries, id)
	k.limitMemoryLocked()
}

func (k *keeper) limitMemoryLocked() {
	if limit := memoryLimit(len(k.entries)); limit != k.limit {
		k.limit = limit
		debug.SetMemoryLimit(limit)
	}
}
