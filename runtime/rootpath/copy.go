package rootpath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// maxCopyDepth bounds the descriptors that copying takes, two a level.
	maxCopyDepth = 256
	copyBatch    = 1000
	copyPiece    = 8 << 20
)

// CopyTree copies one folder into another: its content, owner and mode, and all
// that is below it. Links are copied, not followed, whoever changes the source
// meanwhile. Owners become what owner makes of them. Folders nested deeper than
// a bound are [ErrTooDeep].
func CopyTree(ctx context.Context, from, to *os.File, owner func(uid, gid uint32) (int, int)) error {
	c := copying{ctx: ctx, own: owner}
	return c.folder(from, to)
}

// copying is the copy of one tree.
type copying struct {
	ctx   context.Context // of one copy, which ends with the call
	own   func(uid, gid uint32) (int, int)
	depth int
}

// folder copies the content, owner and mode of one folder into another.
func (c *copying) folder(from, to *os.File) error {
	if c.depth++; c.depth > maxCopyDepth {
		return fmt.Errorf("copy more than %d folders within each other: %w", maxCopyDepth, ErrTooDeep)
	}
	defer func() { c.depth-- }()
	if err := c.owner(from, to); err != nil {
		return err
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
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// file copies the content, owner and mode of a regular file. Holes stay holes:
// a sparse file of an image's, which takes nothing, must not fill the disk.
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
	return c.owner(from, to)
}

// piece copies what lies between two offsets.
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

func (c *copying) owner(from, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	uid, gid := c.own(st.Uid, st.Gid)
	if err := unix.Fchown(int(to.Fd()), uid, gid); err != nil {
		return err
	}
	return unix.Fchmod(int(to.Fd()), st.Mode&0o7777)
}

func (c *copying) entry(from, to *os.File, name string) error {
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
		return pair(from, to, name, unix.O_RDONLY|unix.O_DIRECTORY, unix.O_RDONLY|unix.O_DIRECTORY, c.folder)
	case unix.S_IFREG:
		return pair(from, to, name, unix.O_RDONLY, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, c.file)
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
	uid, gid := c.own(st.Uid, st.Gid)
	return unix.Fchownat(dst, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
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
