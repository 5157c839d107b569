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
	// maxLabel is large enough for any label.
	maxLabel = 4096
	// maxDepth bounds the nesting of directories that are relabelled.
	maxDepth = 256
)

// neverRelabelled are files and directories of the node, which could no longer
// use them.
var neverRelabelled = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/etc/ssl", "/home", "/lib", "/lib64",
	"/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib",
	"/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/libx32", "/usr/local", "/usr/sbin", "/usr/share", "/var", "/var/lib",
	"/var/log", "/var/tmp",
}

// ofNode reports whether a path is one of [neverRelabelled], or the target of a
// link of that name, as /home is a link to /var/home on some systems.
func ofNode(path string) bool {
	path = filepath.Clean(path)
	return slices.ContainsFunc(neverRelabelled, func(name string) bool {
		real, err := filepath.EvalSymlinks(name)
		return path == name || err == nil && path == real
	})
}

// LabelFile labels a file; with an empty label, or on a file system without
// labels, it does nothing.
func LabelFile(path, label string) error {
	if label == "" {
		return nil
	}
	if err := writeLabel(path, label); !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// writeLabel is [LabelFile] that returns ENOTSUP if the file system has no
// labels. A file that already has the label is not changed.
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

// LabelTree labels a volume and its content. Its path was resolved before: a
// link on it was created since, as an attack, and is not followed. A path of
// the node's own, and a tree of too many levels, is [ErrNotRelabelled].
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

// relabelTree uses descriptors: a container may be able to change the tree.
func relabelTree(ctx context.Context, f *os.File, label string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: %s has more than %d levels of directories", ErrNotRelabelled, f.Name(), maxDepth)
	}
	err := writeLabel("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), label)
	if errors.Is(err, unix.ENOTSUP) {
		// Labels are supported by a whole file system or not at all: the tree
		// below has none either, and on a network file system it may be large.
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
		return nil // removed meanwhile
	}
	if err != nil {
		return fmt.Errorf("relabel %s in %s: %w", name, dir.Name(), err)
	}
	defer f.Close()
	return relabelTree(ctx, f, label, depth)
}
