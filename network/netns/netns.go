// Package netns pins and enters network namespaces.
//
// A pod's network namespace is created by the pod's first plan, and the daemon
// receives it as a descriptor. [Pin] bind-mounts it on a path, because CNI plugins
// require a path and because the mount survives all of crisp's processes. [Unpin]
// undoes that and is idempotent. [Do] runs a function inside a namespace.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Share makes a directory for pins a shared mount, and the directory if need be, so
// that pins propagate to other mount namespaces. ip netns does the same.
func Share(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory for namespaces: %w", err)
	}

	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("make directory for namespaces: %w", err)
	}

	shared, err := isShared(real)
	if err != nil || shared {
		return err
	}

	if err := unix.Mount(real, real, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share %s: bind it to itself: %w", real, err)
	}
	if err := unix.Mount("", real, "none", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share %s: %w", real, err)
	}
	return nil
}

// isShared reports whether mounts below a path propagate to other namespaces.
func isShared(path string) (bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return false, fmt.Errorf("look for the mount of %s: %w", path, err)
	}

	var on *mountinfo.Info
	for _, m := range mounts {
		// Of several mounts with the longest path, the last one is on top.
		if on == nil || len(m.Mountpoint) >= len(on.Mountpoint) {
			on = m
		}
	}
	return on != nil && strings.Contains(on.Optional, "shared:"), nil
}

// Pin bind-mounts the namespace on path, which must not exist, or be an empty file
// left by an interrupted Pin. Its directory must exist.
func Pin(ns *os.File, path string) error {
	if err := check(ns); err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}

	pinned, err := isPin(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin namespace: %w", err)
	}
	if pinned {
		return fmt.Errorf("pin namespace: %s: %w", path, fs.ErrExist)
	}

	target, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	defer target.Close()

	if err := unix.Mount(procFD(ns), procFD(target), "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("pin namespace: bind %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// Unpin unmounts the namespace from path and removes the file. It is not an error
// if nothing is mounted there, or path does not exist.
func Unpin(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpin namespace: unmount %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin namespace: %w", err)
	}
	return nil
}

// Open opens the network namespace pinned to path. The error is [ErrNotNamespace]
// if path is something else.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	if err := check(f); err != nil {
		return nil, errors.Join(fmt.Errorf("open namespace %s: %w", path, err), f.Close())
	}
	return f, nil
}

// Do runs fn on a thread inside the namespace. Sockets that fn opens belong to it.
// Goroutines that fn starts are not in the namespace.
func Do(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		outside, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		defer outside.Close()

		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter network namespace: %w", err)
		} else {
			err = fn()
		}

		// A thread that cannot leave stays locked, so it ends with the goroutine.
		// This is only the exception: the process's main thread would not end, but
		// be parked inside the namespace and keep it alive.
		if unix.Setns(int(outside.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()

	return <-done
}

// check returns [ErrNotNamespace] unless f is a network namespace.
func check(f *os.File) error {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return ErrNotNamespace
	}
	return nil
}

// isPin reports whether a namespace is mounted on path.
func isPin(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Type == unix.NSFS_MAGIC, nil
}

func procFD(f *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}
