package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crisp/runtime/durable"

	// The digest algorithms that blobs may be named by.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

const (
	blobsDir = "blobs"
	tempDir  = "tmp"

	dirPerm  = 0o700
	filePerm = 0o600

	checkBuffer = 256 << 10
)

// Usage is disk usage: allocated bytes and inodes.
type Usage struct{ Bytes, Inodes uint64 }

// Add returns the sum.
func (u Usage) Add(v Usage) Usage { return Usage{u.Bytes + v.Bytes, u.Inodes + v.Inodes} }

func (u Usage) sub(v Usage) Usage { return Usage{u.Bytes - v.Bytes, u.Inodes - v.Inodes} }

// Store is an OCI image layout. A single process owns it.
type Store struct {
	root string
	// dir is opened before the first write: syncfs only reports write-back errors
	// that occur after its file was opened.
	dir *os.File
	// serial is the serial number of the record as last read or written.
	serial uint64

	mu       sync.Mutex
	blobs    map[digest.Digest]blob
	parts    map[digest.Digest]part
	writing  map[digest.Digest]bool // parts that are being downloaded
	usage    Usage                  // of blobs and parts
	detached int                    // counts detached files, for their names
}

type blob struct {
	size int64
	disk uint64
	// doubtful means that a power cut may have torn it.
	doubtful bool
}

// Open opens the layout in the directory root, which it makes if need be. It does
// not sweep the temporary directory: see [Store.TempDir].
func Open(root string) (*Store, error) {
	s := &Store{root: root, blobs: map[digest.Digest]blob{}, parts: map[digest.Digest]part{}, writing: map[digest.Digest]bool{}}
	for _, dir := range []string{root, s.TempDir(), s.blobDir(digest.SHA256), filepath.Join(root, partsDir)} {
		if err := os.MkdirAll(dir, dirPerm); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}

	dir, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}

	s.dir = dir
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("open image store: %w", errors.Join(err, dir.Close()))
	}
	return s, nil
}

