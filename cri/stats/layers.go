package stats

import (
	"context"
	"sync"
	"time"
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
)

// usage is the size of a writable layer.
type usage struct {
	bytes, inodes uint64
	at            time.Time
}

// layers knows the sizes of writable layers. It walks them in run's goroutines.
type layers struct {
	period time.Duration
	first  chan string

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
}

func (l *layers) init(period time.Duration) {
	l.period = period
	l.first = make(chan string, queued)
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
	// A walk through a large layer must not hold up new ones.
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case id := <-l.first:
				l.walk(ctx, id)
			}
		}
	})
	tick := time.NewTicker(l.period)
	defer tick.Stop()
	for {
		for _, id := range l.dueOf(current(), time.Now()) {
			l.walk(ctx, id)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
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
		if !now.Before(entry.due) {
			due = append(due, id)
		}
	}
	return due
}

// walk measures one layer, unless it is being measured.
func (l *layers) walk(ctx context.Context, id string) {
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
	bytes, inodes, err := diskUsage(ctx, dir)
	end := time.Now()

	l.mu.Lock()
	defer l.mu.Unlock()
	entry.busy = false
	entry.due = end.Add(max(l.period-l.period/10, idleShare*end.Sub(start)))
	if err == nil {
		entry.usage = usage{bytes: bytes, inodes: inodes, at: end}
	}
	select {
	case <-entry.walked:
	default:
		close(entry.walked)
	}
}
