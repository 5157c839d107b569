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

// reapLoop reaps children until the keeper exits.
func (k *keeper) reapLoop(child <-chan os.Signal) {
	for {
		select {
		case <-child:
		case <-k.sweep:
		case <-k.leave:
			return
		}
		k.reap()
	}
}

// reap reaps zombies: containers, the first processes of two-stage plans, and
// orphans, for which this process is the subreaper.
//
// While a plan's fork is not reported, a child that is not in the table may be
// that plan's second process. It must stay a zombie until the report, so that
// its PID is not reused before; only known children are reaped.
func (k *keeper) reap() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.forking > 0 {
		for pid := range k.procs {
			k.waitLocked(pid)
		}
		return
	}
	for k.waitLocked(-1) {
	}
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
	k.procs[pid] = p
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
