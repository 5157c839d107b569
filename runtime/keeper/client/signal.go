package client

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// ExitUnknown is the exit code of a process whose exit status is unknown.
const ExitUnknown = 255

// Signal sends a signal to the process of a pidfd; a dead process is not an error.
func Signal(pidfd *os.File, sig unix.Signal) error {
	return ifAlive(unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0))
}

// KillGroup kills the process of a pidfd and the process group that it leads,
// before Linux 6.9 the process alone.
func KillGroup(pidfd *os.File) error {
	const processGroup = 1 << 2 // PIDFD_SIGNAL_PROCESS_GROUP
	err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, processGroup)
	if errors.Is(err, unix.EINVAL) {
		return Signal(pidfd, unix.SIGKILL)
	}
	return ifAlive(err)
}

func ifAlive(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
