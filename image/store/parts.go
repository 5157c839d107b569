package store

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	partsDir = "parts"

	// minPart is the minimum size of a part, in bytes: less is fetched quickly.
	minPart = 1 << 20
	// MaxPartAge is how long a part is kept after it last grew.
	MaxPartAge = 24 * time.Hour
	// Parts together may use at most maxParts bytes, and one partShare-th of the
	// space that would be free without them.
	maxParts  = 64 << 30
	partShare = 4
)

// part is a partial download of a blob that is not in progress.
type part struct {
	disk uint64 // bytes
	// grown is when it last grew.
	grown time.Time
}

func (s *Store) partPath(d digest.Digest) string {
	return filepath.Join(s.root, partsDir, d.Algorithm().String()+"-"+d.Encoded())
}

// scanParts lists the parts on disk and moves anything else to the temporary
// directory.
func (s *Store) scanParts() error {
	entries, err := os.ReadDir(filepath.Join(s.root, partsDir))
	if err != nil {
		return err
	}

	for _, e := range entries {
		algorithm, hex, _ := strings.Cut(e.Name(), "-")
		d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex)
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(s.root, partsDir, e.Name()), &st); err != nil {
			return err
		}

		if d.Validate() != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size < minPart {
			aside, err := os.MkdirTemp(s.TempDir(), "part-*")
			if err != nil {
				return err
			}
			if err := os.Rename(filepath.Join(s.root, partsDir, e.Name()), filepath.Join(aside, e.Name())); err != nil {
				return err
			}
			continue
		}
		s.addPart(d, &st)
	}

	return nil
}

// addPart adds a part whose download has stopped.
func (s *Store) addPart(d digest.Digest, st *unix.Stat_t) {
	p := part{disk: uint64(st.Blocks) * 512, grown: time.Unix(st.Mtim.Unix())}
	s.parts[d] = p
	s.usage = s.usage.Add(Usage{p.disk, 1})
}

// dropPart forgets a part, if there is one.
func (s *Store) dropPart(d digest.Digest) {
	if p, ok := s.parts[d]; ok {
		delete(s.parts, d)
		s.usage = s.usage.sub(Usage{p.disk, 1})
	}
}

// Resume begins a blob like [Store.Create], with what an earlier download has
// left of it: see [Writer.ReadKept]. What this one leaves, by [Writer.Keep] or
// when the process dies, is available to the next.
func (s *Store) Resume(desc ocispec.Descriptor) (*Writer, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("write blob: %w", err)
	}

	s.mu.Lock()
	// A part has one writer at a time; a second one starts afresh.
	taken := s.writing[desc.Digest]
	if !taken {
		s.writing[desc.Digest] = true
		s.dropPart(desc.Digest)
	}
	s.mu.Unlock()
	if taken {
		return s.Create(desc)
	}

	w := &Writer{store: s, check: newChecker(desc), part: true}
	if w.openPart() == nil {
		return w, nil
	}

	s.mu.Lock()
	delete(s.writing, desc.Digest)
	s.mu.Unlock()

	// A part that cannot be read must not prevent the download.
	return s.Create(desc)
}

func (w *Writer) openPart() (err error) {
	w.f, err = os.OpenFile(w.store.partPath(w.check.desc.Digest), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, filePerm)
	if err != nil {
		return err
	}
	size, err := w.f.Seek(0, io.SeekEnd)
	if w.kept = size; err == nil && size > w.check.desc.Size {
		err = w.Restart()
	}
	if err != nil {
		w.f.Close()
	}
	return err
}

// Kept returns how many bytes an earlier download has left.
func (w *Writer) Kept() int64 { return w.kept }

