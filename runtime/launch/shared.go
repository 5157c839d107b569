package launch

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/thread"
)

// OpenShared opens the root of the file system that a pod's containers have as /dev/shm, given
// the pod's mount namespace. Nothing that a container has mounted is in the way.
func OpenShared(mounts *os.File) (shared *os.File, err error) {
	err = thread.Apart(unix.CLONE_FS, func() error {
		if err := unix.Setns(int(mounts.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		shared, err = os.OpenFile(plan.SharedIn, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open /dev/shm of a pod: %w", err)
	}
	return shared, nil
}
