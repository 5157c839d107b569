package rootpath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth bounds the descriptors that a removal or a walk holds, one per
	// level. A deeper directory is moved up before its removal.
	maxDepth = 64
	// maxPasses bounds how often an emptied directory may turn out not to be empty.
	maxPasses = 16
	// maxShown bounds the directories that an error names.
	maxShown = 4

	readBatch = 512
)

// RemoveAll removes name, one component, from dir with everything below it. It
// holds at most [maxDepth] descriptors and frames, however deep the tree is,
// and takes time proportional to its entries.
//
// It follows no link and enters no mount: a mount point in the tree ends the
// removal with [ErrMountPoint]. A directory that is moved away while it is
// being emptied is not touched any more, with [ErrBusy]. When ctx ends, the
// removal does, with the cause; another call continues. A name that does not
// exist is not an error.
func RemoveAll(ctx context.Context, dir *os.File, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	r := remover{ctx: ctx}
	if err := r.remove(dir, name); err != nil {
		return err
	}

	if r.top == nil {
		return nil
	}
	defer r.top.Close()

	// Moved-up directories are removed by number: a listing of the root may
	// have passed them already.
	for r.done < r.moved {
		r.done++
		if err := r.tree(r.top, movedName(r.done)); err != nil {
			return fmt.Errorf("%s/%w", name, err)
		}
	}

	return r.tree(dir, name)
}

// remover removes one tree.
type remover struct {
	ctx    context.Context // of one removal, which ends with the call
	top    *os.File        // the root of the tree, nil until a directory was moved to it
	frames []frame         // the directories being emptied, each in the one before
	moved  int             // the number of directories moved up so far
	done   int             // how many of them are removed
}

// frame is a directory being emptied.
type frame struct {
	parent *os.File
	name   string
	dir    *os.File
	id     fileID
	names  []string // read and not yet removed
	passes int
}

// fileID identifies a file.
type fileID struct{ dev, ino uint64 }

func movedName(n int) string { return ".removed-" + strconv.Itoa(n) }

// remove removes name from dir, except for directories moved up to top.
func (r *remover) remove(dir *os.File, name string) error {
	err := r.tree(dir, name)
	if errors.Is(err, errMoved) {
		return nil
	}
	return err
}

// errMoved means that the tree's root has moved-up directories.
var errMoved = errors.New("directories were moved up")

// tree removes name from dir, without recursion.
func (r *remover) tree(dir *os.File, name string) error {
	defer r.closeFrames()
	if err := r.entry(dir, name); err != nil {
		return err
	}

	for len(r.frames) > 0 {
		f := &r.frames[len(r.frames)-1]
		if len(f.names) == 0 {
			if err := r.next(f); err != nil {
				return err
			}
			continue
		}

		child := f.names[0]
		f.names = f.names[1:]
		if err := r.entry(f.dir, child); err != nil {
			return err
		}
	}

	return nil
}

// entry unlinks name in dir, or opens it to be emptied if it is a directory.
func (r *remover) entry(dir *os.File, name string) error {
	for range maxPasses {
		err := unlink(dir, name, 0)
		if !errors.Is(err, unix.EISDIR) {
			return r.explain(name, err)
		}

		// Many directories are empty.
		err = unlink(dir, name, unix.AT_REMOVEDIR)
		if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.ENOTDIR) {
			return r.explain(name, err)
		}

		if len(r.frames) == maxDepth {
			return r.moveUp(dir, name)
		}
		err = r.push(dir, name)
		if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return r.explain(name, err)
		}
	}
	return r.explain(name, ErrBusy) // it keeps changing its type
}

func unlink(dir *os.File, name string, flags int) error {
	return freed(dir, name, func() error { return unix.Unlinkat(int(dir.Fd()), name, flags) })
}

// push opens a directory to be emptied.
func (r *remover) push(dir *os.File, name string) error {
	d, err := openat2(dir, name, unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW,
		Resolve: plain | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return err
	}

	id, err := identify(d)
	if err != nil {
		d.Close()
		return err
	}

	r.frames = append(r.frames, frame{parent: dir, name: name, dir: d, id: id})
	return nil
}

