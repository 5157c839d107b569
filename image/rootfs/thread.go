package rootfs

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread that has unshared flags, and ends the thread after
// f.
func onThread(flags int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread never ends: /proc/PID would show what f did.
			// While this goroutine waits on it, the next one gets another.
			err := onThread(flags, f)
			runtime.UnlockOSThread()
			done <- err
			return
		}

		// Not unlocked: so the thread ends with the goroutine.
		if err := unix.Unshare(flags); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		done <- f()
	}()

	return <-done
}

// inPrivateNamespace runs f in a copy of the mount namespace that propagates
// nothing to others and ends with f.
func inPrivateNamespace(f func() error) error {
	return onThread(unix.CLONE_NEWNS|unix.CLONE_FS, func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		return f()
	})
}
