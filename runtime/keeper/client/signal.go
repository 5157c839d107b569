package client

import (
	"errors"
	"os"
	"strconv"

	"crisp/runtime/procstat"

	"golang.org/x/sys/unix"
)

// ExitUnknown is the exit code of a process whose exit status is unknown.
const ExitUnknown = 255

// Signal sends a signal to the process of a pidfd; a dead process is not an error.
func Signal(pidfd *os.File, sig unix.Signal) error {
	return ifAlive(unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0))
}

// KillGroup kills the process of a pidfd and the process group that it leads.
func KillGroup(pidfd *os.File) error {
	const processGroup = 1 << 2 // PIDFD_SIGNAL_PROCESS_GROUP
	err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, processGroup)
	if errors.Is(err, unix.EINVAL) {
		return killMembers(pidfd) // before Linux 6.9
	}
	return ifAlive(err)
}

// killRounds bounds the searches for members of a group, which may fork meanwhile.
const killRounds = 8

// killMembers kills a process group one by one, its leader last: as long as that is
// not reaped, the group's ID cannot become another's.
func killMembers(leader *os.File) error {
	if err := Signal(leader, unix.SIGSTOP); err != nil {
		return err
	}
	err := killFollowers(leader)
	return errors.Join(err, Signal(leader, unix.SIGKILL))
}

// killFollowers kills the members of a group whose leader is stopped.
func killFollowers(leader *os.File) error {
	group, err := procstat.PIDOf(leader)
	if err != nil {
		return err
	}
	for range killRounds {
		if killed, err := killOthers(group); err != nil || !killed {
			return err
		}
	}
	return nil
}

// killOthers kills the members of a group but for its leader and zombies.
func killOthers(group int) (killed bool, err error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return false, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return false, err
	}

	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == group || !isMember(pid, group) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has been reaped
		}
		// The descriptor's process may be another one than was looked at before.
		if isMember(pid, group) && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
			killed = true
		}
		unix.Close(fd)
	}
	return killed, nil
}

func isMember(pid, group int) bool {
	s, err := procstat.Read(pid)
	return err == nil && s.Group == group && s.State != 'Z'
}

func ifAlive(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
