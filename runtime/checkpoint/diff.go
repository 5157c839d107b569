package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/rootpath"
)

const (
	// maxDepth bounds the descriptors that a walk holds.
	maxDepth = 512
	// maxPath bounds a path, in bytes: a name costs the container a few bytes, and
	// the archive its whole path.
	maxPath = unix.PathMax
	// maxLinks bounds the files with several names that are remembered; beyond it
	// each name becomes a file.
	maxLinks = 1 << 16
	// maxHoles bounds what an archive has more than the disk, in bytes: zeros of files
	// without data, and files that are in it under each of their names.
	maxHoles = 1 << 30
	// maxDeleted bounds the list of deleted files, and of a directory's files, maxNames
	// the bytes of all names that are remembered.
	maxDeleted = 1 << 20
	maxNames   = 128 << 20
	// maxAttributes bounds a file's extended attributes, in bytes: with more than 1 MiB
	// its entry could not be read.
	maxAttributes = 512 << 10
	// batch is how many names of a directory are read at a time.
	batch = 1024

	xattrPrefix = "SCHILY.xattr."
)

// ErrUnfit means that a container's files do not fit into an archive: they are
// nested too deep, mostly consist of holes, have too many names or attributes, or
// names that an image's layer cannot have.
var ErrUnfit = errors.New("the container's files do not fit into an archive")

// Diff is the difference between a container's files and its image's.
type Diff struct {
	// Upper is the writable layer, as overlayfs has it, and Lower the image's files. Upper
	// is read from where it stands.
	Upper, Lower *os.File
	// IDs translates owners on the disk to those in the container.
	IDs func(uid, gid uint32) (int, int)
	// Names are those that files are to have besides their own, in a checkpoint.
	Names []Name
}

// Name is a further name of a file: Path is relative, and ID the device and inode.
type Name struct {
	Path string
	ID   [2]uint64
}

// Write writes the changed files as a tar archive, and returns the absolute paths
// of those that were deleted.
func (d Diff) Write(ctx context.Context, to io.Writer) (deleted []string, err error) {
	w := differ{Diff: d, ctx: ctx, tar: tar.NewWriter(&writer{ctx, to}), linked: map[[2]uint64]string{}}
	w.expect()
	if err := w.directory(d.Upper, nil); err != nil {
		return nil, fmt.Errorf("archive changed files: %.200q: %w", w.failed, err)
	}
	if err := w.name(); err != nil {
		return nil, fmt.Errorf("archive changed files: %w", err)
	}
	if err := w.tar.Close(); err != nil {
		return nil, fmt.Errorf("archive changed files: %w", err)
	}
	return w.deleted, nil
}

// differ is one Write.
type differ struct {
	Diff
	ctx     context.Context // of one call, which ends with it
	tar     *tar.Writer
	layer   bool               // see [Diff.WriteLayer]
	shared  bool               // see [Shared]
	named   map[[2]uint64]bool // files that get further names
	entries int64
	deleted []string
	linked  map[[2]uint64]string // names of files with several, by device and inode
	holes   int64                // bytes so far, see maxHoles
	names   int64                // bytes in what is remembered
	failed  string               // what could not be archived
}

// directory archives the content of a directory; at is its path.
func (w *differ) directory(dir *os.File, at []string) error {
	if depth := w.most(maxDepth, layerDepth); len(at) >= depth {
		return fmt.Errorf("%w: more than %d nested directories", ErrUnfit, depth)
	}

	var seen []string
	opaque := !w.shared && isOpaque(dir)
	if opaque && w.layer {
		if err := w.hideBelow(at); err != nil {
			return err
		}
		opaque = false
	}
	for {
		names, err := dir.Readdirnames(batch)
		for _, name := range names {
			if w.ctx.Err() != nil {
				return context.Cause(w.ctx)
			}
			if err := w.entry(dir, name, append(at, name)); err != nil {
				if w.failed == "" {
					w.failed = strings.Join(append(at, name), "/")
				}
				return err
			}
		}

		if opaque {
			if seen = append(seen, names...); len(seen) > maxDeleted {
				return fmt.Errorf("%w: more than %d files in a directory", ErrUnfit, maxDeleted)
			}
			if err := w.remember(names...); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // deleted meanwhile
			break
		}
		if err != nil {
			return err
		}
	}

	if opaque {
		return w.replaced(at, seen)
	}
	return nil
}

// expect has the files remembered that get further names.
func (w *differ) expect() {
	w.named = map[[2]uint64]bool{}
	for _, n := range w.Names {
		w.named[n.ID] = true
	}
}

// name gives files their further names.
func (w *differ) name() error {
	for _, n := range w.Names {
		first, ok := w.linked[n.ID]
		if !ok {
			return fmt.Errorf("%w: a file that a process has open has lost its name meanwhile", ErrUnfit)
		}
		if err := w.begin(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeLink, Name: n.Path, Linkname: first}); err != nil {
			return err
		}
	}
	return nil
}

// isOpaque reports whether a directory hides the image's directory of that name.
func isOpaque(dir *os.File) bool {
	var v [1]byte
	n, err := unix.Fgetxattr(int(dir.Fd()), "trusted.overlay.opaque", v[:])
	return err == nil && n == 1 && v[0] == 'y'
}

