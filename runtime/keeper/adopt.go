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

// unknownCode is the exit code of a process whose exit status is unknown.
const unknownCode = 255

// adopt takes over an entry of a keeper that died: its descriptors and a
// process that is not a child of this one.
func (k *keeper) adopt(m wire.Adopt, files wire.Files) error {
	defer func() { files.Close() }() // those that were not taken
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

// pollable returns a copy of a pidfd that can be waited for without blocking a thread.
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

// await waits for an adopted process and reports its exit.
func (k *keeper) await(e *entry, watch *os.File) {
	defer watch.Close()
	p := e.proc
	status, defunct, err := k.awaitEnd(p.pid, watch)
	if errors.Is(err, os.ErrClosed) {
		return
	}
	if err != nil {
		k.logf("wait for exit of %s: %v", e.id, err)
		return
	}

	p.at = time.Now()
	kills := oomKills(e.events) // at once: the cgroup may be about to go
	if !defunct {
		status = statusOf(p)
	}

	p.status = status
	close(p.ended)
	k.exited(e, kills)
}

// awaitEnd returns when the process of the pidfd watch has exited, or with its
// status when it is defunct, see [orphan.Defunct]. When the keeper exits the
// error is [os.ErrClosed].
func (k *keeper) awaitEnd(pid int, watch *os.File) (status unix.WaitStatus, defunct bool, err error) {
	raw, err := watch.SyscallConn()
	if err != nil {
		return 0, false, err
	}

	for {
		if err := watch.SetReadDeadline(time.Now().Add(orphan.DefunctPeriod)); err != nil {
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

		// A zombie in its PID namespace that its parent never reaps keeps it
		// from exiting.
		err = raw.Control(func(fd uintptr) { status, defunct = orphan.Defunct(pid, int(fd)) })
		if err != nil || defunct {
			return status, defunct, err
		}
	}
}

// statusOf returns the exit status of a process that was not a child, 255 if unknown.
func statusOf(p *proc) unix.WaitStatus {
	for end := time.Now().Add(orphan.StatusTime); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if status, known := orphan.Status(p.pid, p.pidfd); known {
			return status
		}
	}
	return unknownCode << 8
}
