package orphan

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"crisp/runtime/procstat"
)

// Status returns the exit status of a process with any parent, given its pidfd.
// It is known from Linux 6.15 on, and before as long as the parent has not
// reaped the process.
func Status(pid, pidfd int) (status unix.WaitStatus, known bool) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
		return unix.WaitStatus(info.Exit_code), true
	}
	s, err := procstat.Read(pid)
	if err != nil || s.State != 'Z' {
		return 0, false
	}
	return s.Exit, legible(pid) && unreaped(pidfd)
}

// Defunct returns the exit status of a process that has released its resources
// in exit(2) and still is not a zombie. The init of a PID namespace stays in
// that state as long as some parent has not reaped its child in the namespace,
// which may be forever, and its exit is not reported meanwhile.
func Defunct(pid, pidfd int) (status unix.WaitStatus, defunct bool) {
	s, waits := waitsInExit(pid)
	if !waits {
		return 0, false
	}
	return s.Exit, legible(pid) && unreaped(pidfd)
}

// waitsInExit reports whether a thread sleeps in exit(2) and has released its resources.
func waitsInExit(tid int) (s procstat.Stat, waits bool) {
	if _, err := os.Readlink(nsPath(tid, "mnt")); !errors.Is(err, fs.ErrNotExist) {
		return s, false // the usual case
	}
	s, err := procstat.Read(tid)
	if err != nil || !s.Exiting() {
		return s, false
	}
	// Which of the two sleep states it is differs between kernels.
	return s, s.State == 'S' || s.State == 'I'
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
