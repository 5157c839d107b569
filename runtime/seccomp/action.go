package seccomp

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxErrno is the largest errno of the kernel.
const maxErrno = 4095

// action is what a program returns: SECCOMP_RET_* and its data.
type action uint32

const (
	killThread action = unix.SECCOMP_RET_KILL_THREAD
	notify     action = unix.SECCOMP_RET_USER_NOTIF
	noSuchCall action = unix.SECCOMP_RET_ERRNO | action(unix.ENOSYS)
)

// newAction encodes an action of a profile.
func newAction(name specs.LinuxSeccompAction, errno *uint) (action, error) {
	var a action
	switch name {
	case specs.ActKill, specs.ActKillThread:
		a = killThread
	case specs.ActKillProcess:
		a = unix.SECCOMP_RET_KILL_PROCESS
	case specs.ActTrap:
		a = unix.SECCOMP_RET_TRAP
	case specs.ActLog:
		a = unix.SECCOMP_RET_LOG
	case specs.ActAllow:
		a = unix.SECCOMP_RET_ALLOW
	case specs.ActErrno, specs.ActTrace:
		return withErrno(name, errno)
	case specs.ActNotify:
		a = notify
	default:
		return 0, fmt.Errorf("%w: action %q", ErrInvalid, name)
	}

	if errno != nil {
		return 0, fmt.Errorf("%w: action %s takes no error number", ErrInvalid, name)
	}
	return a, nil
}

func withErrno(name specs.LinuxSeccompAction, errno *uint) (action, error) {
	n := uint(unix.EPERM)
	if errno != nil {
		n = *errno
	}
	a, limit := action(unix.SECCOMP_RET_ERRNO), uint(maxErrno)
	if name == specs.ActTrace {
		a, limit = unix.SECCOMP_RET_TRACE, unix.SECCOMP_RET_DATA
	}
	if n > limit {
		return 0, fmt.Errorf("%w: action %s with error number %d", ErrInvalid, name, n)
	}
	return a | action(n), nil
}

// permits reports whether the call is made, perhaps after a notification.
func (a action) permits() bool {
	switch a & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE:
		return true
	}
	return false
}

// stricterThan follows the kernel's order of the actions of several filters.
func (a action) stricterThan(b action) bool {
	return int32(a&unix.SECCOMP_RET_ACTION_FULL) < int32(b&unix.SECCOMP_RET_ACTION_FULL)
}

// newFlags encodes the flags of a profile for seccomp(2).
func newFlags(names []specs.LinuxSeccompFlag) (uint32, error) {
	if names == nil {
		// Without flags in the profile the container is not slowed down.
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}

	var flags uint32
	for _, name := range names {
		switch name {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC":
			// The process has one thread when the filter is loaded.
		case specs.LinuxSeccompFlagWaitKillableRecv:
			// For listeners only, see [listen]; the kernel refuses it without one.
		default:
			return 0, fmt.Errorf("%w: flag %q", ErrInvalid, name)
		}
	}

	return flags, nil
}
