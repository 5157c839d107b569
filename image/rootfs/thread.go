package rootfs

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread that has unshared flags and ends with f.
func onThread(flags int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread never ends, and would show what is to be gone.
			// Held here, it cannot be the next one.
			err := onThread(flags, f)
			runtime.UnlockOSThread()
			done <- err
			return
		}

		// Never unlocked: the thread ends with the goroutine.
		if err := unix.Unshare(flags); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		done <- f()
	}()

	return <-done
}

// inPrivateNamespace runs f in a copy of the mount namespace from which
// nothing gets out and which ends with f.
func inPrivateNamespace(f func() error) error {
	return onThread(unix.CLONE_NEWNS|unix.CLONE_FS, func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		return f()
	})
}
