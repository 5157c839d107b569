package keeper

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/orphan"
	"crisp/runtime/wire"
)

// unknownCode is the exit code of a process of which only the end is known.
const unknownCode = 255

// adopt takes over what a keeper that died has held: a process that is
// nobody's child here, with its descriptors.
func (k *keeper) adopt(m wire.Adopt, files wire.Files) error {
	defer func() { files.Close() }() // what is left of them
	if !wire.ValidID(m.ID) || m.Kind < wire.Sandbox || m.Kind > wire.Exec || m.Started.Pid < 0 {
		return fmt.Errorf("adopt: %w: %v %q, pid %d", wire.ErrInvalid, m.Kind, m.ID, m.Started.Pid)
	}
	if err := m.Check(files); err != nil {
		return fmt.Errorf("adopt %s: %w: %w", m.ID, wire.ErrInvalid, err)
	}

	e, err := k.reserve(m.ID, m.Kind)
	if err != nil {
		return fmt.Errorf("adopt %w", err)
	}

	ended := make(chan struct{})
	if m.Started.Pid != 0 {
		e.adopted = true
		e.proc = &proc{pid: int(m.Started.Pid), pidfd: files.FD(wire.PidFD), ended: ended}
		e.watchMemory()
	}

	e.at = time.Unix(0, m.Started.At)
	err = k.equip(e, &files, m.MaxLine, ended)
	var watch *os.File
	if err == nil && e.proc != nil {
		watch, err = pollable(e.proc.pidfd)
	}
	if err != nil {
		k.abandon(e)
		return fmt.Errorf("adopt %s: %w", m.ID, err)
	}

	k.enter(e)
	k.deposit(e)
	if watch != nil {
		k.wg.Go(func() { k.await(e, watch) })
	}

	return nil
}

// pollable returns a copy of a pidfd whose end can be awaited without a thread.
func pollable(pidfd int) (*os.File, error) {
	copies, err := wire.Files{{Role: wire.PidFD, FD: pidfd}}.Copy()
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(copies[0].FD, true); err != nil {
		copies.Close()
		return nil, fmt.Errorf("use pidfd: %w", err)
	}
	return os.NewFile(uintptr(copies[0].FD), "pidfd"), nil
}

// await reports the end of an adopted process.
func (k *keeper) await(e *entry, watch *os.File) {
	defer watch.Close()
	p := e.proc
	status, spent, err := k.awaitEnd(p.pid, watch)
	if errors.Is(err, os.ErrClosed) {
		return
	}
	if err != nil {
		k.logf("await end of %s: %v", e.id, err)
		return
	}

	p.at = time.Now()
	kills := oomKills(e.events) // at once: the cgroup may be about to go
	if !spent {
		status = statusOf(p)
	}

	p.status = status
	close(p.ended)
	k.ended(e, kills)
}

// awaitEnd returns when a process, of which watch is a pidfd, has ended, and
// how if it is spent. When the keeper ends the error is [os.ErrClosed].
func (k *keeper) awaitEnd(pid int, watch *os.File) (status unix.WaitStatus, spent bool, err error) {
	raw, err := watch.SyscallConn()
	if err != nil {
		return 0, false, err
	}

	for {
		if err := watch.SetReadDeadline(time.Now().Add(orphan.SpentPeriod)); err != nil {
			return 0, false, err
		}
		err := raw.Read(func(fd uintptr) bool {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(poll, 0)
			return n > 0 || err != nil && err != unix.EINTR
		})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, false, err
		}

		select {
		case <-k.leave:
			return 0, false, os.ErrClosed
		default:
		}

		// There may be a process in its PID namespace that nobody reaps.
		err = raw.Control(func(fd uintptr) { status, spent = orphan.Spent(pid, int(fd)) })
		if err != nil || spent {
			return status, spent, err
		}
	}
}

// statusOf returns the exit status of a process that has ended and was not a child.
func statusOf(p *proc) unix.WaitStatus {
	for end := time.Now().Add(orphan.StatusTime); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if status, known := orphan.Status(p.pid, p.pidfd); known {
			return status
		}
	}
	return unknownCode << 8
}
