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

// dirCache keeps directories open. It is dropped whole when it is full, and
// whenever something is removed that a path in it may lead through.
type dirCache struct {
	byName map[string]*os.File
	// settled returns when nobody else uses the directories any more.
	settled func() error
}

// cached returns a directory that is open.
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

// add keeps an open directory.
func (c *dirCache) add(name string, f *os.File) error {
	if len(c.byName) == cachedDirs {
		if err := c.settled(); err != nil {
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

// close closes the directories, which nobody else may be using.
func (c *dirCache) close() {
	for _, f := range c.byName {
		f.Close()
	}
	c.byName = nil
}

const (
	// maxNames and maxNamesMuch bound what the directories of a layer take in
	// memory until it is complete, in bytes: 50,000 of them, or 700,000.
	maxNames     = 8 << 20
	maxNamesMuch = 112 << 20
	// dirCost is what a directory takes besides its name.
	dirCost = 96
)

// dirNames are the directories of a layer that are looked at once more when
// all entries are there.
type dirNames struct {
	// implied are those that the archive does not list but puts something
	// into: their attributes are those of the layer below.
	implied map[string]bool
	// listed are those whose times are set at the end.
	listed map[string]time.Time

	size, max int
	tooLarge  error
}

func newDirNames(much bool) dirNames {
	d := dirNames{implied: map[string]bool{".": true}, listed: map[string]time.Time{}, max: maxNames, tooLarge: ErrMuch}
	if much {
		d.max, d.tooLarge = maxNamesMuch, ErrTooLarge
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
		return fmt.Errorf("%w: names of directories of more than %d bytes", d.tooLarge, d.max)
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

// parent opens the directory name and makes it, and its parents, if the
// archive did not. Links on the way are followed inside the layer.
func (u *unpacker) parent(name string) (*os.File, error) {
	if dir, ok := u.dirs.cached(u.root, name); ok {
		return dir, nil
	}
	if err := u.settled(); err != nil {
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
		// A link that leads nowhere yet.
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

// chmodDir undoes the umask's part in a directory made a moment ago.
func chmodDir(dir *os.File, base string) error {
	f, err := openDir(dir, base)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fchmod(int(f.Fd()), impliedPerm)
}

// openDir opens the directory base of dir; a link is not followed.
func openDir(dir *os.File, base string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), base), nil
}

// measureTree adds up what is at base of dir. Files with several names, whose
// space is not set free with one, are left out. So are directories: they are
// measured at the end, when they have their final size.
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
		err = fmt.Errorf("%w: too deep a tree is replaced", ErrInvalid)
	}
	return sum, err
}
