// Package budget bounds what content that came from a registry may take of the
// daemon's memory at a time, over all calls.
//
// There are three shares, so that none can be used up where another is waited
// for:
//
//   - Streams: layers that are unpacked while they are downloaded, [Streams] at
//     a time. A registry may be slow on purpose, so nobody waits for this share;
//     who gets none downloads to the disk first, which takes no memory to speak of.
//   - Unpacking from the disk: two at a time, or one that takes much.
//   - Work: documents that are decoded and containers that are translated, by
//     their size, together at most [WorkBytes].
//
// Whoever holds the second or third waits for nothing but the processor and the
// disk, so these waits end; all of them end when the caller's context does.
//
// What a layer takes is given in package layer: at most 20 MiB, or 140 MiB for
// one that takes much. So all shares together are below 6×20 + 140 + 64 = 324 MiB
// if every single one is exhausted at the same moment, and the attacks of the
// tests of package image, of eight hostile images at once, stay below 256 MiB
// of growth of the process, garbage included.
package budget

import (
	"context"
	"runtime/debug"

	"golang.org/x/sync/semaphore"
)

const (
	// Streams is how many layers are unpacked while they are downloaded.
	Streams = 6
	// WorkBytes is what decoding and translating may take.
	WorkBytes = 64 << 20

	// fromDisk is how many layers are unpacked from the disk.
	fromDisk = 2
)

// Budget hands out shares. Its methods may be called concurrently.
type Budget struct {
	streams, disk, work *semaphore.Weighted
}

// New returns a budget of which nothing is used.
func New() *Budget {
	return &Budget{
		streams: semaphore.NewWeighted(Streams),
		disk:    semaphore.NewWeighted(fromDisk),
		work:    semaphore.NewWeighted(WorkBytes),
	}
}

// TryStream takes the share of one layer that is unpacked while it is
// downloaded, if there is one left. The caller releases it.
func (b *Budget) TryStream() (release func(), ok bool) {
	if !b.streams.TryAcquire(1) {
		return nil, false
	}
	return func() { b.streams.Release(1) }, true
}

// Unpack waits for the share of one layer that is unpacked from the disk, all
// of it for one that takes much. The caller releases it.
func (b *Budget) Unpack(ctx context.Context, much bool) (release func(), err error) {
	if !much {
		return acquire(ctx, b.disk, 1)
	}
	all, err := acquire(ctx, b.disk, fromDisk)
	if err != nil {
		return nil, err
	}
	return func() {
		// The next one is not to come on top of what this one has left, which
		// the runtime would otherwise keep for later.
		debug.FreeOSMemory()
		all()
	}, nil
}

// Work waits for so many bytes, and no more than there are. The caller
// releases them.
func (b *Budget) Work(ctx context.Context, bytes int64) (release func(), err error) {
	return acquire(ctx, b.work, min(max(bytes, 0), WorkBytes))
}

func acquire(ctx context.Context, s *semaphore.Weighted, n int64) (release func(), err error) {
	if s.Acquire(ctx, n) != nil {
		return nil, context.Cause(ctx)
	}
	return func() { s.Release(n) }, nil
}
