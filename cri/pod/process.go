package pod

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/client"
	"crisp/runtime/procstat"
)

// identify reads what distinguishes a process from a later one with the same
// pid.
func identify(pid int) (*Process, error) {
	stat, err := procstat.Read(pid)
	if err != nil {
		return nil, err
	}
	return &Process{Pid: pid, StartTicks: stat.StartTicks}, nil
}

// open returns a pidfd of the process, or nil if it has exited.
func (pr *Process) open() (*os.File, error) {
	fd, err := unix.PidfdOpen(pr.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pr.Pid, err)
	}

	f := os.NewFile(uintptr(fd), "pidfd")
	now, err := identify(pr.Pid)
	if err != nil || *now != *pr {
		f.Close()
		return nil, nil
	}
	return f, nil
}

// killProcess sends SIGKILL to exactly that process; a dead one is a success.
func killProcess(pr *Process) error {
	f, err := pr.open()
	if f == nil {
		return err
	}
	defer f.Close()
	return client.Signal(f, unix.SIGKILL)
}

// signal0 fails if the process of a pidfd has exited.
func signal0(pidfd *os.File) error {
	return unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0)
}

// processState returns the state of a process in /proc, for errors.
func processState(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "state unknown"
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "State:"); ok {
			return "state " + strings.TrimSpace(rest)
		}
	}
	return "state unknown"
}
