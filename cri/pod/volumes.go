package pod

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"crisp/cri/spec"
	"crisp/runtime/rootpath"
)

// makeVolume makes the folder of an anonymous volume and copies into it what
// the image has at the volume's path. The content is the image's and thus
// hostile: it is read below the root only, and links are copied, not followed.
func makeVolume(root *os.File, v spec.Volume) error {
	if err := os.MkdirAll(v.Source, 0o755); err != nil {
		return err
	}
	from, err := rootpath.Open(root, v.Path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Open(v.Source)
	if err != nil {
		return err
	}
	defer to.Close()
	return copyFolder(from, to)
}

// copyFolder copies the content, owner and mode of one folder into another.
func copyFolder(from, to *os.File) error {
	if err := copyOwner(from, to); err != nil {
		return err
	}
	names, err := from.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(from, to, name); err != nil {
			return fmt.Errorf("copy %s: %w", name, err)
		}
	}
	return nil
}

func copyOwner(from, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	if err := unix.Fchown(int(to.Fd()), int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Fchmod(int(to.Fd()), st.Mode&0o7777)
}

func copyEntry(from, to *os.File, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	dst := int(to.Fd())
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return err
		}
		return pair(from, to, name, unix.O_RDONLY|unix.O_DIRECTORY, unix.O_RDONLY|unix.O_DIRECTORY, copyFolder)
	case unix.S_IFREG:
		return pair(from, to, name, unix.O_RDONLY, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, func(f, t *os.File) error {
			if _, err := io.Copy(t, f); err != nil {
				return err
			}
			return copyOwner(f, t)
		})
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(from.Fd()), name, buf)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), dst, name); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	return unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
}

// pair opens one name in two folders and hands both files to copy.
func pair(from, to *os.File, name string, readFlags, writeFlags int, copy func(f, t *os.File) error) error {
	const safe = unix.O_CLOEXEC | unix.O_NOFOLLOW
	src, err := unix.Openat(int(from.Fd()), name, readFlags|safe, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(src), name)
	defer f.Close()
	dst, err := unix.Openat(int(to.Fd()), name, writeFlags|safe, 0o600)
	if err != nil {
		return err
	}
	t := os.NewFile(uintptr(dst), name)
	defer t.Close()
	return copy(f, t)
}