// next reads more names of the innermost directory, or removes it at its end.
func (r *remover) next(f *frame) error {
	if err := r.ctx.Err(); err != nil {
		return r.explain("", context.Cause(r.ctx))
	}
	names, err := f.dir.Readdirnames(readBatch)
	if len(names) > 0 {
		f.names = names
		return r.inPlace()
	}

	// One that is gone can no longer be read: another removal may be under way.
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, fs.ErrNotExist) {
		return r.explain("", err)
	}

	err = unlink(f.parent, f.name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOTEMPTY) {
		return r.again(f)
	}

	name := f.name
	f.dir.Close()
	r.frames = r.frames[:len(r.frames)-1]
	return r.explain(name, err)
}

// again starts another pass through a directory that is not empty after one,
// because the file system skipped names, some were added, or they are moved-up
// directories.
func (r *remover) again(f *frame) error {
	if len(r.frames) == 1 && r.moved > 0 && r.done == 0 {
		return errMoved
	}
	if f.passes++; f.passes == maxPasses {
		return r.explain("", ErrBusy)
	}
	_, err := f.dir.Seek(0, io.SeekStart)
	return r.explain("", err)
}

// inPlace checks that each directory being emptied is still where it was found:
// one moved out of the tree may have files that others need. One that was removed
// has none.
func (r *remover) inPlace() error {
	for _, f := range r.frames {
		var st unix.Stat_t
		err := unix.Fstatat(int(f.parent.Fd()), f.name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if (err != nil || (fileID{st.Dev, st.Ino}) != f.id) && !isRemoved(f.dir) {
			return r.explain("", fmt.Errorf("%w: %q was moved away", ErrBusy, f.name))
		}
	}
	return nil
}

// isRemoved reports whether an open directory has no name any more.
func isRemoved(dir *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(dir.Fd()), &st) == nil && st.Nlink == 0
}

// moveUp moves a directory that is too deep to the root of the tree.
func (r *remover) moveUp(dir *os.File, name string) error {
	if r.top == nil {
		top, err := openat2(r.frames[0].dir, ".", unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY, Resolve: plain})
		if err != nil {
			return r.explain(name, err)
		}
		r.top = top
	}
	for {
		r.moved++
		err := freed(dir, name, func() error {
			return unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()), movedName(r.moved), unix.RENAME_NOREPLACE)
		})
		if !errors.Is(err, unix.EEXIST) {
			return r.explain(name, err)
		}
	}
}

// held are the attributes with which a container that may set them can prevent
// the removal of files.
const held = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND

// freed calls do for the entry name of dir, and again without those attributes
// if they prevented it.
func freed(dir *os.File, name string, do func() error) error {
	err := do()
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if ferr := free(dir, "."); ferr != nil {
		return fmt.Errorf("%w; %w", err, ferr)
	}
	if ferr := free(dir, name); ferr != nil {
		return fmt.Errorf("%w; %w", err, ferr)
	}
	return do()
}

// free clears the attributes of a regular file or directory. Other files, for
// which open has side effects, are not touched.
func free(dir *os.File, name string) error {
	f, err := openat2(dir, name, unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: plain | unix.RESOLVE_NO_XDEV})
	if err != nil {
		return err
	}
	defer f.Close()

	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &st); err != nil {
		return err
	}

	if kind := st.Mode & unix.S_IFMT; st.Attributes&held == 0 || kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil
	}
	open, err := Reopen(f, name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer open.Close()

	flags, err := unix.IoctlGetUint32(int(open.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("read attributes: %w", err)
	}

	const fsAppend, fsImmutable = 0x20, 0x10
	if err := unix.IoctlSetPointerInt(int(open.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^(fsAppend|fsImmutable))); err != nil {
		return fmt.Errorf("clear the attribute that prevents removal: %w", err)
	}
	return nil
}

func (r *remover) closeFrames() {
	for _, f := range r.frames {
		f.dir.Close()
	}
	r.frames = r.frames[:0]
}

// explain adds the path in the tree to an error. What no longer exists counts as removed.
func (r *remover) explain(name string, err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EXDEV) {
		err = fmt.Errorf("%w: %w", ErrMountPoint, err)
	}
	return &fs.PathError{Op: "remove", Path: r.where(name), Err: err}
}

// where is the path to name, shortened in the middle: its names are untrusted, and many.
func (r *remover) where(name string) string {
	path := ""
	for i, f := range r.frames {
		switch {
		case i < maxShown/2 || i >= len(r.frames)-maxShown/2:
			path += f.name + "/"
		case i == maxShown/2:
			path += ".../"
		}
	}
	return path + name
}

func identify(f *os.File) (fileID, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return fileID{st.Dev, st.Ino}, err
}
