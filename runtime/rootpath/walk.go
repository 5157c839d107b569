package rootpath

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// maxLevels bounds the memory of a walk: 16 bytes a level. Each level also
	// uses a disk block, which is accounted for.
	maxLevels = 1 << 18
	// maxLinked bounds the files with several names that a measurement
	// remembers as counted.
	maxLinked = 1 << 16

	// direntBatch is how many bytes of a directory are read at a time. Few, as
	// they are read again after each deep directory.
	direntBatch = 4096
	// ctxEvery is how many entries a walk visits between checks of its context.
	ctxEvery = 256
)

// Usage is the disk usage of a tree.
type Usage struct {
	Bytes, Inodes uint64
	// Partial means that the sums are too low: directories were moved
	// meanwhile, or are nested too deep, and were not counted.
	Partial bool
}

// Measure adds up the tree at dir, the directory itself included. The tree may
// be changed concurrently: see [Walk]. A file with several names counts once.
// Beyond [maxLinked] such files each name counts for its share of the file, so
// that the sum is right without more memory.
//
// When ctx ends, the usage counted so far is returned, with the cause.
func Measure(ctx context.Context, dir *os.File) (Usage, error) {
	return NewMeter().Measure(ctx, dir)
}

// Meter measures several trees, of which a file that several have counts in the first
// one only.
type Meter struct{ linked map[fileID]struct{} }

// NewMeter returns a meter that has measured nothing.
func NewMeter() *Meter { return &Meter{map[fileID]struct{}{}} }

// Measure is [Measure] without what was measured before.
func (k *Meter) Measure(ctx context.Context, dir *os.File) (Usage, error) {
	m := measurer{linked: k.linked}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return Usage{Partial: true}, fmt.Errorf("measure: %w", err)
	}
	m.add(&st)
	complete, err := Walk(ctx, dir, m.add)
	return m.usage(!complete), err
}

// share is one inode in the fixed-point numbers of a measurer.
const share = 1 << 32

type measurer struct {
	bytes, inodes uint64
	// shares are inodes, too, split over several names.
	shares uint64
	linked map[fileID]struct{}
}

func (m *measurer) add(st *unix.Stat_t) {
	bytes := uint64(st.Blocks) * 512
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := fileID{st.Dev, st.Ino}
		if _, counted := m.linked[id]; counted {
			return
		}

		if len(m.linked) == maxLinked {
			names := uint64(st.Nlink) // has 32 bits on arm64
			m.bytes += (bytes + names - 1) / names
			m.shares += (share + names - 1) / names
			return
		}
		m.linked[id] = struct{}{}
	}

	m.bytes += bytes
	m.inodes++
}

func (m *measurer) usage(partial bool) Usage {
	return Usage{Bytes: m.bytes, Inodes: m.inodes + m.shares/share, Partial: partial}
}

// Walk calls visit for everything below dir, in no order, directories before
// their content. It enters no other file system and follows no link. It holds
// at most [maxDepth]+2 descriptors and a few bytes per level, however deep the
// tree is. complete is false if it could not return to a parent, because
// directories were moved, or the tree has more than [maxLevels] levels. When
// ctx ends, the walk does, with the cause.
func Walk(ctx context.Context, dir *os.File, visit func(st *unix.Stat_t)) (complete bool, err error) {
	w := walker{ctx: ctx, visit: visit, complete: true}
	defer w.close()
	fd, err := openWalk(int(dir.Fd()), ".")
	if err != nil {
		return false, &fs.PathError{Op: "walk", Path: dir.Name(), Err: err}
	}

	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return false, &fs.PathError{Op: "walk", Path: dir.Name(), Err: err}
	}

	w.dev, w.cur = st.Dev, &level{fd: fd, ino: st.Ino}
	if err := w.run(); err != nil {
		return false, fmt.Errorf("walk %s: %w", dir.Name(), err)
	}
	return w.complete, nil
}

// walker walks one tree. The first maxDepth directories on the way to the
// current one are open; for deeper ones it knows where to continue reading, and
// reaches them by "..".
type walker struct {
	ctx      context.Context // of one walk, which ends with the call
	visit    func(*unix.Stat_t)
	dev      uint64
	cur      *level
	held     []*level
	deep     []place
	seen     int
	complete bool
}

// level is an open directory.
type level struct {
	fd   int
	ino  uint64
	buf  []byte
	rest []byte // of buf, not visited yet
	end  bool
	// lost means that names could not be read.
	lost bool
}

