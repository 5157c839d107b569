package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// content is a blob of 3 MiB, a different one for each letter.
func content(letter string) (ocispec.Descriptor, []byte) {
	data := bytes.Repeat([]byte(letter), 3<<20)
	return ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, data
}

// leave begins a blob and keeps n bytes of it.
func leave(t *testing.T, s *Store, letter string, n int) digest.Digest {
	t.Helper()
	desc, data := content(letter)
	w, err := s.Resume(desc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data[:n]); err != nil {
		t.Fatal(err)
	}
	w.Keep()
	return desc.Digest
}

func wantParts(t *testing.T, s *Store, n int) {
	t.Helper()
	got, disk := s.Parts()
	files, err := os.ReadDir(filepath.Join(s.root, partsDir))
	if got != n || len(files) != n || err != nil {
		t.Errorf("%d parts in %d files, %v; want %d", got, len(files), err, n)
	}
	if u := s.Usage(); u.Inodes != uint64(n) || u.Bytes != disk || (n > 0) != (disk > 0) {
		t.Errorf("usage %+v with %d parts of %d bytes", u, n, disk)
	}
}

func TestResume(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	leave(t, s, "a", 2<<20)
	leave(t, s, "b", minPart-1) // not worth it
	wantParts(t, s, 1)

	for range 2 {
		s = openStore(t, root)
		wantParts(t, s, 1)
	}

	desc, data := content("a")
	w, err := s.Resume(desc)
	if err != nil || w.Kept() != 2<<20 {
		t.Fatalf("%d bytes kept, %v", w.Kept(), err)
	}

	if n, _ := s.Parts(); n != 0 {
		t.Error("a part counts while it is written")
	}

	// Whoever comes second has a file of its own.
	second, err := s.Resume(desc)
	if err != nil || second.Kept() != 0 {
		t.Fatalf("%d bytes kept for two, %v", second.Kept(), err)
	}

	if _, err := second.Write(data); err != nil {
		t.Fatal(err)
	}
	second.Keep()
	if _, err := io.Copy(io.Discard, kept{w}); err != nil {
		t.Fatal(err)
	}

	if _, err := w.Write(data[2<<20:]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Finish(), w.Publish()); err != nil {
		t.Fatal(err)
	}

	w.Keep()
	if got, err := s.ReadAll(desc, desc.Size); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}

	if n, _ := s.Parts(); n != 0 || !s.Has(desc) {
		t.Errorf("%d parts beside the blob", n)
	}
	if left, _ := os.ReadDir(s.TempDir()); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// kept reads what is kept.
type kept struct{ w *Writer }

func (k kept) Read(p []byte) (int, error) { return k.w.ReadKept(p) }

// TestResumeWrong has to find that what is kept is not the blob's beginning.
func TestResumeWrong(t *testing.T) {
	s := openStore(t, t.TempDir())
	d := leave(t, s, "a", 2<<20)
	if err := os.WriteFile(s.partPath(d), bytes.Repeat([]byte("x"), 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}

	desc, data := content("a")
	w, err := s.Resume(desc)
	if err != nil {
		t.Fatal(err)
	}

	if _, err := io.Copy(io.Discard, kept{w}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data[2<<20:]); err != nil {
		t.Fatal(err)
	}

	if err := w.Finish(); !errors.Is(err, ErrMismatch) {
		t.Errorf("error %v, want %v", err, ErrMismatch)
	}
	w.Discard()
	wantParts(t, s, 0)
}

// TestTrimParts takes parts away by their age and their size, the oldest first.
func TestTrimParts(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		ages []time.Duration // of parts a, b and so on
		late time.Duration   // how much later it is looked
		left []string
	}{
		"young":                  {[]time.Duration{0, time.Hour, 23 * time.Hour}, 0, []string{"a", "b", "c"}},
		"some too old":           {[]time.Duration{0, 25 * time.Hour, 23 * time.Hour}, 0, []string{"a", "c"}},
		"later":                  {[]time.Duration{0, time.Hour, 23 * time.Hour}, 2 * time.Hour, []string{"a", "b"}},
		"all too old":            {[]time.Duration{0, time.Hour, 23 * time.Hour}, 25 * time.Hour, nil},
		"the clock was put back": {[]time.Duration{-25 * time.Hour, 0}, 0, []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := openStore(t, root)
			for i, age := range c.ages {
				d := leave(t, s, string(rune('a'+i)), 2<<20)
				if err := os.Chtimes(s.partPath(d), now.Add(-age), now.Add(-age)); err != nil {
					t.Fatal(err)
				}
			}

			s = openStore(t, root)
			gone, err := s.TrimParts(now.Add(c.late))
			if err != nil || len(gone) != len(c.ages)-len(c.left) {
				t.Errorf("gone %q, %v", gone, err)
			}

			for _, name := range gone {
				if _, err := os.Stat(filepath.Join(s.TempDir(), name)); err != nil {
					t.Error(err)
				}
			}

			wantParts(t, s, len(c.left))
			for _, letter := range c.left {
				desc, _ := content(letter)
				if _, err := os.Stat(s.partPath(desc.Digest)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestPartRoom(t *testing.T) {
	const gb = 1 << 30
	for _, c := range []struct{ free, total, want uint64 }{
		{0, 0, 0}, {0, 4 * gb, gb}, {100 * gb, 0, 25 * gb}, {90 * gb, 10 * gb, 25 * gb}, {3 * gb, 5 * gb, 2 * gb}, {4000 * gb, 0, 64 * gb},
	} {
		if got := partRoom(c.free, c.total); got != c.want {
			t.Errorf("%d free beside parts of %d: room for %d, want %d", c.free, c.total, got, c.want)
		}
	}
}

// TestDemote makes parts of blobs that are worth it.
func TestDemote(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, root)
	desc, data := content("a")
	small := describe("some content")
	if err := errors.Join(put(t, s, desc, string(data)), put(t, s, small, "some content")); err != nil {
		t.Fatal(err)
	}

	for d, gone := range map[digest.Digest]bool{desc.Digest: false, small.Digest: true, digest.FromString("not here"): false} {
		if name, err := s.Demote(d); err != nil || (name != "") != gone {
			t.Errorf("%s: %q, %v", d, name, err)
		}
	}

	wantParts(t, s, 1)
	w, err := s.Resume(desc)
	if err != nil || w.Kept() != desc.Size || s.Has(desc) {
		t.Fatalf("%d bytes kept, %v", w.Kept(), err)
	}

	if _, err := io.Copy(io.Discard, kept{w}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Finish(), w.Publish()); err != nil || !s.Has(desc) {
		t.Error(err)
	}
}
