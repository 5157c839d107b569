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
	entry      *entry          // guarded by keeper.mu; whose end is to be reported
}

func newProc(pid, pidfd int) *proc {
	return &proc{pid: pid, pidfd: pidfd, ended: make(chan struct{})}
}

// reapLoop reaps every child for as long as this process lives.
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

// reap reaps the children that have ended: containers, the first processes of
// two-stage plans, and orphans, for which this process is the subreaper.
//
// While a plan's fork is not reported, a child that is not in the table may
// be that plan's second process. It must stay a zombie until it is, so that
// its pid cannot be another's by then; only known children are reaped.
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

// waitLocked reaps one child and says whether there was one.
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
			k.wg.Go(func() { k.ended(e, oomKills(e.events)) })
		}
	}

	k.touch()
	return true
}

// watchLocked has the end of p reported as that of e, whether or not it is
// in the past.
func (k *keeper) watchLocked(p *proc, e *entry) {
	p.entry = e
	select {
	case <-p.ended:
		k.wg.Go(func() { k.ended(e, oomKills(e.events)) })
	default:
	}
}

// adoptLocked registers a process that a child forked.
func (k *keeper) adoptLocked(pid int) (*proc, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	p := newProc(pid, pidfd)
	k.procs[pid] = p
	return p, nil
}

// forkDoneLocked says that a plan's fork was reported, or never will be.
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
