// Package orphan takes in processes whose parent died and tells how they end.
//
// The daemon starts the keeper and is a child subreaper, so when the keeper
// dies its children become the daemon's. Somebody must reap them: a container's
// PID namespace does not end before every process in it is reaped, and the
// exit status is told to the parent alone, before Linux 6.15.
//
// The process's other children belong to os/exec, which waits for each of
// them by its pid, so nothing here waits for just any child. A [Reaper] waits
// for the processes that it is told of, and for children that have been
// zombies for so long that evidently nobody else waits for them. Soon it does
// that only for those of other PID namespaces, which os/exec does not make: on
// a machine that is too busy os/exec may wait late.
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
)

// sweepPeriod is the time between two looks for zombies that nobody waits for.
// One is reaped at the second look that finds it.
const sweepPeriod = 10 * time.Second

// After [Reaper.Hurry] there are some looks in quick succession.
const (
	hurriedPeriod = time.Second
	hurriedSweeps = 10
)

// StatusTime is how long a parent has to reap a process that has ended: the
// kernel tells others how only then.
const StatusTime = time.Second

// SpentPeriod is the time between two looks whether a process is [Spent].
const SpentPeriod = time.Second

// pollPeriod bounds how late the end of a watched process is noticed.
const pollPeriod = 20 * time.Millisecond

// Reaper reaps orphans. It is safe for concurrent use.
type Reaper struct {
	wake  chan struct{} // has a token when the first process is watched
	hurry chan struct{} // has a token after Hurry

	mu      sync.Mutex
	watched map[int]*Orphan
}

// Orphan is a process that may have become our child.
type Orphan struct {
	pid  int
	poll int // a pidfd of ours
	// Done is closed when the process has ended.
	Done chan struct{}
	// Status is set before Done is closed, if Known: the process was our
	// child, or the kernel tells the status of others.
	Status unix.WaitStatus
	Known  bool
	ended  time.Time // when it was seen to have, if its status was not known
	looked time.Time // when it was last seen not to be spent
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
	return &Reaper{wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), watched: map[int]*Orphan{}}
}

// Watch awaits the end of a process, given its pidfd, which stays the caller's.
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

// Release gives up an orphan that was none: its parent lives. Done is never closed.
func (r *Reaper) Release(o *Orphan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watched[o.pid] == o {
		unix.Close(o.poll)
		delete(r.watched, o.pid)
	}
}

// Hurry has Run look for zombies soon. It is to be called when a parent died
// whose children nobody may know: a PID namespace does not end before them.
func (r *Reaper) Hurry() {
	select {
	case r.hurry <- struct{}{}:
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
		var look <-chan time.Time // never, while nothing is watched
		if r.busy() {
			look = time.After(pollPeriod)
		}

		select {
		case <-ctx.Done():
			return
		case <-r.hurry:
			quick = hurriedSweeps
			sweep.Reset(hurriedPeriod)
		case <-sweep.C:
			zombies = reapNobodys(zombies, func(pid int) bool { return r.isWatched(pid) || quick > 0 && !Foreign(pid) })
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

// collect reaps the watched processes that have ended.
func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid, o := range r.watched {
		if !o.settle() {
			continue
		}
		unix.Close(o.poll)
		delete(r.watched, pid)
		close(o.Done)
	}
}

// settle finds out how an orphan ended, and is false while it has not or while
// that may yet become known: the kernel tells it of a child of others when
// they have reaped it.
func (o *Orphan) settle() bool {
	fds := []unix.PollFd{{Fd: int32(o.poll), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 0); err != nil || n == 0 {
		if time.Since(o.looked) > SpentPeriod {
			o.looked = time.Now()
			o.Status, o.Known = Spent(o.pid, o.poll)
		}
		return o.Known
	}

	// A zombie's pid is not given to another process before it is reaped,
	// and one that is not our child is ECHILD.
	got, err := unix.Wait4(o.pid, &o.Status, unix.WNOHANG, nil)
	if o.Known = err == nil && got == o.pid; !o.Known {
		o.Status, o.Known = Status(o.pid, o.poll)
	}

	if o.ended.IsZero() {
		o.ended = time.Now()
	}
	return o.Known || time.Since(o.ended) > StatusTime
}

// release forgets what is still watched.
func (r *Reaper) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid, o := range r.watched {
		unix.Close(o.poll)
		delete(r.watched, pid)
	}
}

// reapNobodys reaps the zombies among our children that were zombies at the
// last look too, and returns those that it found for the first time.
func reapNobodys(last map[int]bool, skip func(pid int) bool) map[int]bool {
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
			continue // the thread ended
		}

		for _, f := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}

	return pids
}

// Foreign says whether a process is in a PID namespace below ours: it has
// more than one number.
func Foreign(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	_, rest, found := strings.Cut(string(data), "\nNSpid:")
	numbers, _, _ := strings.Cut(rest, "\n")
	return err == nil && found && len(strings.Fields(numbers)) > 1
}

func isZombie(pid int) bool {
	s, err := readStat(pid)
	return err == nil && s.state == "Z"
}
