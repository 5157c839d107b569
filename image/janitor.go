package image

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"crisp/runtime/rootpath"
)

// janitorRetry is how long what could not be removed, as on a disk that is
// read-only for a while, waits for another attempt.
const janitorRetry = 10 * time.Second

// janitor removes what lies in the temporary directory and is not needed any
// more, one thing at a time, without anybody waiting who does not want to.
type janitor struct {
	dir  *os.File
	log  *slog.Logger
	done chan struct{}
	// end interrupts the removal of what may be large.
	end context.CancelFunc

	mu     sync.Mutex
	wake   *sync.Cond
	queue  []string
	stuck  map[string]bool // what could not be removed, to be queued again
	retry  *time.Timer     // nil while nothing is stuck
	closed bool
	idle   chan struct{} // closed when the queue is empty
}

func newJanitor(dir *os.File, log *slog.Logger) *janitor {
	j := &janitor{dir: dir, log: log, done: make(chan struct{}), idle: make(chan struct{}), stuck: map[string]bool{}}
	j.wake = sync.NewCond(&j.mu)
	close(j.idle)
	ctx, cancel := context.WithCancel(context.Background())
	j.end = cancel
	go j.run(ctx)
	return j
}

// add queues names, of which empty ones are ignored, and returns what closes
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
			default: // the last one is still being removed
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
			continue // the next start sweeps it
		}
		j.note(name, err)
	}
}

// note sets aside what could not be removed, and says so once.
func (j *janitor) note(name string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		delete(j.stuck, name)
		return
	}
	if !j.stuck[name] {
		j.log.Warn("cannot remove yet what is not needed any more", "path", j.dir.Name()+"/"+name, "err", err)
	}
	j.stuck[name] = true
	if j.retry == nil && !j.closed {
		j.retry = time.AfterFunc(janitorRetry, j.again)
	}
}

// again queues what is stuck.
func (j *janitor) again() {
	j.mu.Lock()
	j.retry = nil
	names := slices.Collect(maps.Keys(j.stuck))
	j.mu.Unlock()
	j.add(names...)
}

// close ends the janitor at once. What is left is swept at the next start.
func (j *janitor) close() error {
	j.mu.Lock()
	j.closed = true
	if j.retry != nil {
		j.retry.Stop()
	}

	j.wake.Signal()
	j.mu.Unlock()
	j.end()
	<-j.done

	select {
	case <-j.idle:
	default:
		close(j.idle)
	}

	return j.dir.Close()
}
