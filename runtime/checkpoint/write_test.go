package checkpoint

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// TestArchiveTakesMemory has memory come before the other files, in pieces, as CRIU writes it.
func TestArchiveTakesMemory(t *testing.T) {
	key := newKey(t)
	s, err := NewStage(t.TempDir(), "stage")
	for name, text := range map[string]string{
		"config.dump": smallConfig, "spec.dump": smallSpec, "status": `{"StartedAt":17}`, "deleted.files": `["/etc/group"]`,
		"checkpoint/inventory.img": "not looked at", "rootfs-diff.tar": strings.Repeat("files", 4<<20),
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(s.dir(), name), []byte(text), 0o600))
	}
	file := filepath.Join(t.TempDir(), "a.tar")
	a, aerr := NewArchive(file)
	if err = errors.Join(err, aerr); err != nil {
		t.Fatal(err)
	}
	defer a.Close()

	memory := map[string][]byte{
		"pages-1.img": bytes.Repeat([]byte("0123456789abcde\n"), 3<<16), "pages-2.img": {}, "pages-3.img": []byte("small"),
		"pages-4.img": bytes.Repeat([]byte("x"), 5<<20+1),
	}
	for i := range len(memory) {
		name := fmt.Sprintf("pages-%d.img", i+1)
		to, at, err := a.Next(name)
		if err != nil {
			t.Fatal(err)
		}
		for part := range chunks(memory[name], 1<<20) {
			if _, err := to.WriteAt(part, at); err != nil {
				t.Fatal(err)
			}
			at += int64(len(part))
			a.Moved(int64(len(part)))
		}
	}
	digest, err := s.Write(t.Context(), a, key)
	if err != nil {
		t.Fatal(err)
	}

	archive, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	entries := testkit.Entries(t, bytes.NewReader(archive))
	for name, want := range memory {
		if e := entries["checkpoint/"+name]; e == nil || !bytes.Equal(e.Data, want) {
			t.Errorf("%s is not what was saved", name)
		}
	}
	u, err := unpack(t, archive, Terms{Bytes: 1 << 30, From: Policy{keys: []PublicKey{key.Public()}}, Digest: digest})
	if err != nil || u.Signer != key.Public() {
		t.Fatalf("%v, %v", u, err)
	}
}

func chunks(b []byte, size int) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			n := min(size, len(b))
			if !yield(b[:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// TestLargeEntry has more memory than the usual header of an archive can say: 9 GiB, of
// which there is nothing on the disk.
func TestLargeEntry(t *testing.T) {
	a, err := NewArchive(filepath.Join(t.TempDir(), "a.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()

	const size = 9<<30 + 7
	to, at, err := a.Next("pages-1.img")
	if err == nil {
		err = to.Truncate(at + size)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	a.closed = true // nobody hashes it, which would take a while
	a.mu.Unlock()
	a.Moved(size)
	if err := a.endEntry(); err != nil {
		t.Fatal(err)
	}
	if a.end%tarBlock != 0 || a.end < at+size {
		t.Errorf("it ends at %d", a.end)
	}
	if _, err := a.f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{0, size} {
		if h, err := tar.NewReader(a.f).Next(); err != nil || h.Size != want {
			t.Errorf("%+v, %v, want %d bytes", h, err, want)
		}
		if _, err := a.f.Seek(tarBlock, io.SeekStart); err != nil {
			t.Fatal(err)
		}
	}
}

// TestArchiveIsGivenUp closes an archive in the middle of its memory, and begins others that
// have no place.
func TestArchiveIsGivenUp(t *testing.T) {
	dir := t.TempDir()
	a, err := NewArchive(filepath.Join(dir, "a.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Next("pages-1.img"); err != nil {
		t.Fatal(err)
	}

	a.Moved(1) // which is not there
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("left %v, %v", names, err)
	}
	if _, err := NewArchive(filepath.Join(dir, "none", "a.tar")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("nowhere: %v", err)
	}
}

// TestArchiveCannotBeRead is told of memory that is not there: what was signed would not be
// what is in the archive.
func TestArchiveCannotBeRead(t *testing.T) {
	s, err := NewStage(t.TempDir(), "stage")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a, err := NewArchive(filepath.Join(dir, "a.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, _, err := a.Next("pages-1.img"); err != nil {
		t.Fatal(err)
	}

	a.Moved(100)
	if _, err := s.Write(t.Context(), a, newKey(t)); !errors.Is(err, io.EOF) {
		t.Errorf("error %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("left %v, %v", names, err)
	}
}
