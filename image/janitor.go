package image

import (
	"context"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"crisp/runtime/rootpath"
)

// janitorRetry is the delay before what could not be removed, for example
// because the disk is read-only for a while, is tried again.
const janitorRetry = 10 * time.Second

// janitor removes unused data from the temporary directory in the background,
// one item at a time. Callers wait for it only if they choose to.
type janitor struct {
	dir  *os.File
	done chan struct{}
	// cancel interrupts the removal in progress, which may take long.
	cancel context.CancelFunc

	mu     sync.Mutex
	wake   *sync.Cond
	queue  []string
	stuck  map[string]bool // what could not be removed and will be queued again
	retry  *time.Timer     // nil while nothing is stuck
	closed bool
	idle   chan struct{} // closed when the queue is empty
}

func newJanitor(dir *os.File) *janitor {
	j := &janitor{dir: dir, done: make(chan struct{}), idle: make(chan struct{}), stuck: map[string]bool{}}
	j.wake = sync.NewCond(&j.mu)
	close(j.idle)
	ctx, cancel := context.WithCancel(context.Background())
	j.cancel = cancel
	go j.run(ctx)
	return j
}

// add queues names, ignoring empty ones, and returns a channel that is closed
// when nothing is left that can be removed.
func (j *janitor) add(names ...string) <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, name := range names {
		if name == "" || j.closed {
			continue
		}
		if len(j.queue) == 0 {
			select {
			case <-j.idle:
				j.idle = make(chan struct{})
			default: // the previous item is still being removed
			}
		}
		j.queue = append(j.queue, name)
	}

	j.wake.Signal()
	return j.idle
}

func (j *janitor) run(ctx context.Context) {
	defer close(j.done)
	for {
		j.mu.Lock()
		for len(j.queue) == 0 && !j.closed {
			select {
			case <-j.idle:
			default:
				close(j.idle)
			}
			j.wake.Wait()
		}

		if j.closed {
			j.mu.Unlock()
			return
		}

		name := j.queue[0]
		j.queue = j.queue[1:]
		j.mu.Unlock()
		err := rootpath.RemoveAll(ctx, j.dir, name)
		if ctx.Err() != nil {
			continue // the next start removes it
		}
		j.note(name, err)
	}
}

// note records the outcome of a removal. A failure is logged once and retried.
func (j *janitor) note(name string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		delete(j.stuck, name)
		return
	}
	if !j.stuck[name] {
		klog.InfoS("Could not remove unused data, will retry", "path", j.dir.Name()+"/"+name, "err", err)
	}
	j.stuck[name] = true
	if j.retry == nil && !j.closed {
		j.retry = time.AfterFunc(janitorRetry, j.requeue)
	}
}

// requeue queues what is stuck once more.
func (j *janitor) requeue() {
	j.mu.Lock()
	j.retry = nil
	names := slices.Collect(maps.Keys(j.stuck))
	j.mu.Unlock()
	j.add(names...)
}

// close stops the janitor at once. The next start removes what is left.
func (j *janitor) close() error {
	j.mu.Lock()
	j.closed = true
	if j.retry != nil {
		j.retry.Stop()
	}

	j.wake.Signal()
	j.mu.Unlock()
	j.cancel()
	<-j.done

	select {
	case <-j.idle:
	default:
		close(j.idle)
	}

	return j.dir.Close()
}
