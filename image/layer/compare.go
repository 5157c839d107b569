package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

// Compare completes the stage and compares it with the published layer of the
// same chain ID. It returns the first difference, "" if there is none.
func (st *Stage) Compare(ctx context.Context) (difference string, err error) {
	if err := st.complete(ctx); err != nil {
		return "", err
	}
	tree, err := rootpath.Open(st.store.dir, filepath.Join(st.rec.ChainID.Encoded(), treeDir), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return "", fmt.Errorf("compare layer: %w", err)
	}
	defer tree.Close()

	c := comparison{ctx: ctx, implied: map[string]bool{}, a: make([]byte, copyBuffer), b: make([]byte, copyBuffer)}
	for _, name := range st.implied {
		c.implied[name] = true
	}

	err = c.dirs(".", tree, st.root)
	if errors.Is(err, errDiffers) {
		return err.Error(), nil
	}
	if err != nil {
		return "", fmt.Errorf("compare layer: %w", err)
	}

	return "", nil
}

// Replace replaces the published layer by the stage, which was compared. It
// returns the name in the temporary directory under which the old layer, with its
// mount targets, is to be removed.
//
// Preconditions: the layer is not in use, and will not be until Replace returns.
func (st *Stage) Replace() (gone string, err error) {
	s := st.store
	if gone, err = s.Detach(st.rec.ChainID); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return gone, st.publishLocked()
}

// errDiffers ends a comparison.
var errDiffers = errors.New("layer differs from what was unpacked")

// comparison compares two trees: a is the layer, b what it should be.
type comparison struct {
	ctx context.Context // of the one call
	// implied directories have the time of their unpacking.
	implied map[string]bool
	a, b    []byte // buffers
}

// dirs compares two directories and everything below them.
func (c *comparison) dirs(path string, a, b *os.File) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	if err := c.attributes(path, a, b); err != nil {
		return err
	}

	names, err := sortedNames(a)
	if err != nil {
		return err
	}

	want, err := sortedNames(b)
	if err != nil {
		return err
	}

	if !slices.Equal(names, want) {
		return fmt.Errorf("%w: directory %q: entries differ (%d, want %d)", errDiffers, path, len(names), len(want))
	}
	for _, name := range names {
		if err := c.entries(filepath.Join(path, name), name, a, b); err != nil {
			return err
		}
	}

	return nil
}

func sortedNames(dir *os.File) ([]string, error) {
	names, err := dir.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// entries compares the files of the same name in two directories.
func (c *comparison) entries(path, name string, a, b *os.File) error {
	var sa, sb unix.Stat_t
	err := unix.Fstatat(int(a.Fd()), name, &sa, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = unix.Fstatat(int(b.Fd()), name, &sb, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}

	if err := c.sameStat(path, &sa, &sb); err != nil {
		return err
	}
	flags := unix.O_RDONLY
	switch sa.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return c.links(path, name, a, b)
	case unix.S_IFDIR:
		flags |= unix.O_DIRECTORY
	case unix.S_IFREG:
	default: // a device or FIFO has no content
		return nil
	}

	fa, err := openEntry(a, name, flags)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	defer fa.Close()

	fb, err := openEntry(b, name, flags)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	defer fb.Close()

	if flags&unix.O_DIRECTORY != 0 {
		return c.dirs(path, fa, fb)
	}
	if err := c.attributes(path, fa, fb); err != nil {
		return err
	}
	return c.content(path, fa, fb)
}

func openEntry(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (c *comparison) links(path, name string, a, b *os.File) error {
	n, err := unix.Readlinkat(int(a.Fd()), name, c.a)
	m, err2 := unix.Readlinkat(int(b.Fd()), name, c.b)
	if err := errors.Join(err, err2); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if !bytes.Equal(c.a[:n], c.b[:m]) {
		return fmt.Errorf("%w: target of link %q differs", errDiffers, path)
	}
	return nil
}

// sameStat compares inodes. The size of a directory depends on the file system,
// so it is not compared.
func (c *comparison) sameStat(path string, a, b *unix.Stat_t) error {
	isDir := b.Mode&unix.S_IFMT == unix.S_IFDIR
	isWhiteout := b.Mode&unix.S_IFMT == unix.S_IFCHR && b.Rdev == 0 // has the time of its unpacking
	switch {
	case a.Mode != b.Mode:
		return fmt.Errorf("%w: %q has mode %o, want %o", errDiffers, path, a.Mode, b.Mode)
	case a.Uid != b.Uid || a.Gid != b.Gid:
		return fmt.Errorf("%w: %q belongs to %d:%d, want %d:%d", errDiffers, path, a.Uid, a.Gid, b.Uid, b.Gid)
	case a.Mtim != b.Mtim && !c.implied[path] && !isWhiteout:
		return fmt.Errorf("%w: modification time of %q differs", errDiffers, path)
	case a.Rdev != b.Rdev:
		return fmt.Errorf("%w: device number of %q differs", errDiffers, path)
	case !isDir && (a.Size != b.Size || a.Nlink != b.Nlink):
		return fmt.Errorf("%w: %q has %d bytes and %d links, want %d and %d", errDiffers, path, a.Size, a.Nlink, b.Size, b.Nlink)
	}

	return nil
}

// attributes compares inodes and their extended attributes.
func (c *comparison) attributes(path string, a, b *os.File) error {
	var sa, sb unix.Stat_t
	if err := errors.Join(unix.Fstat(int(a.Fd()), &sa), unix.Fstat(int(b.Fd()), &sb)); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}

	if err := c.sameStat(path, &sa, &sb); err != nil {
		return err
	}
	xa, err := xattrsOf(a)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}

	xb, err := xattrsOf(b)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}

	if !slices.Equal(xa, xb) {
		return fmt.Errorf("%w: %q has extended attributes %q, want %q", errDiffers, path, xa, xb)
	}
	return nil
}

// xattrsOf lists the extended attributes that unpacking sets, with their values.
func xattrsOf(f *os.File) (list []string, err error) {
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(int(f.Fd()), names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}

	value := make([]byte, maxXattr+1)
	for name := range bytes.SplitSeq(names[:n], []byte{0}) {
		key := string(name)
		if key != opaqueXattr && !allowedXattr(key) {
			continue
		}

		n, err := unix.Fgetxattr(int(f.Fd()), key, value)
		if err != nil {
			return nil, err
		}
		list = append(list, key+"="+string(value[:n]))
	}

	slices.Sort(list)
	return list, nil
}

// content compares two files, a as it is on disk.
func (c *comparison) content(path string, a, b *os.File) error {
	forget(a)
	defer forget(a)
	for {
		n, err := io.ReadFull(a, c.a)
		m, berr := io.ReadFull(b, c.b)
		if !bytes.Equal(c.a[:n], c.b[:m]) {
			return fmt.Errorf("%w: content of file %q differs", errDiffers, path)
		}

		for _, err := range []error{err, berr} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("read %q: %w", path, err)
			}
		}

		if err != nil || berr != nil {
			return nil
		}
	}
}

// forget drops the clean pages of a file from the page cache, so that it is read
// from the disk.
func forget(f *os.File) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // only advice
}
