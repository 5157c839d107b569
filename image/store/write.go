package store

import (
	"fmt"
	"hash"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// checker compares a stream with a descriptor.
type checker struct {
	desc ocispec.Descriptor
	hash hash.Hash
	size int64
}

func newChecker(desc ocispec.Descriptor) *checker {
	return &checker{desc: desc, hash: desc.Digest.Algorithm().Hash()}
}

func (c *checker) write(p []byte) error {
	c.size += int64(len(p))
	if c.size > c.desc.Size {
		return fmt.Errorf("%w: %s is longer than %d bytes", ErrMismatch, c.desc.Digest, c.desc.Size)
	}
	c.hash.Write(p)
	return nil
}

func (c *checker) finish() error {
	if c.size != c.desc.Size {
		return fmt.Errorf("%w: %s has %d bytes, want %d", ErrMismatch, c.desc.Digest, c.size, c.desc.Size)
	}
	if got := digest.NewDigest(c.desc.Digest.Algorithm(), c.hash); got != c.desc.Digest {
		return fmt.Errorf("%w: %s has digest %s", ErrMismatch, c.desc.Digest, got)
	}
	return nil
}

// Writer writes a new blob: call Write, Finish, Publish. Discard ends it at any
// point and does nothing after Publish.
type Writer struct {
	store *Store
	check *checker
	f     *os.File
	done  bool

	// part means that f is a part, which survives this process. kept bytes of it
	// were there before; read of these have been hashed.
	part       bool
	kept, read int64
}

// Create begins a blob, whose content must match desc.
func (s *Store) Create(desc ocispec.Descriptor) (*Writer, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("write blob: %w", err)
	}
	f, err := os.CreateTemp(s.TempDir(), "blob-*")
	if err != nil {
		return nil, fmt.Errorf("write blob: %w", err)
	}
	return &Writer{store: s, check: newChecker(desc), f: f}, nil
}

// Write appends to the blob. More bytes than the descriptor states are an error.
func (w *Writer) Write(p []byte) (int, error) {
	if err := w.check.write(p); err != nil {
		return 0, err
	}
	n, err := w.f.Write(p)
	if err != nil {
		return n, fmt.Errorf("write blob: %w", err)
	}
	return n, nil
}

// Finish verifies what was written.
func (w *Writer) Finish() error {
	if err := w.check.finish(); err != nil {
		return err
	}
	return w.f.Chmod(filePerm)
}

// Publish moves the blob, which Finish has verified, into the store.
func (w *Writer) Publish() error {
	d := w.check.desc.Digest
	var st unix.Stat_t
	if err := unix.Fstat(int(w.f.Fd()), &st); err != nil {
		return fmt.Errorf("publish blob %s: %w", d, err)
	}

	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	if d.Algorithm() != digest.SHA256 {
		if err := os.MkdirAll(w.store.blobDir(d.Algorithm()), dirPerm); err != nil {
			return fmt.Errorf("publish blob %s: %w", d, err)
		}
	}

	if err := os.Rename(w.f.Name(), w.store.path(d)); err != nil {
		return fmt.Errorf("publish blob %s: %w", d, err)
	}
	w.done = true
	w.store.add(d, &st)

	if w.part {
		delete(w.store.writing, d)
	}
	return w.f.Close()
}

// Discard drops a blob that is not published.
func (w *Writer) Discard() {
	if w.done {
		return
	}
	w.done = true
	w.f.Close()

	err := os.Remove(w.f.Name()) // swept at the next start
	if !w.part {
		return
	}

	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	delete(w.store.writing, w.check.desc.Digest)
	var st unix.Stat_t
	if err != nil && unix.Lstat(w.f.Name(), &st) == nil { // as on a disk that has become read-only
		w.store.addPart(w.check.desc.Digest, &st)
	}
}
