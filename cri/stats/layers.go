package stats

import (
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"crisp/runtime/rootpath"
)

const (
	// firstWalk is how long a call waits for layers that were never walked.
	firstWalk = 50 * time.Millisecond
	// idleShare bounds the load: a layer is not walked again for this many
	// times the duration of its last walk.
	idleShare = 20
	// queued bounds the layers that wait for their first walk; others wait for
	// the next round.
	queued = 256
	// quickWalk bounds a walk that blocks others. A layer that takes longer is
	// walked separately from then on, for at most slowWalk; what was not
	// reached by then is not counted.
	quickWalk, slowWalk = 2 * time.Second, 2 * time.Minute
)

// usage is the size of a writable layer.
type usage struct {
	bytes, inodes uint64
	at            time.Time
}

// layers caches the sizes of writable layers. It walks them in run's
// goroutines.
type layers struct {
	period time.Duration
	// measure is diskUsage.
	measure func(ctx context.Context, dir string) (rootpath.Usage, error)
	first   chan string
	slow    chan string

	mu    sync.Mutex
	known map[string]*layer
}

type layer struct {
	dir string
	// walked is closed after the first walk.
	walked chan struct{}
	// the rest is guarded by layers.mu
	usage usage
	due   time.Time
	busy  bool
	// slow layers are walked separately from the others.
	slow bool
	// partial means that the last walk did not count everything.
	partial bool
}

func (l *layers) init(period time.Duration) {
	l.period, l.measure = period, diskUsage
	l.first = make(chan string, queued)
	l.slow = make(chan string, queued)
	l.known = make(map[string]*layer)
}

// usage returns the cached size of a container's layer. For a new one it waits,
// at most until deadline.
func (l *layers) usage(ctx context.Context, id, dir string, deadline time.Time) (usage, bool) {
	if dir == "" {
		return usage{}, false
	}

	l.mu.Lock()
	entry := l.known[id]
	if entry == nil {
		entry = &layer{dir: dir, walked: make(chan struct{})}
		l.known[id] = entry
		select {
		case l.first <- id:
		default:
		}
	}

	u := entry.usage
	l.mu.Unlock()
	if !u.at.IsZero() {
		return u, true
	}

	wait := time.NewTimer(time.Until(deadline))
	defer wait.Stop()
	select {
	case <-entry.walked:
		l.mu.Lock()
		defer l.mu.Unlock()
		return entry.usage, !entry.usage.at.IsZero()
	case <-wait.C:
	case <-ctx.Done():
	}

	return usage{}, false
}

// run walks layers until ctx ends: new ones immediately, known ones every
// period.
func (l *layers) run(ctx context.Context, current func() map[string]string) {
	var wg sync.WaitGroup
	defer wg.Wait()

	// A walk of a large layer must not block new ones, nor others.
	wg.Go(func() { l.serve(ctx, l.first, quickWalk) })
	wg.Go(func() { l.serve(ctx, l.slow, slowWalk) })
	tick := time.NewTicker(l.period)
	defer tick.Stop()

	for {
		for _, id := range l.dueOf(current(), time.Now()) {
			l.walk(ctx, id, quickWalk)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// serve walks the layers that it receives, each for at most limit.
func (l *layers) serve(ctx context.Context, ids <-chan string, limit time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-ids:
			l.walk(ctx, id, limit)
		}
	}
}

// dueOf updates the set of layers and returns those that are due for a walk.
func (l *layers) dueOf(dirs map[string]string, now time.Time) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.known {
		if _, ok := dirs[id]; !ok {
			delete(l.known, id)
		}
	}

	var due []string
	for id, dir := range dirs {
		if dir == "" {
			continue
		}
		entry := l.known[id]
		if entry == nil {
			entry = &layer{dir: dir, walked: make(chan struct{})}
			l.known[id] = entry
		}
		if now.Before(entry.due) {
			continue
		}
		if !entry.slow {
			due = append(due, id)
			continue
		}

		select {
		case l.slow <- id:
			entry.due = now.Add(slowWalk) // not to be queued twice
		default: // in a later round
		}
	}

	return due
}

// walk measures one layer for at most limit, unless it is already being
// measured.
func (l *layers) walk(ctx context.Context, id string, limit time.Duration) {
	l.mu.Lock()
	entry := l.known[id]
	if entry == nil || entry.busy {
		l.mu.Unlock()
		return
	}

	entry.busy = true
	dir := entry.dir
	l.mu.Unlock()

	start := time.Now()
	walkCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	got, err := l.measure(walkCtx, dir)
	end := time.Now()

	l.mu.Lock()
	defer l.mu.Unlock()
	entry.busy = false
	entry.due = end.Add(max(l.period-l.period/10, idleShare*end.Sub(start)))

	if ctx.Err() == nil {
		entry.take(got, err, end)
	}
	if limited := walkCtx.Err() != nil; limited && !entry.slow {
		entry.slow, entry.due = true, end
	} else {
		entry.slow = limited || end.Sub(start) > quickWalk/2
	}

	select {
	case <-entry.walked:
	default:
		close(entry.walked)
	}
}

// take records the result of a walk. For a layer that was counted only
// partially, the larger of the new and the old size is kept: a container must
// not be able to hide what it wrote.
func (e *layer) take(got rootpath.Usage, err error, at time.Time) {
	if got == (rootpath.Usage{Partial: true}) {
		klog.V(2).InfoS("Could not measure a writable layer", "dir", e.dir, "err", err)
		return
	}
	if got.Partial {
		if !e.partial {
			klog.InfoS("Measured a writable layer only partially, its stats are lower bounds", "dir", e.dir, "bytes", got.Bytes, "inodes", got.Inodes, "err", err)
		}
		got.Bytes, got.Inodes = max(got.Bytes, e.usage.bytes), max(got.Inodes, e.usage.inodes)
	}
	e.partial = got.Partial
	e.usage = usage{bytes: got.Bytes, inodes: got.Inodes, at: at}
}
