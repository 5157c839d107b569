package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"crisp/image/store"
	"crisp/runtime/rootpath"
)

// cachedDirs is how many directories stay open while a layer is unpacked.
const cachedDirs = 256

// dirCache keeps directories open. All are closed when it is full, and whenever
// something is removed that a path in it may lead through.
type dirCache struct {
	byName map[string]*os.File
	// flush returns when the crew does not use the directories any more.
	flush func() error
}

// cached returns a directory if it is open.
func (c *dirCache) cached(root *os.File, name string) (*os.File, bool) {
	if name == "." {
		return root, true
	}
	f, ok := c.byName[name]
	return f, ok
}

func (c *dirCache) open(root *os.File, name string) (*os.File, error) {
	if f, ok := c.cached(root, name); ok {
		return f, nil
	}
	f, err := rootpath.Open(root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	if err := c.add(name, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// add takes over an open directory.
func (c *dirCache) add(name string, f *os.File) error {
	if len(c.byName) == cachedDirs {
		if err := c.flush(); err != nil {
			return err
		}
		c.close()
	}
	if c.byName == nil {
		c.byName = map[string]*os.File{}
	}
	c.byName[name] = f
	return nil
}

// close closes the directories, which must not be in use.
func (c *dirCache) close() {
	for _, f := range c.byName {
		f.Close()
	}
	c.byName = nil
}

const (
	// maxNames and maxNamesLarge bound the memory for the directories of a layer
	// until it is complete, in bytes: enough for 50,000 of them, or 700,000.
	maxNames      = 8 << 20
	maxNamesLarge = 112 << 20
	// dirCost is the memory for a directory in addition to its name, in bytes.
	dirCost = 96
)

// dirNames are the directories of a layer that are visited again when all
// entries have been unpacked.
type dirNames struct {
	// implied are those that the archive does not list but puts files into: they
	// get the attributes of the layer below.
	implied map[string]bool
	// listed are those whose times are set at the end.
	listed map[string]time.Time

	size, max int
	tooLarge  error
}

func newDirNames(large bool) dirNames {
	d := dirNames{implied: map[string]bool{".": true}, listed: map[string]time.Time{}, max: maxNames, tooLarge: ErrNeedsMemory}
	if large {
		d.max, d.tooLarge = maxNamesLarge, ErrTooLarge
	}
	return d
}

// imply notes a directory that the archive does not list.
func (d *dirNames) imply(name string) error {
	d.forget(name)
	d.implied[name] = true
	return d.grow(name)
}

// list notes a directory that the archive lists, with its time.
func (d *dirNames) list(name string, mtime time.Time) error {
	d.forget(name)
	d.listed[name] = mtime
	return d.grow(name)
}

func (d *dirNames) grow(name string) error {
	if d.size += len(name) + dirCost; d.size > d.max {
		return fmt.Errorf("%w: names of directories need more than %d bytes", d.tooLarge, d.max)
	}
	return nil
}

func (d *dirNames) forget(name string) {
	_, listed := d.listed[name]
	if listed || d.implied[name] {
		d.size -= len(name) + dirCost
	}
	delete(d.listed, name)
	delete(d.implied, name)
}

// parent opens the directory name. If the archive has not listed it, it is made,
// with its parents. Links on the path are resolved inside the layer.
func (u *unpacker) parent(name string) (*os.File, error) {
	if dir, ok := u.dirs.cached(u.root, name); ok {
		return dir, nil
	}
	if err := u.flush(); err != nil {
		return nil, err
	}

	dir, err := u.dirs.open(u.root, name)
	if !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}

	up, err := u.parent(path.Dir(name))
	if err != nil {
		return nil, err
	}

	err = unix.Mkdirat(int(up.Fd()), path.Base(name), impliedPerm)
	switch {
	case err == nil:
		if err := chmodDir(up, path.Base(name)); err != nil {
			return nil, err
		}
		if err := u.dirNames.imply(name); err != nil {
			return nil, err
		}
	case errors.Is(err, unix.EEXIST):
		// A dangling link: make what it points to.
		made, err := rootpath.MkdirAll(u.root, name, impliedPerm, rootpath.Owner{})
		if err != nil {
			return nil, err
		}
		made.Close()
	default:
		return nil, err
	}

	return u.dirs.open(u.root, name)
}

// chmodDir sets the mode of a new directory regardless of the umask.
func chmodDir(dir *os.File, base string) error {
	f, err := openDir(dir, base)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fchmod(int(f.Fd()), impliedPerm)
}

// openDir opens the directory base in dir; a link is not followed.
func openDir(dir *os.File, base string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), base), nil
}

// measureTree returns the disk usage that is freed by removing base in dir. Files
// with several links are left out, since removing one link frees nothing. So are
// directories: they are only counted at the end, when they have their final size.
func measureTree(ctx context.Context, dir *os.File, base string) (store.Usage, error) {
	var sum store.Usage
	add := func(st *unix.Stat_t) {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink == 1 {
			sum = sum.Add(store.Usage{Bytes: uint64(st.Blocks) * 512, Inodes: 1})
		}
	}

	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return sum, err
	}

	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		add(&st)
		return sum, nil
	}

	sub, err := openDir(dir, base)
	if err != nil {
		return sum, err
	}
	defer sub.Close()

	complete, err := rootpath.Walk(ctx, sub, add)
	if err == nil && !complete {
		err = fmt.Errorf("%w: directory to be replaced is too deep", ErrInvalid)
	}
	return sum, err
}
