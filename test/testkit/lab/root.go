package lab

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// takeRoot makes the root of this process the root of its mount namespace,
// which it is not in a chroot: a process that enters a namespace, as containers
// do, is at its root and not in the chroot. The namespace must be this
// process's own. If a change is needed, the program is re-executed.
func takeRoot() error {
	done := make(chan error)
	go func() {
		// The thread gets its own root, so it exits with the goroutine.
		runtime.LockOSThread()
		done <- takeRootOfThread()
	}()
	return <-done
}

func takeRootOfThread() error {
	mine, err := rootOfThread()
	if err != nil {
		return err
	}

	tree, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("copy the mounts below /: %w", err)
	}
	defer unix.Close(tree)

	namespace, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open own mount namespace: %w", err)
	}
	defer unix.Close(namespace)

	dir, err := os.Getwd()
	if err != nil {
		return err
	}

	theirs, err := rootOfNamespace(namespace)
	if err != nil || theirs == mine {
		return err
	}
	return executeBelow(tree, dir)
}

// rootOfNamespace moves the thread to the root of a mount namespace.
func rootOfNamespace(namespace int) (place, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return place{}, fmt.Errorf("unshare the root of other threads: %w", err)
	}
	if err := unix.Setns(namespace, unix.CLONE_NEWNS); err != nil {
		return place{}, fmt.Errorf("go to the root of the mount namespace: %w", err)
	}
	return rootOfThread()
}

// executeBelow mounts a tree over the root, and executes this program in it.
func executeBelow(tree int, dir string) error {
	// Otherwise the machine's root would be mounted over too.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("unshare the machine's mounts: %w", err)
	}

	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount over the root of the mount namespace: %w", err)
	}
	if err := unix.Fchdir(tree); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}

	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter %s in the new root: %w", dir, err)
	}
	return fmt.Errorf("execute again: %w", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// place is where a thread's root is.
type place struct {
	mount, inode uint64
}

func rootOfThread() (place, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_INO|unix.STATX_MNT_ID, &st); err != nil {
		return place{}, fmt.Errorf("stat /: %w", err)
	}
	return place{st.Mnt_id, st.Ino}, nil
}
