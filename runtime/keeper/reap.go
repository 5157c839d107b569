package keeper

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// proc is a child.
type proc struct {
	pid, pidfd int
	ended      chan struct{}   // closed once the process is reaped
	status     unix.WaitStatus // set before ended is closed
	at         time.Time       // set before ended is closed
	entry      *entry          // guarded by keeper.mu; the entry whose exit this is
}

func newProc(pid, pidfd int) *proc {
	return &proc{pid: pid, pidfd: pidfd, ended: make(chan struct{})}
}

// orphanTime is how long an orphan may stay a zombie. To look for orphans, the
// kernel walks all children, two for each container.
const orphanTime = 100 * time.Millisecond

// reapLoop reaps children until the keeper exits.
func (k *keeper) reapLoop(child <-chan os.Signal) {
	var orphans <-chan time.Time
	for {
		select {
		case <-child:
		case <-k.sweep:
		case <-orphans:
			orphans = nil
			if k.reapOrphans() {
				continue
			}
		case <-k.leave:
			return
		}

		k.reap()
		if orphans == nil {
			orphans = time.After(orphanTime)
		}
	}
}

// reap reaps the children of the table that have ended: containers and the first
// processes of two-stage plans.
func (k *keeper) reap() {
	k.mu.Lock()
	defer k.mu.Unlock()
	var events [32]unix.EpollEvent
	for {
		n, err := unix.EpollWait(k.exits, events[:], 0)
		if err == unix.EINTR {
			continue
		}

		for _, e := range events[:max(n, 0)] {
			// A child that was reaped as an orphan may still be reported.
			if pid := int(e.Fd); k.procs[pid] != nil {
				k.waitLocked(pid)
			}
		}
		if n < len(events) {
			return
		}
	}
}

// reapOrphans reaps every zombie, also the orphans for which this process is the
// subreaper, and is false if it has to be repeated.
//
// While a plan's fork is not reported, a child that is not in the table may be
// that plan's second process. It must stay a zombie until the report, so that
// its PID is not reused before.
func (k *keeper) reapOrphans() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.forking > 0 {
		return false
	}
	for k.waitLocked(-1) {
	}
	return true
}

// addLocked puts a child into the table, whose end is reported from now on, even
// if it has ended already.
func (k *keeper) addLocked(p *proc) {
	k.procs[p.pid] = p
	// One that cannot be watched is reaped like an orphan, a moment later. Once is
	// enough: who holds a copy of the descriptor keeps it watched.
	_ = unix.EpollCtl(k.exits, unix.EPOLL_CTL_ADD, p.pidfd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(p.pid)})
}

// waitLocked reaps one child and reports whether there was one.
func (k *keeper) waitLocked(pid int) bool {
	var status unix.WaitStatus
	pid, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
	if err != nil || pid <= 0 {
		return err == unix.EINTR
	}

	if p := k.procs[pid]; p != nil {
		delete(k.procs, pid)
		p.status, p.at = status, time.Now()
		close(p.ended)
		if e := p.entry; e != nil {
			k.wg.Go(func() { k.exited(e, oomKills(e.events)) })
		}
	}

	k.checkIdle()
	return true
}

// watchLocked has the exit of p reported as that of e, even if it has exited already.
func (k *keeper) watchLocked(p *proc, e *entry) {
	p.entry = e
	select {
	case <-p.ended:
		k.wg.Go(func() { k.exited(e, oomKills(e.events)) })
	default:
	}
}

// trackLocked registers a process that a child forked.
func (k *keeper) trackLocked(pid int) (*proc, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	p := newProc(pid, pidfd)
	k.addLocked(p)
	return p, nil
}

// forkDoneLocked notes that a plan's fork was reported, or never will be.
func (k *keeper) forkDoneLocked() {
	k.forking--
	select {
	case k.sweep <- struct{}{}:
	default:
	}
}

// exitCode returns the exit code, or 128 plus the signal, and the signal.
func exitCode(s unix.WaitStatus) (code, signal int64) {
	if s.Signaled() {
		return 128 + int64(s.Signal()), int64(s.Signal())
	}
	return int64(s.ExitStatus()), 0
}
