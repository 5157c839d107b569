// Package thread does what changes a thread: its namespaces, its root, its users.
package thread

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Apart runs f on a thread that has unshared flags, and ends the thread after
// f.
func Apart(flags int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread never ends: /proc/PID would show what f did.
			// While this goroutine waits on it, the next one gets another.
			err := Apart(flags, f)
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
