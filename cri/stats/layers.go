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
	// idleShare bounds the walking: a layer is left alone for this many times
	// as long as its last walk took.
	idleShare = 20
	// queued bounds the layers that wait for their first walk; the others
	// get theirs in the next round.
	queued = 256
	// quickWalk bounds a walk that others wait for. A layer that takes longer
	// is walked apart from then on, for at most slowWalk; what was not reached by
	// then is missing from the figure.
	quickWalk, slowWalk = 2 * time.Second, 2 * time.Minute
)

// usage is the size of a writable layer.
type usage struct {
	bytes, inodes uint64
	at            time.Time
}

// layers knows the sizes of writable layers. It walks them in run's goroutines.
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
	// slow layers are walked apart from the others.
	slow bool
	// partial says that the last walk did not count all.
	partial bool
}

func (l *layers) init(period time.Duration) {
	l.period, l.measure = period, diskUsage
	l.first = make(chan string, queued)
	l.slow = make(chan string, queued)
	l.known = make(map[string]*layer)
}

// usage returns what is known of a container's layer. For a new one it waits
// until deadline at most.
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

// run walks layers until ctx ends: new ones at once, known ones every period.
func (l *layers) run(ctx context.Context, current func() map[string]string) {
	var wg sync.WaitGroup
	defer wg.Wait()

	// A walk through a large layer must not hold up new ones, nor others.
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

// serve walks the layers that come, each for limit at most.
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

// dueOf takes over what there is now and returns what should be walked.
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

// walk measures one layer for limit at most, unless it is being measured.
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

// take notes what a walk found. Of a layer that could not be counted to its
// end, the larger of what was counted and what was known is the better figure:
// a container must not be able to hide what it wrote.
func (e *layer) take(got rootpath.Usage, err error, at time.Time) {
	if got == (rootpath.Usage{Partial: true}) {
		klog.V(2).InfoS("Cannot measure a writable layer", "dir", e.dir, "err", err)
		return
	}
	if got.Partial {
		if !e.partial {
			klog.InfoS("A writable layer could not be measured to its end; its figures are lower bounds", "dir", e.dir, "bytes", got.Bytes, "inodes", got.Inodes, "err", err)
		}
		got.Bytes, got.Inodes = max(got.Bytes, e.usage.bytes), max(got.Inodes, e.usage.inodes)
	}
	e.partial = got.Partial
	e.usage = usage{bytes: got.Bytes, inodes: got.Inodes, at: at}
}
