package rootpath

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth bounds the descriptors that a removal holds. What lies deeper
	// is first moved up.
	maxDepth = 64
	// maxPasses bounds how often a directory that was emptied may turn out
	// not to be empty.
	maxPasses = 16

	readBatch = 512
)

// RemoveAll removes name, one component, from dir with everything below it.
// It follows no link and enters no mount: a mount point in the tree ends the
// removal with [ErrMountPoint]. A name that does not exist is no error.
func RemoveAll(dir *os.File, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	r := remover{}
	return r.remove(dir, name, 0)
}

// remover removes one tree.
type remover struct {
	top   *os.File // the root of the tree
	moved int      // the number of directories moved up so far
}

// remove removes name from dir, which is depth levels below the tree's root.
func (r *remover) remove(dir *os.File, name string, depth int) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	for pass := 0; errors.Is(err, unix.EISDIR); pass++ {
		if pass == maxPasses {
			return &fs.PathError{Op: "remove", Path: name, Err: ErrBusy}
		}
		if depth == maxDepth {
			return r.moveUp(dir, name)
		}
		if err := r.empty(dir, name, depth); err != nil {
			return err
		}
		err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
		if errors.Is(err, unix.ENOTEMPTY) {
			err = unix.EISDIR
		}
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%w: %w", ErrMountPoint, err)
	}
	return &fs.PathError{Op: "remove", Path: name, Err: err}
}

// empty removes everything in the directory name of dir.
func (r *remover) empty(dir *os.File, name string, depth int) error {
	d, err := openat2(dir, name, unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW,
		Resolve: plain | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.EXDEV):
		return &fs.PathError{Op: "remove", Path: name, Err: fmt.Errorf("%w: %w", ErrMountPoint, unix.EXDEV)}
	case err != nil:
		return err
	}
	defer d.Close()
	if depth == 0 {
		r.top = d
	}
	for {
		names, err := d.Readdirnames(readBatch)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, child := range names {
			if err := r.remove(d, child, depth+1); err != nil {
				return fmt.Errorf("%s/%w", name, err)
			}
		}
		// The offset means nothing any more once entries are gone.
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

// moveUp moves a directory that lies too deep to the root of the tree, whose
// listing comes across it again.
func (r *remover) moveUp(dir *os.File, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()),
			".removed-"+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			return nil
		case errors.Is(err, unix.EEXIST):
			continue
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EXDEV):
			err = fmt.Errorf("%w: %w", ErrMountPoint, err)
		}
		return &fs.PathError{Op: "move", Path: name, Err: err}
	}
}
