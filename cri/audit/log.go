package audit

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

const (
	// maxWaiting is how many lines wait for the disk; more are lost.
	maxWaiting = 1024
	// closeTime is how long the end waits for the disk.
	closeTime = time.Second
	// setTime is how long a change of the file waits for the disk.
	setTime = 5 * time.Second
	// repeatTime is how long calls that repeat one are only counted, maxRepeats how
	// many different ones are known.
	repeatTime = time.Hour
	maxRepeats = 4096
	// complainEvery is how often it is logged that lines are lost.
	complainEvery = time.Minute
)

// Log is the audit log. It is off until [Log.Set], and then costs a look at a flag
// per call.
type Log struct {
	lost func(lines int)
	on   atomic.Bool
	// begun is when the log began, and calls the number of those since.
	begun time.Time
	calls atomic.Int64

	lines   chan []byte
	targets chan target
	done    chan struct{}
	cancel  context.CancelFunc

	mu      sync.Mutex
	repeats map[[sha256.Size]byte]*repeat // guarded by mu
}

// target is a request to write to another file, "" for none.
type target struct {
	path   string
	answer chan error
}

// repeat is a call that is made again and again.
type repeat struct {
	said  time.Time
	count int // since then
}

// New returns a log that is off. Lost is called with the number of lines that could not
// be written; it must not block. Close ends the log, the end of ctx does not.
func New(ctx context.Context, lost func(lines int)) *Log {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &Log{
		lost: lost, cancel: cancel, begun: time.Now(), lines: make(chan []byte, maxWaiting), targets: make(chan target), done: make(chan struct{}),
		repeats: map[[sha256.Size]byte]*repeat{},
	}
	go func() {
		defer close(l.done)
		l.run(ctx)
	}()
	return l
}

// On reports whether calls are written. A nil log is off.
func (l *Log) On() bool { return l != nil && l.on.Load() }

// Set writes to a file from now on, or nowhere if path is empty. A file that was moved
// away is begun anew. After an error nothing has changed.
func (l *Log) Set(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, setTime)
	defer cancel()
	t := target{path, make(chan error, 1)}
	select {
	case l.targets <- t:
	case <-ctx.Done():
		return fmt.Errorf("change the audit log to %q, the disk does not answer: %w", path, ctx.Err())
	}

	select {
	case err := <-t.answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("change the audit log to %q, the disk does not answer: %w", path, ctx.Err())
	}
}

// Close writes what waits, and ends. It does not wait for a disk that hangs.
func (l *Log) Close() {
	l.on.Store(false)
	l.cancel()
	select {
	case <-l.done:
	case <-time.After(closeTime):
		klog.InfoS("Could not write the end of the audit log, the disk does not answer", "lines", len(l.lines))
	}
}

// Begin begins a call with a command, if it has one, of which there is a line before
// anything is done. The caller calls end with the exit code and the error, once.
func (l *Log) Begin(r Record, command []string) (end func(code int, err error)) {
	if !l.On() {
		return func(int, error) {}
	}
	began := time.Now()
	r.command(command)
	r.Session = fmt.Sprintf("%s-%d", strconv.FormatInt(l.begun.UnixNano(), 36), l.calls.Add(1))
	first := r
	first.Time, first.Result = began.UTC(), resultBegin
	l.add(&first)
	return func(code int, err error) {
		r.end(code, err, began, time.Now())
		l.add(&r)
	}
}

// add queues a line, unless it repeats one that was written lately.
func (l *Log) add(r *Record) {
	if r.often() && l.repeated(r) {
		return
	}
	line, err := r.line()
	if err != nil {
		klog.ErrorS(err, "Could not write to the audit log")
		l.lost(1)
		return
	}
	select {
	case l.lines <- line:
	default:
		l.lost(1)
	}
}

// repeated counts a call that is the same as one that was written lately. Otherwise the
// record gets the number of those that were not written.
func (l *Log) repeated(r *Record) bool {
	key := r.likeness()
	l.mu.Lock()
	defer l.mu.Unlock()
	if known := l.repeats[key]; known != nil {
		if r.Time.Sub(known.said) < repeatTime {
			known.count++
			return true
		}
		r.Repeats = known.count
		known.said, known.count = r.Time, 0
		return false
	}

	if len(l.repeats) >= maxRepeats {
		for k, old := range l.repeats {
			if r.Time.Sub(old.said) >= repeatTime {
				delete(l.repeats, k)
			}
		}
	}
	if len(l.repeats) < maxRepeats { // else each call gets a line
		l.repeats[key] = &repeat{said: r.Time}
	}
	return false
}

// run writes lines until ctx ends, and then those that wait.
func (l *Log) run(ctx context.Context) {
	var f *file
	w := writer{lost: l.lost}
	defer func() { f.close() }()
	for {
		select {
		case t := <-l.targets:
			next, err := openFile(t.path)
			if err == nil {
				begins := f == nil && next != nil
				f.close()
				f = next
				if begins {
					w.start(f)
				}
				l.on.Store(f != nil)
			}
			t.answer <- err

		case line := <-l.lines:
			w.write(f, line)

		case <-ctx.Done():
			for {
				select {
				case line := <-l.lines:
					w.write(f, line)
				default:
					return
				}
			}
		}
	}
}

// writer writes lines and says now and then how many are lost.
type writer struct {
	lost   func(int)
	missed int // since it was said
	said   time.Time
}

func (w *writer) write(f *file, line []byte) {
	if f == nil {
		return // turned off meanwhile
	}
	err := f.write(line)
	if err == nil {
		return
	}
	w.lost(1)
	w.missed++
	if now := time.Now(); now.Sub(w.said) >= complainEvery {
		klog.ErrorS(err, "Could not write to the audit log, lines are lost", "lines", w.missed)
		w.missed, w.said = 0, now
	}
}

// start writes that there are lines from here on.
func (w *writer) start(f *file) {
	line, err := (&Record{Time: time.Now().UTC(), Call: Start, Result: resultOK}).line()
	if err != nil {
		klog.ErrorS(err, "Could not write to the audit log")
		w.lost(1)
		return
	}
	w.write(f, line)
}
