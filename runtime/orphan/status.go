package orphan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Status tells how a process ended whose parent may be anybody, given its
// pidfd. It is known from Linux 6.15 on, and on older ones as long as the
// parent has not reaped it.
func Status(pid, pidfd int) (status unix.WaitStatus, known bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
		return unix.WaitStatus(info.Exit_code), true
	}
	s, err := readStat(pid)
	if err != nil || s.state != "Z" {
		return 0, false
	}
	return s.exit, legible(pid) && unreaped(pidfd)
}

// Spent tells how a process ended that has given up all that it had and still
// is not a zombie. The first process of a PID namespace is like that as long
// as anybody has not reaped a child of his in the namespace, which may be for
// ever: its own end then is not told to anyone.
func Spent(pid, pidfd int) (status unix.WaitStatus, spent bool) {
	if _, err := os.Readlink(nsPath(pid, "mnt")); !errors.Is(err, fs.ErrNotExist) {
		return 0, false // the usual case
	}
	const exiting = 0x4 // PF_EXITING
	s, err := readStat(pid)
	if err != nil || s.flags&exiting == 0 {
		return 0, false
	}
	// Which of the two sleeps it is differs between kernels.
	if s.state != "S" && s.state != "I" {
		return 0, false
	}
	return s.exit, legible(pid) && unreaped(pidfd)
}

func nsPath(pid int, name string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, name) }

// legible says whether the kernel shows us how a process ended; to others it
// shows a zero.
func legible(pid int) bool {
	_, err := os.Readlink(nsPath(pid, "user"))
	return err == nil
}

// unreaped says that the pid was the process's when it was read from /proc.
func unreaped(pidfd int) bool { return unix.PidfdSendSignal(pidfd, 0, nil, 0) == nil }

// stat is some of what /proc says of a process.
type stat struct {
	state string
	flags uint64
	exit  unix.WaitStatus
}

func readStat(pid int) (s stat, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return s, err
	}

	// The second field is the command in parentheses and may hold anything.
	// Fields are counted from 1, and two are cut off.
	const state, flags, exit, cutOff = 3, 9, 52, 3
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(f) <= exit-cutOff {
		return s, fmt.Errorf("/proc/%d/stat has only %d fields", pid, len(f)+2)
	}

	s.state = f[state-cutOff]
	if s.flags, err = strconv.ParseUint(f[flags-cutOff], 10, 64); err != nil {
		return s, fmt.Errorf("/proc/%d/stat: flags: %w", pid, err)
	}

	code, err := strconv.ParseUint(f[exit-cutOff], 10, 32)
	if err != nil {
		return s, fmt.Errorf("/proc/%d/stat: exit code: %w", pid, err)
	}
	s.exit = unix.WaitStatus(code)
	return s, nil
}
