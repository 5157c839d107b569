package rootfs

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crisp/runtime/thread"
)

// inPrivateNamespace runs f in a copy of the mount namespace that propagates
// nothing to others and ends with f.
func inPrivateNamespace(f func() error) error {
	return thread.Apart(unix.CLONE_NEWNS|unix.CLONE_FS, func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		return f()
	})
}
