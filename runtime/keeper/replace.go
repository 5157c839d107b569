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
	defer func() { files.Close() }()
	if err := m.Check(files); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrInvalid, err)
	}
	fd := files.FD(wire.PidFD)
	if pid, err := procstat.PID(fd); err != nil || pid != int(m.Pid) {
		return fmt.Errorf("replace the process of %s: %w: process %d", m.ID, wire.ErrInvalid, m.Pid)
	}

	e, err := k.replaced(m, &files)
	if err != nil {
		return fmt.Errorf("replace the process of %s: %w", m.ID, err)
	}
	k.withdraw(e, "")
	k.deposit(e)
	return nil
}

// replaced changes the table. The descriptor that it takes is the new process's.
func (k *keeper) replaced(m wire.Replace, files *wire.Files) (*entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, err := k.lookupLocked(m.ID)
	if err != nil {
		return nil, err
	}
	if e.kind != wire.Container || !runs(e) {
		return nil, wire.ErrNotRunning
	}

	// Until it is in the table it may be reaped as an orphan, and is none of the
	// children then.
	const look = unix.WEXITED | unix.WNOHANG | unix.WNOWAIT
	if err := unix.Waitid(unix.P_PIDFD, files.FD(wire.PidFD), nil, look, nil); err != nil {
		return nil, fmt.Errorf("%w: process %d is no child: %w", wire.ErrInvalid, m.Pid, err)
	}
	if k.procs[int(m.Pid)] != nil {
		return nil, fmt.Errorf("%w: process %d is another's", wire.ErrInvalid, m.Pid)
	}

	p := newProc(int(m.Pid), files.Take(wire.PidFD))
	k.addLocked(p)
	e.proc.entry, e.proc = nil, p
	unix.Close(e.held.Take(wire.PidFD))
	e.held.Add(wire.PidFD, p.pidfd)
	for _, o := range e.outputs {
		o.exited = p.ended
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
