// Package orphan reaps processes whose parent died and reports their exit status.
//
// The daemon starts the keeper and is a child subreaper, so when the keeper
// dies its children become the daemon's. They must be reaped: a PID namespace
// is not torn down before every process in it is reaped, and before Linux 6.15
// the kernel reports the exit status only to the parent.
//
// The daemon's other children belong to os/exec, which waits for each of them
// by PID, so wait4(-1) is never used here. A [Reaper] waits for the processes
// registered with it, and for children that have been zombies for so long that
// no other goroutine can be waiting for them. After [Reaper.ScanSoon] that time
// is short, but only for processes of other PID namespaces, which os/exec does
// not create: on an overloaded machine os/exec may wait late.
package orphan

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/procstat"
)

// sweepPeriod is the time between two scans for unclaimed zombies. A zombie is
// reaped by the second scan that finds it.
const sweepPeriod = 10 * time.Second

// After [Reaper.ScanSoon] there are some scans in quick succession.
const (
	soonPeriod = time.Second
	soonSweeps = 10
)

// StatusTime is how long to wait until the parent has reaped a zombie: only
// then does the kernel report the exit status to others.
const StatusTime = time.Second

// DefunctPeriod is the time between two checks whether a process is [Defunct].
const DefunctPeriod = time.Second

// pollPeriod is the polling interval for the exit of watched processes.
const pollPeriod = 20 * time.Millisecond

// Reaper reaps orphans. It is safe for concurrent use.
type Reaper struct {
	wake     chan struct{} // has a token when the first process is watched
	scanSoon chan struct{} // has a token after ScanSoon

	mu      sync.Mutex
	watched map[int]*Orphan
}

// Orphan is a process that may have become a child of this one.
type Orphan struct {
	pid  int
	poll int // a pidfd, owned by the Orphan
	// Done is closed when the process has exited.
	Done chan struct{}
	// Status is set before Done is closed, if Known: the process was a child of
	// this one, or the kernel reports the status of others.
	Status unix.WaitStatus
	Known  bool
	ended  time.Time // when its exit was noticed, if the status was not known
	looked time.Time // when it was last checked for Defunct
}

// Adopt makes this process the parent of orphaned descendants.
func Adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a child subreaper: %w", err)
	}
	return nil
}

// New returns a reaper. It does nothing before Run.
func New() *Reaper {
	return &Reaper{wake: make(chan struct{}, 1), scanSoon: make(chan struct{}, 1), watched: map[int]*Orphan{}}
}

// Watch waits for the exit of a process, given its pidfd, which stays the caller's.
func (r *Reaper) Watch(pid int, pidfd *os.File) (*Orphan, error) {
	fd, err := unix.FcntlInt(pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}

	o := &Orphan{pid: pid, poll: fd, Done: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.watched[pid]; old != nil {
		unix.Close(fd)
		return old, nil
	}

	r.watched[pid] = o
	select {
	case r.wake <- struct{}{}:
	default:
	}

	return o, nil
}

// Release stops watching a process that is not an orphan after all: its parent
// lives. Done is never closed.
func (r *Reaper) Release(o *Orphan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watched[o.pid] == o {
		unix.Close(o.poll)
		delete(r.watched, o.pid)
	}
}

// ScanSoon has Run scan for zombies soon. Call it after the death of a parent
// with possibly unknown children: a PID namespace is not torn down before they
// are reaped.
func (r *Reaper) ScanSoon() {
	select {
	case r.scanSoon <- struct{}{}:
	default:
	}
}

// Run reaps until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	defer r.release()
	sweep := time.NewTicker(sweepPeriod)
	defer sweep.Stop()
	var zombies map[int]bool
	quick := 0
	for {
		var look <-chan time.Time // nil while nothing is watched
		if r.busy() {
			look = time.After(pollPeriod)
		}

		select {
		case <-ctx.Done():
			return
		case <-r.scanSoon:
			quick = soonSweeps
			sweep.Reset(soonPeriod)
		case <-sweep.C:
			zombies = reapUnclaimed(zombies, func(pid int) bool { return r.isWatched(pid) || quick > 0 && !Foreign(pid) })
			if quick--; quick == 0 {
				sweep.Reset(sweepPeriod)
			}
		case <-r.wake:
		case <-look:
			r.collect()
		}
	}
}

func (r *Reaper) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.watched) > 0
}

func (r *Reaper) isWatched(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.watched[pid] != nil
}

// collect reaps the watched processes that have exited.
func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid, o := range r.watched {
		if !o.resolve() {
			continue
		}
		unix.Close(o.poll)
		delete(r.watched, pid)
		close(o.Done)
	}
}

// resolve gets the exit status of an orphan. It is false while the process
// runs, or while its parent may still reap it: only then does the kernel report
// the status.
func (o *Orphan) resolve() bool {
	fds := []unix.PollFd{{Fd: int32(o.poll), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 0); err != nil || n == 0 {
		if time.Since(o.looked) > DefunctPeriod {
			o.looked = time.Now()
			o.Status, o.Known = Defunct(o.pid, o.poll)
		}
		return o.Known
	}

	// A zombie's PID is not reused before it is reaped, and ECHILD means that
	// it is not a child of this process.
	got, err := unix.Wait4(o.pid, &o.Status, unix.WNOHANG, nil)
	if o.Known = err == nil && got == o.pid; !o.Known {
		o.Status, o.Known = Status(o.pid, o.poll)
	}

	if o.ended.IsZero() {
		o.ended = time.Now()
	}
	return o.Known || time.Since(o.ended) > StatusTime
}

// release stops watching all processes.
func (r *Reaper) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid, o := range r.watched {
		unix.Close(o.poll)
		delete(r.watched, pid)
	}
}

// reapUnclaimed reaps the zombie children that the last scan found, too, and
// returns those that it found for the first time.
func reapUnclaimed(last map[int]bool, skip func(pid int) bool) map[int]bool {
	found := map[int]bool{}
	for _, pid := range children() {
		if skip(pid) || !isZombie(pid) {
			continue
		}
		if last[pid] {
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
			continue
		}
		found[pid] = true
	}
	return found
}

// children lists the children of all threads of this process.
func children() []int {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}

	var pids []int
	for _, t := range threads {
		data, err := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		if err != nil {
			continue // the thread has exited
		}

		for _, f := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}

	return pids
}

// Foreign reports whether a process is in a descendant PID namespace: it has
// more than one PID.
func Foreign(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	_, rest, found := strings.Cut(string(data), "\nNSpid:")
	numbers, _, _ := strings.Cut(rest, "\n")
	return err == nil && found && len(strings.Fields(numbers)) > 1
}

func isZombie(pid int) bool {
	s, err := procstat.Read(pid)
	return err == nil && s.State == 'Z'
}