// replaced notes the image's files in a directory that the container has removed
// and made again.
func (w *differ) replaced(at, seen []string) error {
	lower, err := rootpath.OpenUnlinked(w.Lower, strings.Join(at, "/"), unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // it was no directory
	}
	if err != nil {
		return fmt.Errorf("open the image's directory: %w", err)
	}
	defer lower.Close()

	names, err := lower.Readdirnames(maxDeleted)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("list the image's directory: %w", err)
	}
	slices.Sort(seen)
	for _, name := range names {
		if _, kept := slices.BinarySearch(seen, name); !kept {
			if err := w.delete(append(at, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *differ) delete(at []string) error {
	if w.layer {
		return w.mark(at[:len(at)-1], whiteoutPrefix+at[len(at)-1])
	}
	if len(w.deleted) == maxDeleted {
		return fmt.Errorf("%w: more than %d files were deleted", ErrUnfit, maxDeleted)
	}
	path := "/" + strings.Join(at, "/")
	w.deleted = append(w.deleted, path)
	return w.remember(path)
}

// remember counts names that are kept until the end.
func (w *differ) remember(names ...string) error {
	for _, name := range names {
		w.names += int64(len(name))
	}
	if w.names > maxNames {
		return fmt.Errorf("%w: its deleted, replaced and linked files have names of more than %d bytes", ErrUnfit, maxNames)
	}
	return nil
}

// excess counts bytes that the archive has more than the disk.
func (w *differ) excess(n int64) error {
	if w.holes += max(0, n); w.holes > maxHoles {
		return fmt.Errorf("%w: it has holes or several names, and what those of all files add is more than %d bytes", ErrUnfit, maxHoles)
	}
	return nil
}

func (w *differ) entry(dir *os.File, name string, at []string) error {
	// What has this name now, whatever has it later: the container may go on.
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()

	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if w.layer && strings.HasPrefix(name, whiteoutPrefix) {
		return fmt.Errorf("%w: in a layer, names that begin with %s say what was deleted", ErrUnfit, whiteoutPrefix)
	}
	return w.inode(f, &st, at)
}

// inode archives what was opened with O_PATH, and at is its path.
func (w *differ) inode(f *os.File, st *unix.Stat_t, at []string) error {
	h := w.header(st, strings.Join(at, "/"))
	if most := w.most(maxPath, layerPath); len(h.Name) > most {
		return fmt.Errorf("%w: its path has more than %d bytes", ErrUnfit, most)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		if w.shared {
			return nil // processes make them again
		}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		if st.Rdev == 0 && st.Mode&unix.S_IFMT == unix.S_IFCHR {
			return w.delete(at)
		}
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFSOCK:
		return w.socket(at)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		target, err := readlink(f)
		if err != nil {
			return err
		}
		h.Linkname = target
	}

	id := [2]uint64{uint64(st.Dev), st.Ino}
	if (st.Nlink > 1 || w.named[id]) && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if first, ok := w.linked[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return w.begin(h)
		}
		if len(w.linked) < maxLinks || w.named[id] {
			w.linked[id] = h.Name
			if err := w.remember(h.Name); err != nil {
				return err
			}
		} else if err := w.excess(st.Size); err != nil {
			return err
		}
	}

	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		return reopen(f, unix.O_DIRECTORY, func(f *os.File) error {
			if err := w.beginOpen(h, f); err != nil {
				return err
			}
			return w.directory(f, at)
		})
	case unix.S_IFREG:
		h.Typeflag = tar.TypeReg
		return reopen(f, 0, func(f *os.File) error { return w.file(h, f) })
	default:
		return w.begin(h)
	}
}

func (w *differ) header(st *unix.Stat_t, name string) *tar.Header {
	uid, gid := w.IDs(st.Uid, st.Gid)
	return &tar.Header{
		Format: tar.FormatPAX, Name: path.Clean(name), Mode: int64(st.Mode & 0o7777),
		Uid: uid, Gid: gid, ModTime: time.Unix(st.Mtim.Unix()),
	}
}

// file archives a regular file with its extended attributes.
func (w *differ) file(h *tar.Header, f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if w.shared {
		return w.sparse(h, f, st.Size)
	}
	if err := w.excess(st.Size - st.Blocks*512); err != nil {
		return err
	}

	h.Size = st.Size
	if err := w.beginOpen(h, f); err != nil {
		return err
	}
	return w.body(f, st.Size)
}

// body writes the content of a file, which may have been shortened meanwhile.
func (w *differ) body(from io.Reader, size int64) error {
	n, err := io.CopyN(w.tar, from, size)
	if !errors.Is(err, io.EOF) {
		return err
	}
	if err := w.excess(size - n); err != nil {
		return err
	}
	_, err = io.CopyN(w.tar, zeros{}, size-n)
	return err
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// begin writes the header of an entry.
func (w *differ) begin(h *tar.Header) error {
	w.entries++
	return w.tar.WriteHeader(h)
}

// beginOpen writes the header of an open file, with its extended attributes.
func (w *differ) beginOpen(h *tar.Header, f *os.File) error {
	most := w.most(maxAttributes, layerAttributes)
	size := 0
	err := rootpath.EachAttribute(f, w.IDs, func(name string, value []byte) error {
		if strings.Contains(name, "=") {
			return nil // it cannot be in an archive
		}

		if size += len(name) + len(value); size > most {
			return fmt.Errorf("%w: it has more than %d bytes of extended attributes", ErrUnfit, most)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+name] = string(value)
		return nil
	})
	if err != nil {
		return err
	}
	return w.begin(h)
}

// reopen opens what was opened with O_PATH, a directory or a regular file, and closes
// it after use. No other file is ever opened: a device would see it.
func reopen(path *os.File, flags int, use func(*os.File) error) error {
	f, err := rootpath.Reopen(path, path.Name(), flags|unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	return use(f)
}

func readlink(link *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(link.Fd()), "", buf)
	return string(buf[:max(n, 0)]), err
}