// prepare sweeps and completes the directory and lists its blobs and parts.
func (s *Store) prepare() error {
	if err := durable.RemoveTemps(s.root); err != nil {
		return err
	}
	layout := filepath.Join(s.root, ocispec.ImageLayoutFile)
	if _, err := os.Stat(layout); errors.Is(err, fs.ErrNotExist) {
		data := []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}` + "\n")
		if err := durable.WriteFile(layout, data, filePerm); err != nil {
			return err
		}
	}
	return errors.Join(s.scan(), s.scanParts())
}

// Close releases the directory.
func (s *Store) Close() error { return s.dir.Close() }

// Sync calls sync for the store's directory; it returns when everything written
// to its file system before the call is on disk.
func (s *Store) Sync(sync func(dir *os.File) error) error {
	if err := sync(s.dir); err != nil {
		return fmt.Errorf("sync image store: %w", err)
	}
	return nil
}

// scan lists the blobs on disk.
func (s *Store) scan() error {
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		entries, err := os.ReadDir(s.blobDir(algorithm))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}

		for _, e := range entries {
			d := digest.NewDigestFromEncoded(algorithm, e.Name())
			if d.Validate() != nil {
				continue
			}

			var st unix.Stat_t
			if err := unix.Lstat(s.path(d), &st); err != nil {
				return err
			}
			s.add(d, &st)
		}
	}
	return nil
}

// add adds a blob that is in place.
func (s *Store) add(d digest.Digest, st *unix.Stat_t) {
	if old, ok := s.blobs[d]; ok {
		s.usage = s.usage.sub(Usage{old.disk, 1})
	}
	b := blob{size: st.Size, disk: uint64(st.Blocks) * 512}
	s.blobs[d] = b
	s.usage = s.usage.Add(Usage{b.disk, 1})
}

// TempDir returns a directory on the same file system for incomplete data. A later
// process must remove what it finds there.
func (s *Store) TempDir() string { return filepath.Join(s.root, tempDir) }

func (s *Store) blobDir(a digest.Algorithm) string {
	return filepath.Join(s.root, blobsDir, a.String())
}

func (s *Store) path(d digest.Digest) string {
	return filepath.Join(s.blobDir(d.Algorithm()), d.Encoded())
}

// Usage returns the disk usage of blobs, and of partial downloads that are not in
// progress.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usage
}

// Has reports whether the blob that desc describes is present, complete and not
// doubtful.
func (s *Store) Has(desc ocispec.Descriptor) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blobs[desc.Digest]
	return ok && b.size == desc.Size && !b.doubtful
}

// Doubt marks whether a blob may be torn. A doubtful blob has to be read, which
// verifies it, before it counts as present.
func (s *Store) Doubt(d digest.Digest, doubtful bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.blobs[d]; ok {
		b.doubtful = doubtful
		s.blobs[d] = b
	}
}

// Doubtful reports whether a blob is present but may be torn.
func (s *Store) Doubtful(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blobs[d].doubtful
}

// DiskSize returns the disk space that a blob uses, in bytes, 0 if there is none.
func (s *Store) DiskSize(d digest.Digest) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blobs[d].disk
}

// Digests lists all blobs.
func (s *Store) Digests() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]digest.Digest, 0, len(s.blobs))
	for d := range s.blobs {
		list = append(list, d)
	}
	return list
}

// Reader opens a blob and verifies it while it is read: the read at its end fails
// unless everything that was read matches desc.
func (s *Store) Reader(desc ocispec.Descriptor) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	f, err := os.Open(s.path(desc.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, desc.Digest)
	}
	if err != nil {
		return nil, err
	}
	return &verifiedFile{f: f, check: newChecker(desc)}, nil
}

// Verify reads a blob and compares it with what desc describes.
func (s *Store) Verify(ctx context.Context, desc ocispec.Descriptor) error {
	r, err := s.Reader(desc)
	if err != nil {
		return err
	}
	defer r.Close()
	return ReadToEnd(ctx, r)
}

// ReadToEnd reads to the end, or until ctx ends.
func ReadToEnd(ctx context.Context, r io.Reader) error {
	buf := make([]byte, checkBuffer)
	for {
		_, err := r.Read(buf)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// Check reads a blob from the disk, bypassing the page cache, and compares it with
// its digest and with the size that it had when it was written or found.
func (s *Store) Check(ctx context.Context, d digest.Digest) (size int64, err error) {
	s.mu.Lock()
	b, ok := s.blobs[d]
	s.mu.Unlock()
	if !ok {
		return 0, fmt.Errorf("%w: %s", ErrNotFound, d)
	}

	r, err := s.Reader(ocispec.Descriptor{Digest: d, Size: b.size})
	if err != nil {
		return 0, err
	}
	defer r.Close()

	if f, ok := r.(*verifiedFile); ok {
		forget := func() { _ = unix.Fadvise(int(f.f.Fd()), 0, 0, unix.FADV_DONTNEED) } // only advice
		forget()
		defer forget()
	}

	err = ReadToEnd(ctx, r)
	if ctx.Err() != nil {
		return 0, err
	}
	return b.size, err
}

// ReadAll returns a small blob, verified.
func (s *Store) ReadAll(desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size < 0 || desc.Size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, limit %d", ErrMismatch, desc.Digest, desc.Size, limit)
	}
	r, err := s.Reader(desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()

	// ReadFrom reads up to io.EOF, where the reader verifies.
	buf := bytes.NewBuffer(make([]byte, 0, desc.Size+bytes.MinRead))
	_, err = buf.ReadFrom(r)
	return buf.Bytes(), err
}

// Detach moves a blob from the store to the temporary directory and returns its
// name there, under which the caller removes it: "" if there is no such blob.
func (s *Store) Detach(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("remove blob: %w", err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	name, err := s.setAside(s.path(d), d.Encoded())
	if err != nil {
		return "", fmt.Errorf("remove blob: %w", err)
	}

	if b, ok := s.blobs[d]; ok {
		delete(s.blobs, d)
		s.usage = s.usage.sub(Usage{b.disk, 1})
	}
	return name, nil
}

type verifiedFile struct {
	f     *os.File
	check *checker
}

func (v *verifiedFile) Read(p []byte) (int, error) {
	n, err := v.f.Read(p)
	if werr := v.check.write(p[:n]); werr != nil {
		return 0, werr
	}
	if errors.Is(err, io.EOF) {
		if verr := v.check.finish(); verr != nil {
			return n, verr
		}
	}
	return n, err
}

func (v *verifiedFile) Close() error { return v.f.Close() }
