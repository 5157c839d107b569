package pod

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

const (
	labelAttr = "security.selinux"
	// maxLabel is room for any label.
	maxLabel = 4096
	// maxDepth bounds the folders within each other that are relabelled.
	maxDepth = 256
)

// neverRelabelled are folders of the node's own, which it could not use any more.
var neverRelabelled = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root", "/run",
	"/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/share", "/var", "/var/lib", "/var/log", "/var/tmp",
}

// setLabel labels a file; an empty label leaves it as it is, and so does a
// file system that has none. One that has the label already is not written to.
func setLabel(path, label string) error {
	if label == "" {
		return nil
	}
	have := make([]byte, maxLabel)
	if n, err := unix.Getxattr(path, labelAttr, have); err == nil && trimNUL(have[:n]) == label {
		return nil
	}
	err := unix.Setxattr(path, labelAttr, []byte(label), 0)
	if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("label %s as %s: %w", path, label, err)
	}
	return nil
}

func trimNUL(label []byte) string {
	if n := len(label); n > 0 && label[n-1] == 0 {
		label = label[:n-1]
	}
	return string(label)
}

// relabel labels a volume and all that is in it. Its path was resolved before:
// a link on it was put there since, by somebody who wants something else
// labelled.
func relabel(path, label string) error {
	if label == "" {
		return nil
	}
	if slices.Contains(neverRelabelled, filepath.Clean(path)) {
		return fmt.Errorf("%w: relabel %s: it is the node's", ErrInvalid, path)
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
	if err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return relabelTree(f, label, 0)
}

// relabelTree goes by descriptors: what is below may be a container's to change.
func relabelTree(f *os.File, label string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: relabel %s: more than %d folders within each other", ErrInvalid, f.Name(), maxDepth)
	}
	if err := setLabel("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), label); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	dir, err := rootpath.Open(f, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("relabel %s: %w", f.Name(), err)
	}
	defer dir.Close()
	const atOnce = 1000
	for {
		names, err := dir.Readdirnames(atOnce)
		for _, name := range names {
			if err := relabelEntry(dir, name, label, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("relabel %s: %w", f.Name(), err)
		}
	}
}

func relabelEntry(dir *os.File, name, label string, depth int) error {
	f, err := rootpath.Open(dir, name, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, os.ErrNotExist) {
		return nil // gone meanwhile
	}
	if err != nil {
		return fmt.Errorf("relabel %s in %s: %w", name, dir.Name(), err)
	}
	defer f.Close()
	return relabelTree(f, label, depth)
}