// ReadKept reads the next bytes of what an earlier download has left, up to
// io.EOF. All of it must be read before anything is written: it is not verified,
// but hashed together with the rest.
func (w *Writer) ReadKept(p []byte) (int, error) {
	p = p[:min(int64(len(p)), w.kept-w.read)]
	if w.read == w.kept {
		return 0, io.EOF
	}
	n, err := w.f.ReadAt(p, w.read)
	if n > 0 {
		w.read += int64(n)
		return n, w.check.write(p[:n])
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return 0, fmt.Errorf("read partial download of blob %s: %w", w.check.desc.Digest, err)
}

// Restart discards what an earlier download has left, of which nothing must have
// been read yet.
func (w *Writer) Restart() error {
	w.kept = 0
	if err := w.f.Truncate(0); err != nil {
		return err
	}
	_, err := w.f.Seek(0, io.SeekStart)
	return err
}

// Keep ends the writer and leaves the part to the next download, unless it is too
// small. It does nothing after Publish or Discard.
func (w *Writer) Keep() {
	var st unix.Stat_t
	if w.done || !w.part || unix.Fstat(int(w.f.Fd()), &st) != nil || st.Size < minPart {
		w.Discard()
		return
	}

	w.done = true
	w.f.Close()

	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	delete(w.store.writing, w.check.desc.Digest)
	w.store.addPart(w.check.desc.Digest, &st)
}

// Demote turns a blob that is not needed at present into a part. One that is too
// small is removed from the store like by [Store.Detach].
func (s *Store) Demote(d digest.Digest) (string, error) {
	s.mu.Lock()
	b, ok := s.blobs[d]
	_, known := s.parts[d]
	if !ok || known || s.writing[d] || b.size < minPart {
		s.mu.Unlock()
		return s.Detach(d)
	}
	defer s.mu.Unlock()

	var st unix.Stat_t
	err := unix.Lstat(s.path(d), &st)
	if err == nil {
		err = os.Rename(s.path(d), s.partPath(d))
	}
	if err != nil {
		return "", fmt.Errorf("keep blob as a partial download: %w", err)
	}

	delete(s.blobs, d)
	s.usage = s.usage.sub(Usage{b.disk, 1})
	s.addPart(d, &st)
	return "", nil
}

// Parts returns the number of partial downloads that are not in progress, and the
// disk space that they use, in bytes.
func (s *Store) Parts() (n int, disk uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.parts {
		disk += p.disk
	}
	return len(s.parts), disk
}

// TrimParts moves parts to the temporary directory that have expired at the time
// now, then the oldest ones until the rest is within bounds. It returns their
// names there, under which the caller removes them.
func (s *Store) TrimParts(now time.Time) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.parts) == 0 {
		return nil, nil
	}

	var list []digest.Digest
	var total uint64
	for d, p := range s.parts {
		list = append(list, d)
		total += p.disk
	}

	slices.SortFunc(list, func(a, b digest.Digest) int {
		return cmp.Or(s.parts[a].grown.Compare(s.parts[b].grown), cmp.Compare(a, b))
	})

	limit, err := s.PartRoom(total)
	if err != nil {
		return nil, err
	}

	return s.detachParts(slices.DeleteFunc(list, func(d digest.Digest) bool {
		p := s.parts[d]
		// Abs, since the clock may have been set back.
		if now.Sub(p.grown).Abs() <= MaxPartAge && total <= limit {
			return true
		}
		total -= p.disk
		return false
	}))
}

// PartRoom returns how many bytes interrupted downloads may use, given that they
// use total now.
func (s *Store) PartRoom(total uint64) (uint64, error) {
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(int(s.dir.Fd()), &fsys); err != nil {
		return 0, fmt.Errorf("get free space for interrupted downloads: %w", err)
	}
	return partRoom(fsys.Bavail*uint64(fsys.Bsize), total), nil
}

// partRoom returns how much parts may use if they use total and free is left, all
// in bytes.
func partRoom(free, total uint64) uint64 {
	return min(maxParts, (free+total)/partShare)
}

// DropParts removes all parts like [Store.TrimParts].
func (s *Store) DropParts() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []digest.Digest
	for d := range s.parts {
		list = append(list, d)
	}
	return s.detachParts(list)
}

// detachParts moves parts to the temporary directory.
//
// Preconditions: mu is held.
func (s *Store) detachParts(list []digest.Digest) ([]string, error) {
	var names []string
	var errs []error
	for _, d := range list {
		name, err := s.setAside(s.partPath(d), d.Encoded())
		if err != nil {
			errs = append(errs, fmt.Errorf("remove part of blob: %w", err))
			continue
		}
		names = append(names, name)
		s.dropPart(d)
	}
	return names, errors.Join(errs...)
}

// setAside moves a file to the temporary directory and returns its name there, ""
// if it does not exist.
//
// Preconditions: mu is held.
func (s *Store) setAside(path, what string) (string, error) {
	// The number keeps names apart: a blob may be fetched and removed again before
	// its last remains are.
	s.detached++
	name := "gone-" + what + "-" + strconv.Itoa(s.detached)
	err := os.Rename(path, filepath.Join(s.TempDir(), name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return name, err
}
