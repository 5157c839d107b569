package keeper

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crisp/runtime/procstat"
	"crisp/runtime/wire"
)

// replace makes another child the process of an entry: a program that restores a
// checkpoint clones the container's first process as its own sibling, and ends.
func (k *keeper) replace(m wire.Replace, files wire.Files) error {
	defer func() { files.Close() }() // those that were not taken
	if err := m.Check(files); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrInvalid, err)
	}
	if pid, err := procstat.PID(files.FD(wire.PidFD)); err != nil || pid != int(m.Pid) {
		return fmt.Errorf("replace the process of %s: %w: process %d", m.ID, wire.ErrInvalid, m.Pid)
	}

	p := newProc(int(m.Pid), files.FD(wire.PidFD))
	next := &entry{id: m.ID, kind: wire.Container}
	err := k.equip(next, &files, m.MaxLine, p.ended)
	var e *entry
	if err == nil {
		e, err = k.succeed(p, next)
	}
	if err != nil {
		next.release()
		return fmt.Errorf("replace the process of %s: %w", m.ID, err)
	}
	k.withdraw(e, "")
	k.deposit(e)
	return nil
}

// succeed gives the entry of next's ID the process p and all that next holds.
func (k *keeper) succeed(p *proc, next *entry) (*entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, err := k.lookupLocked(next.id)
	if err != nil {
		return nil, err
	}
	if e.kind != wire.Container || len(e.outputs) > 0 || !runs(e) {
		return nil, wire.ErrNotRunning
	}

	// Until it is in the table it may be reaped as an orphan, and is none of the
	// children then.
	const look = unix.WEXITED | unix.WNOHANG | unix.WNOWAIT
	if err := unix.Waitid(unix.P_PIDFD, p.pidfd, nil, look, nil); err != nil {
		return nil, fmt.Errorf("%w: process %d is no child: %w", wire.ErrInvalid, p.pid, err)
	}
	if k.procs[p.pid] != nil {
		return nil, fmt.Errorf("%w: process %d is another's", wire.ErrInvalid, p.pid)
	}

	k.addLocked(p)
	e.proc.entry, e.proc = nil, p
	e.held.Close()
	e.held, e.log, e.outputs = next.held, next.log, next.outputs
	for _, o := range e.outputs {
		o.pumped = true
		k.wg.Go(o.pump)
	}
	k.watchLocked(p, e)
	return e, nil
}

// runs reports whether an entry has a child whose end was not noticed yet.
func runs(e *entry) bool {
	if e.proc == nil || e.adopted || e.exit != nil {
		return false
	}
	select {
	case <-e.proc.ended:
		return false
	default:
		return true
	}
}
