// Package budget bounds the memory that the daemon uses for content from
// registries, over all calls together.
//
// There are three separate shares, so that a wait for one of them never depends
// on another:
//
//   - Streams: layers that are unpacked while they are downloaded, [Streams] at
//     a time. A registry may be slow on purpose, so no caller waits for this
//     share; a pull that gets none downloads to the disk first, which takes next
//     to no memory.
//   - Unpacking from the disk: two layers at a time, or a single large one.
//   - Work: documents that are decoded and containers that are translated, by
//     their size, together at most [WorkBytes].
//
// A holder of the second or third share only depends on CPU and disk, so waits
// for them end; all waits end with the caller's context.
//
// Package layer states the memory for a layer: at most 20 MiB, or 140 MiB for a
// large one. So all shares together are below 6×20 + 140 + 64 = 324 MiB if all of
// them are exhausted at the same time. The attacks in the tests of package image,
// by eight hostile images at once, let the process grow by less than 256 MiB,
// garbage included.
package budget

import (
	"context"
	"runtime/debug"

	"golang.org/x/sync/semaphore"
)

const (
	// Streams is how many layers may be unpacked while they are downloaded.
	Streams = 6
	// WorkBytes bounds the memory for decoding and translating, in bytes.
	WorkBytes = 64 << 20

	// fromDisk is how many layers may be unpacked from the disk at a time.
	fromDisk = 2
)

// Budget hands out shares. It is safe for concurrent use.
type Budget struct {
	streams, disk, work *semaphore.Weighted
}

// New returns an unused budget.
func New() *Budget {
	return &Budget{
		streams: semaphore.NewWeighted(Streams),
		disk:    semaphore.NewWeighted(fromDisk),
		work:    semaphore.NewWeighted(WorkBytes),
	}
}

// TryStream acquires the share of one layer that is unpacked while it is
// downloaded, if one is left. The caller releases it.
func (b *Budget) TryStream() (release func(), ok bool) {
	if !b.streams.TryAcquire(1) {
		return nil, false
	}
	return func() { b.streams.Release(1) }, true
}

// Unpack waits for the share of one layer that is unpacked from the disk, or for
// the whole share for a large one. The caller releases it.
func (b *Budget) Unpack(ctx context.Context, large bool) (release func(), err error) {
	if !large {
		return acquire(ctx, b.disk, 1)
	}
	all, err := acquire(ctx, b.disk, fromDisk)
	if err != nil {
		return nil, err
	}
	return func() {
		// Return the garbage of this layer to the system: otherwise the next
		// layer would come on top of it.
		debug.FreeOSMemory()
		all()
	}, nil
}

// Work waits for a number of bytes, at most [WorkBytes]. The caller releases
// them.
func (b *Budget) Work(ctx context.Context, bytes int64) (release func(), err error) {
	return acquire(ctx, b.work, min(max(bytes, 0), WorkBytes))
}

func acquire(ctx context.Context, s *semaphore.Weighted, n int64) (release func(), err error) {
	if s.Acquire(ctx, n) != nil {
		return nil, context.Cause(ctx)
	}
	return func() { s.Release(n) }, nil
}