// place is where to continue reading a directory.
type place struct {
	ino  uint64
	next int64
}

func (w *walker) run() error {
	for {
		if w.seen++; w.seen%ctxEvery == 0 && w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		name, next, ok := w.cur.entry()
		if ok {
			w.look(name, next)
			continue
		}

		w.complete = w.complete && !w.cur.lost
		if !w.up() {
			return context.Cause(w.ctx)
		}
	}
}

// look visits the entry name of the current directory and enters it, if it is a
// directory.
func (w *walker) look(name string, next int64) {
	var st unix.Stat_t
	if unix.Fstatat(w.cur.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != w.dev {
		return // it was removed, or is on another file system
	}

	w.visit(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}

	fd, err := openWalk(w.cur.fd, name)
	if err != nil {
		// Removed files need no counting.
		w.complete = w.complete && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EXDEV))
		return
	}

	if unix.Fstat(fd, &st) != nil {
		unix.Close(fd)
		return
	}
	w.down(&level{fd: fd, ino: st.Ino}, next)
}

// down makes a directory in the current one the current one.
func (w *walker) down(to *level, next int64) {
	switch {
	case len(w.held) < maxDepth:
		w.held = append(w.held, w.cur)
	case len(w.deep) < maxLevels:
		w.deep = append(w.deep, place{w.cur.ino, next})
		unix.Close(w.cur.fd)
	default:
		w.complete = false
		unix.Close(to.fd)
		return
	}
	w.cur = to
}

// up returns to the directory in which the current one was found, and reports
// whether there is one.
func (w *walker) up() bool {
	left := w.cur
	defer unix.Close(left.fd)
	w.cur = nil
	if n := len(w.deep); n > 0 {
		if at, ok := w.parent(left.fd, w.deep[n-1]); ok {
			w.cur, w.deep = at, w.deep[:n-1]
			return true
		}
		// It was moved, and its parent may be anywhere. Open directories can
		// still be read.
		w.complete, w.deep = false, nil
	}

	n := len(w.held)
	if n == 0 {
		return false
	}
	w.cur, w.held = w.held[n-1], w.held[:n-1]
	return true
}

// parent opens the directory that fd is in, if it is the one expected.
func (w *walker) parent(fd int, want place) (*level, bool) {
	up, err := openWalk(fd, "..")
	if err != nil {
		return nil, false
	}

	var st unix.Stat_t
	if unix.Fstat(up, &st) != nil || st.Dev != w.dev || st.Ino != want.ino {
		unix.Close(up)
		return nil, false
	}

	if _, err := unix.Seek(up, want.next, unix.SEEK_SET); err != nil {
		unix.Close(up)
		return nil, false
	}
	return &level{fd: up, ino: st.Ino}, true
}

func (w *walker) close() {
	if w.cur != nil {
		unix.Close(w.cur.fd)
	}
	for _, l := range w.held {
		unix.Close(l.fd)
	}
}

func openWalk(dir int, name string) (int, error) {
	return unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}

// entry returns the next name in a directory and where to continue reading after it.
func (l *level) entry() (name string, next int64, ok bool) {
	for {
		for len(l.rest) > 0 {
			if name, next, ok = l.decode(); ok {
				return name, next, true
			}
		}

		if l.end {
			return "", 0, false
		}
		if l.buf == nil {
			l.buf = make([]byte, direntBatch)
		}

		n, err := unix.Getdents(l.fd, l.buf)
		if err != nil || n <= 0 {
			l.end, l.lost = true, err != nil && !errors.Is(err, unix.ENOENT) // the directory was removed
			return "", 0, false
		}
		l.rest = l.buf[:n]
	}
}

// decode takes one struct linux_dirent64 from the buffer. It returns false for
// entries to skip.
func (l *level) decode() (name string, next int64, ok bool) {
	const inoLen, head = 8, 19 // ino, off, reclen, type
	if len(l.rest) < head {
		l.rest = nil
		return "", 0, false
	}

	size := int(binary.NativeEndian.Uint16(l.rest[2*inoLen:]))
	if size < head || size > len(l.rest) {
		l.rest = nil
		return "", 0, false
	}

	next = int64(binary.NativeEndian.Uint64(l.rest[inoLen:]))
	text, _, _ := bytes.Cut(l.rest[head:size], []byte{0})
	l.rest = l.rest[size:]
	name = string(text)
	return name, next, name != "" && name != "." && name != ".."
}
