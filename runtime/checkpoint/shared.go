package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// sharedFile has the content of the pod's /dev/shm, in the archive of one of its
	// containers. Without any there is none.
	sharedFile = "crisp.shm.tar"
	// sizeRecord and extentsRecord are what a file with holes has in the archive: its size,
	// and where its content belongs, as "OFFSET:LENGTH,...". Any tar unpacks it, without the
	// holes.
	sizeRecord    = "CRISP.size"
	extentsRecord = "CRISP.extents"
	// maxExtents bounds the pieces of a file. Holes shorter than minHole, in bytes, are none:
	// so the smallest /dev/shm that has more pieces is 1 GiB large.
	maxExtents = 1 << 14
	minHole    = 64 << 10
)

// ErrOccupied means that a pod's /dev/shm has a file already that a restored process is to
// find there as it left it.
var ErrOccupied = errors.New("the pod's /dev/shm has another file of that name")

// Shared is the file system in memory that the containers of a pod share: its /dev/shm.
type Shared struct {
	// Root is read from where it stands.
	Root *os.File
	// IDs translates owners on the node to those in the containers.
	IDs func(uid, gid uint32) (int, int)
	// Names are those that files are to have besides their own.
	Names []Name
}

// FillShared adds the content of a pod's /dev/shm: its regular files, directories and
// symbolic links. Holes of files cost nothing. The containers that can change it are frozen,
// or what is saved of it is as it was at different times.
func (s Stage) FillShared(ctx context.Context, shared Shared) error {
	file := filepath.Join(s.dir(), sharedFile)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("save /dev/shm: %w", err)
	}
	files, err := shared.write(ctx, f)
	if err = errors.Join(err, f.Close()); err == nil && !files {
		err = os.Remove(file)
	}
	if err != nil {
		return fmt.Errorf("save /dev/shm: %w", err)
	}
	return nil
}

// write writes the archive, and reports whether there is anything in it.
func (s Shared) write(ctx context.Context, to io.Writer) (files bool, err error) {
	w := differ{Diff: Diff{IDs: s.IDs, Names: s.Names}, ctx: ctx, tar: tar.NewWriter(&writer{ctx, to}), shared: true, linked: map[[2]uint64]string{}}
	w.expect()
	var st unix.Stat_t
	if err := unix.Fstat(int(s.Root.Fd()), &st); err != nil {
		return false, err
	}
	h := w.header(&st, ".")
	h.Typeflag, h.Name = tar.TypeDir, "./"
	if err := w.beginOpen(h, s.Root); err != nil {
		return false, err
	}

	if err := w.directory(s.Root, nil); err != nil {
		return false, fmt.Errorf("%.200q: %w", w.failed, err)
	}
	if err := w.name(); err != nil {
		return false, err
	}
	return w.entries > 1, w.tar.Close()
}

// extent is a piece of a file, in bytes.
type extent struct{ at, size int64 }

// sparse archives a regular file without its holes.
func (w *differ) sparse(h *tar.Header, f *os.File, size int64) error {
	list, err := extentsOf(f, size)
	if err != nil {
		return err
	}
	if len(list) > maxExtents {
		return fmt.Errorf("%w: it has more than %d holes", ErrUnfit, maxExtents)
	}
	if len(list) != 1 || list[0].size != size {
		var text strings.Builder
		for i, e := range list {
			if h.Size += e.size; i > 0 {
				text.WriteByte(',')
			}
			fmt.Fprintf(&text, "%d:%d", e.at, e.size)
		}
		if h.PAXRecords = map[string]string{sizeRecord: strconv.FormatInt(size, 10)}; len(list) > 0 {
			h.PAXRecords[extentsRecord] = text.String()
		}
	} else {
		h.Size = size
	}

	if err := w.beginOpen(h, f); err != nil {
		return err
	}
	for _, e := range list {
		if err := w.body(io.NewSectionReader(f, e.at, e.size), e.size); err != nil {
			return err
		}
	}
	return nil
}

// extentsOf lists the data of a file, at most one piece more than there may be.
func extentsOf(f *os.File, size int64) (list []extent, err error) {
	for at := int64(0); at < size && len(list) <= maxExtents; {
		data, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // the rest is a hole
		}
		if err != nil {
			return nil, err
		}
		if at, err = f.Seek(data, unix.SEEK_HOLE); err != nil {
			return nil, err
		}

		at = min(at, size)
		if n := len(list); n > 0 && data-list[n-1].at-list[n-1].size < minHole {
			list[n-1].size = at - list[n-1].at
		} else if data < at {
			list = append(list, extent{data, at - data})
		}
	}
	return list, nil
}

