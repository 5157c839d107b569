package keeper

import (
	"fmt"
	"runtime/debug"
	"testing"

	"crisp/runtime/spawn"
)

// TestMemoryLimit expects room for as many entries as the table has, and no more
// once they are gone.
func TestMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	k := newKeeper(t.TempDir(), spawn.Options{})
	const many = 2000
	for i := range many {
		if _, err := k.reserve(fmt.Sprint("c", i), 0); err != nil {
			t.Fatal(err)
		}
	}

	const least = memoryBase + many*entryMemory
	if got := debug.SetMemoryLimit(-1); got < least || got > least+memoryStep*entryMemory {
		t.Errorf("with %d entries the limit is %d bytes, want %d or a little more", many, got, least)
	}

	for i := range many {
		k.abandon(k.entries[fmt.Sprint("c", i)])
	}
	if got := debug.SetMemoryLimit(-1); got != memoryBase {
		t.Errorf("without entries the limit is %d bytes, want %d", got, memoryBase)
	}
}
