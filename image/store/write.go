package store

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crisp/runtime/durable"
)

// flushEvery is how much of a blob may wait in memory: writing out early makes
// the sync at its end short.
const flushEvery = 8 << 20

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
		return fmt.Errorf("%w: %s has %d bytes, not %d", ErrMismatch, c.desc.Digest, c.size, c.desc.Size)
	}
	if got := digest.NewDigest(c.desc.Digest.Algorithm(), c.hash); got != c.desc.Digest {
		return fmt.Errorf("%w: %s has digest %s", ErrMismatch, c.desc.Digest, got)
	}
	return nil
}

// Writer writes a new blob: Write, Finish, then, after [Store.Sync], Publish.
// Discard ends it at any point and does nothing after Publish.
type Writer struct {
	store   *Store
	check   *checker
	f       *os.File
	flushed int64
	done    bool
}

// Create begins a blob that must turn out to be what desc describes.
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

// Write takes the next bytes. More than the descriptor promises is an error.
func (w *Writer) Write(p []byte) (int, error) {
	if err := w.check.write(p); err != nil {
		return 0, err
	}
	n, err := w.f.Write(p)
	if err != nil {
		return n, fmt.Errorf("write blob: %w", err)
	}
	if w.check.size-w.flushed >= flushEvery {
		// Only a hint, and not known to every file system.
		_ = unix.SyncFileRange(int(w.f.Fd()), w.flushed, w.check.size-w.flushed, unix.SYNC_FILE_RANGE_WRITE)
		w.flushed = w.check.size
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

// Publish gives the blob its name. What was written must have been verified
// and synced before.
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
	return w.f.Close()
}

// Discard drops a blob that is not published.
func (w *Writer) Discard() {
	if w.done {
		return
	}
	w.done = true
	w.f.Close()
	os.Remove(w.f.Name()) //nolint:errcheck // swept at the next start
}

// Sync returns when everything written to the store's file system before the
// call is on disk. Calls that come together share the work.
func (s *Store) Sync(ctx context.Context) error { return s.syncer.sync(ctx) }

// SyncNames makes the names of published blobs durable.
func (s *Store) SyncNames() error {
	var errs []error
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		if err := durable.SyncDir(s.blobDir(a)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// syncer runs one syncfs at a time. Who asks while one runs waits for the
// next, which begins after all their writes.
type syncer struct {
	dir string

	mu      sync.Mutex
	running bool
	next    *syncRound
}

type syncRound struct {
	done chan struct{}
	err  error
}

func (s *syncer) sync(ctx context.Context) error {
	s.mu.Lock()
	if s.next == nil {
		s.next = &syncRound{done: make(chan struct{})}
	}
	round := s.next
	lead := !s.running
	s.running = true
	s.mu.Unlock()
	if lead {
		s.lead()
	}
	select {
	case <-round.done:
		return round.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lead runs rounds until nobody waits for one.
func (s *syncer) lead() {
	for {
		s.mu.Lock()
		round := s.next
		s.next = nil
		if round == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		round.err = syncFS(s.dir)
		close(round.done)
	}
}

func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync image store: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync image store: %w", err)
	}
	return nil
}