// parseExtents returns where the content of an entry belongs, and how large the file is. They
// are in order, and have as many bytes as the entry.
func parseExtents(h *tar.Header) (list []extent, size int64, err error) {
	text, ok := h.PAXRecords[sizeRecord]
	if !ok {
		return []extent{{0, h.Size}}, h.Size, nil
	}
	if size, err = strconv.ParseInt(text, 10, 64); err != nil || size < 0 || size > math.MaxInt64/2 {
		return nil, 0, fmt.Errorf("%w: a size of %.40q", ErrInvalid, text)
	}

	end, sum := int64(0), int64(0)
	for piece := range strings.SplitSeq(h.PAXRecords[extentsRecord], ",") {
		if piece == "" {
			continue
		}
		first, rest, _ := strings.Cut(piece, ":")
		at, aerr := strconv.ParseInt(first, 10, 64)
		n, nerr := strconv.ParseInt(rest, 10, 64)
		if aerr != nil || nerr != nil || at < end || n <= 0 || n > size || at > size-n || len(list) == maxExtents {
			return nil, 0, fmt.Errorf("%w: its piece %.60q", ErrInvalid, piece)
		}
		list, end, sum = append(list, extent{at, n}), at+n, sum+n
	}
	if sum != h.Size {
		return nil, 0, fmt.Errorf("%w: its pieces have %d bytes, and its content %d", ErrInvalid, sum, h.Size)
	}
	return list, size, nil
}

// Refill says how the content of a pod's /dev/shm is put into another.
type Refill struct {
	// Fresh: no process has it yet. Otherwise what is there stays, and so do the attributes of
	// the root, and the error is [ErrOccupied] for Needed: paths that a process expects to
	// find as it left them.
	Fresh  bool
	Needed []string
	// UIDs and GIDs are the mappings of the pod's user namespace, nil for none.
	UIDs, GIDs []specs.LinuxIDMapping
}

// DropShared removes the content of the pod's /dev/shm from the checkpoint.
func (u *Unpacked) DropShared() error {
	if err := os.Remove(filepath.Join(u.stage.dir(), sharedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the saved /dev/shm: %w", err)
	}
	return nil
}

// OpenShared opens the content of the pod's /dev/shm, if it is in this checkpoint. The error
// is [fs.ErrNotExist] if it is not.
func (u *Unpacked) OpenShared() (*os.File, error) { return u.open(sharedFile) }

// Apply puts saved content into root, that of a pod's /dev/shm.
//
// The archive is hostile, and so are the processes that have root already. No link is
// followed, nothing is made outside of root or on another mount, and there is nothing in it but
// regular files, directories, symbolic links, and names of these. What it may take in bytes and
// files is what the file system has room for.
//
// The errors are [ErrInvalid] for what cannot be applied, with the path of the file,
// [ErrTooLarge], and [ErrOccupied]. When ctx ends, Apply does, with the cause.
func (r Refill) Apply(ctx context.Context, archive io.Reader, root *os.File) error {
	a := applier{ctx: ctx, root: root, ids: MappedIDs(r.UIDs, r.GIDs), buffer: make([]byte, 128<<10), refill: &r}
	if err := a.all(archive); err != nil {
		return fmt.Errorf("restore /dev/shm: %w", err)
	}
	return nil
}

// refillEntry makes what an entry of a /dev/shm describes.
func (a *applier) refillEntry(h *tar.Header, name string, attr attributes, body io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeSymlink, tar.TypeLink:
	case tar.TypeDir:
		return a.refillDirectory(name, attr)
	default:
		return fmt.Errorf("%w: it is of type %q", ErrInvalid, h.Typeflag)
	}
	if isSparse(h) {
		return fmt.Errorf("%w: it is sparse in another way than crisp's", ErrInvalid)
	}

	err := a.in(name, func(p place) error {
		switch h.Typeflag {
		case tar.TypeLink:
			return a.link(p, h)
		case tar.TypeSymlink:
			return special(p, h, attr)
		}
		return a.pieces(p, h, attr, body)
	})
	if errors.Is(err, fs.ErrExist) && !a.refill.Fresh {
		for _, needed := range a.refill.Needed {
			if needed == name {
				return ErrOccupied
			}
		}
		return nil // another's
	}
	return err
}

// refillDirectory makes a directory, if there is none.
func (a *applier) refillDirectory(name string, attr attributes) error {
	if a.refill.Fresh {
		return a.makeDirectory(name, attr)
	}
	if name == "." {
		return nil
	}

	var st unix.Stat_t
	err := a.in(name, func(p place) error { return unix.Fstatat(int(p.dir.Fd()), p.name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	switch {
	case errors.Is(err, unix.ENOENT):
		return a.makeDirectory(name, attr)
	case err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return ErrOccupied
	}
	return err
}

// pieces makes a regular file where there is nothing.
func (a *applier) pieces(p place, h *tar.Header, attr attributes, body io.Reader) error {
	list, size, err := parseExtents(h)
	if err != nil {
		return err
	}
	return a.regular(p, attr, func(f *os.File) error {
		if err := f.Truncate(size); err != nil {
			return err
		}
		for _, e := range list {
			if _, err := io.CopyBuffer(io.NewOffsetWriter(f, e.at), io.LimitReader(body, e.size), a.buffer); err != nil {
				return err
			}
		}
		return nil
	})
}
