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

// Status returns the exit status of a process with any parent, given its pidfd.
// It is known from Linux 6.15 on, and before as long as the parent has not
// reaped the process.
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

// Defunct returns the exit status of a process that has released its resources
// in exit(2) and still is not a zombie. The init of a PID namespace stays in
// that state as long as some parent has not reaped its child in the namespace,
// which may be forever, and its exit is not reported meanwhile.
func Defunct(pid, pidfd int) (status unix.WaitStatus, defunct bool) {
	if _, err := os.Readlink(nsPath(pid, "mnt")); !errors.Is(err, fs.ErrNotExist) {
		return 0, false // the usual case
	}
	const exiting = 0x4 // PF_EXITING
	s, err := readStat(pid)
	if err != nil || s.flags&exiting == 0 {
		return 0, false
	}
	// Which of the two sleep states it is differs between kernels.
	if s.state != "S" && s.state != "I" {
		return 0, false
	}
	return s.exit, legible(pid) && unreaped(pidfd)
}

func nsPath(pid int, name string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, name) }

// legible reports whether this process may read the exit status in /proc;
// otherwise the kernel shows zero.
func legible(pid int) bool {
	_, err := os.Readlink(nsPath(pid, "user"))
	return err == nil
}

// unreaped reports that the PID still was the process's when /proc was read.
func unreaped(pidfd int) bool { return unix.PidfdSendSignal(pidfd, 0, nil, 0) == nil }

// stat holds some fields of /proc/PID/stat.
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

	// The second field is the command in parentheses and may contain anything.
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
