package spawn

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// RaiseFiles raises this process's limit on open files to what a start may
// need, if permitted: a plan has a descriptor per mount. It bypasses the Go
// runtime, which restores the original limit in programs executed from here.
func RaiseFiles() {
	const enough = 1 << 20
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil || now.Cur >= enough {
		return
	}
	limit := unix.Rlimit{Cur: enough, Max: max(now.Max, enough)}
	_, _, _ = unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
}
