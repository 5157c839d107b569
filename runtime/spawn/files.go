package spawn

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// RaiseFiles lets this process have as many descriptors open as a start may
// need, if it may: a plan has one for each mount. It goes past the Go runtime,
// which gives programs that are executed from here the limit of before.
func RaiseFiles() {
	const enough = 1 << 20
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil || now.Cur >= enough {
		return
	}
	limit := unix.Rlimit{Cur: enough, Max: max(now.Max, enough)}
	_, _, _ = unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
}
