package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// calls are attempts to reach parts of the kernel that a container must not
// use. The arguments are invalid, or change nothing: the test is whether
// permissions or the filter refuse them first.
func calls() []attempt {
	raw := func(name string, number uintptr, args ...uintptr) attempt {
		a := append(args, make([]uintptr, 6-len(args))...)
		return attempt{name, func(string) string {
			result, _, err := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
			if err == 0 {
				return fmt.Sprint("success: ", result)
			}
			return reached(err)
		}}
	}

	return []attempt{
		raw("io_uring", unix.SYS_IO_URING_SETUP, 1),
		raw("bpf", unix.SYS_BPF, 5),
		{"perf_event_open", func(string) string {
			// The whole machine's first CPU.
			attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: unix.PERF_ATTR_SIZE_VER0}
			fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if err == nil {
				unix.Close(fd)
			}
			return reached(err)
		}},
		raw("init_module", unix.SYS_INIT_MODULE),
		raw("finit_module", unix.SYS_FINIT_MODULE, ^uintptr(0)),
		raw("kexec_load", unix.SYS_KEXEC_LOAD, 0, 1<<20),
		raw("swapon", unix.SYS_SWAPON),
		raw("acct", unix.SYS_ACCT, 1),
		raw("fsopen", unix.SYS_FSOPEN),
		raw("open_tree", unix.SYS_OPEN_TREE, ^uintptr(0), 0, 1),
		raw("mount_setattr", unix.SYS_MOUNT_SETATTR, ^uintptr(0)),
		{"userfaultfd", func(string) string {
			fd, _, err := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
			if err == 0 {
				unix.Close(int(fd))
				return "a descriptor"
			}
			return reached(err)
		}},
		{"new user namespace", func(string) string { return reached(unshareInChild()) }},
		{"clock", func(string) string {
			var tx unix.Timex
			if _, err := unix.ClockAdjtime(unix.CLOCK_REALTIME, &tx); err != nil {
				return ""
			}
			tx.Modes = unix.ADJ_FREQUENCY // to what it is
			_, err := unix.ClockAdjtime(unix.CLOCK_REALTIME, &tx)
			return reached(err)
		}},
		{"kernel log", func(string) string {
			_, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 1024))
			return reached(err)
		}},
	}
}

// reached reports whether a call passed permission checks and filter.
func reached(err error) string {
	for _, refusal := range []error{unix.EPERM, unix.EACCES, unix.ENOSYS} {
		if errors.Is(err, refusal) {
			return ""
		}
	}
	if err == nil {
		return "success"
	}
	return err.Error()
}
