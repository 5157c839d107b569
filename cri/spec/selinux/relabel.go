package selinux

import (
	"context"
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
	// maxDepth bounds the directories within each other that are relabelled.
	maxDepth = 256
)

// neverRelabelled are files and directories of the node's own, which it could not
// use any more.
var neverRelabelled = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/etc/ssl", "/home", "/lib", "/lib64",
	"/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib",
	"/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/libx32", "/usr/local", "/usr/sbin", "/usr/share", "/var", "/var/lib",
	"/var/log", "/var/tmp",
}

// ofNode reports whether a path is one of [neverRelabelled], or where a link
// of that name leads, as /home leads to /var/home on some systems.
func ofNode(path string) bool {
	path = filepath.Clean(path)
	return slices.ContainsFunc(neverRelabelled, func(name string) bool {
		real, err := filepath.EvalSymlinks(name)
		return path == name || err == nil && path == real
	})
}

// LabelFile labels a file; an empty label leaves it as it is, and so does a
// file system that has none.
func LabelFile(path, label string) error {
	if label == "" {
		return nil
	}
	if err := writeLabel(path, label); !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// writeLabel is [LabelFile] that returns ENOTSUP where the file system has no
// labels. A file that has the label already is not written to.
func writeLabel(path, label string) error {
	have := make([]byte, maxLabel)
	if n, err := unix.Getxattr(path, labelAttr, have); err == nil && trimNUL(have[:n]) == label {
		return nil
	}
	err := unix.Setxattr(path, labelAttr, []byte(label), 0)
	if err != nil && !errors.Is(err, unix.EROFS) {
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

// LabelTree labels a volume and all that is in it. Its path was resolved before:
// a link on it was put there since, to have something else labelled. What
// belongs to the node, and a tree of too many levels, is [ErrNotRelabelled].
func LabelTree(ctx context.Context, path, label string) error {
	if label == "" {
		return nil
	}
	if ofNode(path) {
		return fmt.Errorf("%w: %s belongs to the node", ErrNotRelabelled, path)
	}

	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
	if err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}

	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return relabelTree(ctx, f, label, 0)
}

// relabelTree goes by descriptors: what is below may be a container's to change.
func relabelTree(ctx context.Context, f *os.File, label string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: %s has more than %d directories within each other", ErrNotRelabelled, f.Name(), maxDepth)
	}
	err := writeLabel("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), label)
	if errors.Is(err, unix.ENOTSUP) {
		// Labels are a matter of the whole file system: what is below has none
		// either, and on a network's it may be much.
		return nil
	}
	if err != nil {
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
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("relabel %s: %w", f.Name(), err)
		}
		names, err := dir.Readdirnames(atOnce)
		for _, name := range names {
			if err := relabelEntry(ctx, dir, name, label, depth+1); err != nil {
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

func relabelEntry(ctx context.Context, dir *os.File, name, label string, depth int) error {
	f, err := rootpath.Open(dir, name, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, os.ErrNotExist) {
		return nil // gone meanwhile
	}
	if err != nil {
		return fmt.Errorf("relabel %s in %s: %w", name, dir.Name(), err)
	}
	defer f.Close()
	return relabelTree(ctx, f, label, depth)
}
