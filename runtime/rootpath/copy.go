package rootpath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxCopyDepth bounds the descriptors of a copy, two per level.
	maxCopyDepth = 256
	copyBatch    = 1000
	copyPiece    = 8 << 20
	// maxLinkedPaths bounds the paths, in bytes, that a copy remembers of files
	// with several names: a source may have arbitrarily long ones.
	maxLinkedPaths = 4 << 20
)

// CopyTree copies one directory into another: its content, owner, mode, times
// and extended attributes, recursively. Symbolic links are copied, not
// followed, even if the source is changed meanwhile. A file with several names
// has them in the copy, too, up to a bound; beyond it, and for very long paths,
// each name becomes a separate file. Holes stay holes.
//
// Owners are translated by owner, also those in access control lists and file
// capabilities. Attributes that belong to the node, such as labels and those of
// overlayfs, are not copied, nor those that the file system of the copy does
// not support. Directories nested deeper than a bound are [ErrTooDeep].
func CopyTree(ctx context.Context, from, to *os.File, owner func(uid, gid uint32) (int, int)) error {
	c := copying{ctx: ctx, own: owner, top: to, linked: map[fileID]copied{}}
	return c.directory(from, to)
}

// copying is the copy of one tree.
type copying struct {
	ctx context.Context // of one copy, which ends with the call
	own func(uid, gid uint32) (int, int)

	// top is the root of the copy, path the current path in it.
	top  *os.File
	path []string
	// linked has the paths of copied files with further names.
	linked map[fileID]copied
	// linkedPaths is the total length of the paths in linked.
	linkedPaths int
}

// copied is the copy of a file that has several names.
type copied struct {
	path string
	// left is the maximum number of names still to come.
	left uint64
}

// directory copies the content of one directory into another, then its
// attributes: creating files in a directory changes its times.
func (c *copying) directory(from, to *os.File) error {
	if len(c.path) >= maxCopyDepth {
		return fmt.Errorf("copy more than %d nested directories: %w", maxCopyDepth, ErrTooDeep)
	}

	for {
		names, err := from.Readdirnames(copyBatch)
		for _, name := range names {
			if c.ctx.Err() != nil {
				return context.Cause(c.ctx)
			}
			if err := c.entry(from, to, name); err != nil {
				return fmt.Errorf("copy %.100q: %w", name, err)
			}
		}

		if errors.Is(err, io.EOF) {
			return c.attributes(from, to)
		}
		if err != nil {
			return err
		}
	}
}

// file copies a regular file. Holes stay holes: a sparse file of an image must
// not fill the disk.
func (c *copying) file(from, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}

	for at := int64(0); at < st.Size; {
		data, err := from.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // the rest is a hole
		}
		if err != nil {
			return err
		}

		if at, err = from.Seek(data, unix.SEEK_HOLE); err != nil {
			return err
		}
		if err := c.piece(from, to, data, at); err != nil {
			return err
		}
	}

	if err := to.Truncate(st.Size); err != nil {
		return err
	}
	return c.attributes(from, to)
}

// piece copies the data between two offsets.
func (c *copying) piece(from, to *os.File, start, end int64) error {
	for _, f := range []*os.File{from, to} {
		if _, err := f.Seek(start, io.SeekStart); err != nil {
			return err
		}
	}

	for left := end - start; left > 0; left -= copyPiece {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		if _, err := io.CopyN(to, from, min(left, copyPiece)); err != nil {
			return err
		}
	}

	return nil
}

func (c *copying) entry(from, to *os.File, name string) error {
	c.path = append(c.path, name)
	defer func() { c.path = c.path[:len(c.path)-1] }()

	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}

	if several := st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR; several {
		done, err := c.link(to, name, &st)
		if done || err != nil {
			return err
		}
	}

	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(int(to.Fd()), name, 0o700); err != nil {
			return err
		}
		return pair(from, to, name, unix.O_RDONLY|unix.O_DIRECTORY, unix.O_RDONLY|unix.O_DIRECTORY, c.directory)
	case unix.S_IFREG:
		return pair(from, to, name, unix.O_RDONLY, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, c.file)
	default:
		return c.node(from, to, name, &st)
	}
}

// link links name to an earlier copy of the same file, if there is one.
// Otherwise it remembers the copy for the next name.
func (c *copying) link(to *os.File, name string, st *unix.Stat_t) (done bool, err error) {
	id := fileID{st.Dev, st.Ino}
	first, known := c.linked[id]
	if !known {
		c.remember(id, st)
		return false, nil
	}

	// No link is followed, as the copy of a link may be this file.
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	f, err := openat2(c.top, first.path, how)
	if err != nil {
		return false, err
	}
	defer f.Close()

	if err := unix.Linkat(int(f.Fd()), "", int(to.Fd()), name, unix.AT_EMPTY_PATH); err != nil {
		return false, err
	}

	if first.left--; first.left == 0 {
		delete(c.linked, id)
		c.linkedPaths -= len(first.path)
	} else {
		c.linked[id] = first
	}

	return true, nil
}

// remember records the path of the copy of a file with further names, if it is
// within the bounds and PATH_MAX.
func (c *copying) remember(id fileID, st *unix.Stat_t) {
	path := strings.Join(c.path, "/")
	if len(path) >= unix.PathMax || c.linkedPaths+len(path) > maxLinkedPaths || len(c.linked) == maxLinked {
		return
	}
	c.linked[id] = copied{path: path, left: uint64(st.Nlink) - 1}
	c.linkedPaths += len(path)
}

// node copies what is neither a directory nor a regular file.
func (c *copying) node(from, to *os.File, name string, st *unix.Stat_t) error {
	dst, link := int(to.Fd()), st.Mode&unix.S_IFMT == unix.S_IFLNK
	if link {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(from.Fd()), name, buf)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), dst, name); err != nil {
			return err
		}
	} else if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
		return err
	}

	uid, gid := c.own(st.Uid, st.Gid)
	if err := unix.Fchownat(dst, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}

	if !link {
		// The name was just created here and is not a link.
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}

	return unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// pair opens one name in two directories and passes both files to copy.
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
