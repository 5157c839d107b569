package seccomp

import (
	"errors"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel accepts the default filter and enforces it. The thread that has it
// exits with the goroutine.
func TestKernelAcceptsDefault(t *testing.T) {
	f, err := Compile(RuntimeDefault(nil))
	if err != nil {
		t.Fatal(err)
	}

	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := install(f); err != nil {
			t.Error(err)
			return
		}

		for name, tt := range map[string]struct {
			call func() error
			want error
		}{
			"getppid":     {func() error { _, err := unix.Getpgid(0); return err }, nil},
			"chroot":      {func() error { return unix.Chroot("/nonexistent") }, unix.EPERM},
			"new call":    {func() error { _, _, e := unix.Syscall(5000, 0, 0, 0); return e }, unix.ENOSYS},
			"personality": {func() error { _, _, e := unix.Syscall(unix.SYS_PERSONALITY, 0x40000, 0, 0); return e }, unix.EPERM},
			"AF_ALG":      {func() error { _, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0); return err }, unix.EPERM},
			"AF_UNIX": {func() error {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
				return errors.Join(err, unix.Close(fd))
			}, nil},
			"wide AF_ALG": {func() error {
				_, _, e := unix.Syscall(unix.SYS_SOCKET, 1<<32|unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
				return e
			}, unix.EPERM},
		} {
			if err := tt.call(); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", name, err, tt.want)
			}
		}
	}()
	<-done
}

// install sets the filter for the calling thread, without privileges.
func install(f Filter) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := make([]unix.SockFilter, len(f.Prog)/insnSize)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&prog[0])), len(f.Prog)), f.Prog)
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return errno
	}
	return nil
}
