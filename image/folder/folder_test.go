package folder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"crisp/image"
	"crisp/test/testkit"
)

// importer imports archives whose content is the name of an image.
type importer struct {
	images map[string]bool
	calls  []string
	fail   error
}

func (i *importer) Import(_ context.Context, r io.Reader, o image.ImportOptions) ([]image.Imported, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	i.calls = append(i.calls, string(data))
	if i.fail != nil {
		return nil, i.fail
	}
	if !o.Pin {
		return nil, errors.New("not pinned")
	}
	i.images[string(data)] = true
	return []image.Imported{{Name: string(data), ID: "id"}}, nil
}

func (i *importer) Get(ref string) (image.Image, error) {
	if !i.images[ref] {
		return image.Image{}, image.ErrNotFound
	}
	return image.Image{ID: "id"}, nil
}

// took returns the archives that were imported since it was called last.
func (i *importer) took() string {
	calls := i.calls
	i.calls = nil
	slices.Sort(calls)
	return strings.Join(calls, " ")
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestFolder imports each archive once, whatever else is in the directory.
func TestFolder(t *testing.T) {
	testkit.Root(t)
	base := t.TempDir()
	dir, state := filepath.Join(base, "import"), filepath.Join(base, "imports.json")
	to := &importer{images: map[string]bool{}}
	f, now := New(dir, state, to), time.Now()
	want := func(when, names string) {
		t.Helper()
		for range 2 {
			if err := f.look(t.Context(), now); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		if got := to.took(); got != names {
			t.Errorf("%s: %q were imported, want %q", when, got, names)
		}
	}

	want("without a directory", "")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"a.tar", "b.tar.gz", "c.tgz", "d.tar.zst", "e.tzst"} {
		put(t, at(name), name[:1])
	}
	for _, name := range []string{"readme.txt", ".hidden.tar", "f.tar.part", "tar"} {
		put(t, at(name), name)
	}
	put(t, filepath.Join(base, "outside.tar"), "outside")
	if err := errors.Join(os.Mkdir(at("dir.tar"), 0o755), os.Symlink("../outside.tar", at("link.tar")), unix.Mkfifo(at("fifo.tar"), 0o644)); err != nil {
		t.Fatal(err)
	}
	want("at first", "a b c d e")
	want("later", "")

	put(t, at("a.tar"), "a2")
	if err := f.look(t.Context(), now); err != nil || to.took() != "" {
		t.Errorf("an archive that is being written is imported (%v)", err)
	}
	want("after a change", "a2")
	delete(to.images, "b")
	want("after an image was removed", "b")

	f = New(dir, state, to)
	want("after a restart", "")
	if err := os.Remove(at("c.tgz")); err != nil {
		t.Fatal(err)
	}
	want("after a removal", "")
	for _, text := range []string{"nonsense", "null"} {
		put(t, state, text)
		f = New(dir, state, to)
		want("without a memory", "a2 b d e")
	}
}

// TestFailures tries again what may pass, and leaves alone what is wrong until it changes.
func TestFailures(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	state := filepath.Join(t.TempDir(), "imports.json")
	to := &importer{images: map[string]bool{}}
	f, now := New(dir, state, to), time.Now()
	put(t, filepath.Join(dir, "a.tar"), "a")
	look := func(after time.Duration) string {
		t.Helper()
		if err := f.look(t.Context(), now.Add(after)); err != nil {
			t.Fatal(err)
		}
		return to.took()
	}

	to.fail = unix.ENOSPC
	if first, second, third, fourth := look(0), look(0), look(time.Second), look(retryTime); first != "" || second != "a" || third != "" || fourth != "a" {
		t.Errorf("with a full disk: %q, %q, %q, %q", first, second, third, fourth)
	}
	to.fail = fmt.Errorf("bad: %w", image.ErrInvalid)
	if first, second := look(3*retryTime), look(9*retryTime); first != "a" || second != "" {
		t.Errorf("a bad archive: %q, %q", first, second)
	}
	to.fail = nil
	f = New(dir, state, to)
	if first, second := look(0), look(0); first != "" || second != "a" {
		t.Errorf("after a restart: %q, %q", first, second)
	}
}

// TestUnsafe imports nothing that somebody else may have put there.
func TestUnsafe(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.tar"), "a")
	to := &importer{images: map[string]bool{}}
	f := New(dir, filepath.Join(t.TempDir(), "imports.json"), to)

	for _, change := range []func() error{
		func() error { return os.Chmod(dir, 0o777) }, func() error { return os.Chmod(dir, 0o775) },
		func() error { return errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, 1000, 0)) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := f.look(t.Context(), time.Now()); !errors.Is(err, ErrUnsafe) {
				t.Errorf("error %v", err)
			}
		}
	}
	if got := to.took(); got != "" {
		t.Errorf("%q were imported", got)
	}
}

// TestUnsafeArchive has an archive that somebody else can change, as after mv, until
// it is root's.
func TestUnsafeArchive(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "a.tar")
	put(t, path, "a")
	to := &importer{images: map[string]bool{}}
	f, now := New(dir, filepath.Join(t.TempDir(), "imports.json"), to), time.Now()
	look := func() string {
		t.Helper()
		for range 3 {
			now = now.Add(retryTime)
			if err := f.look(t.Context(), now); err != nil {
				t.Fatal(err)
			}
		}
		return to.took()
	}

	for _, change := range []func() error{
		func() error { return os.Chown(path, 1000, 1000) },
		func() error { return errors.Join(os.Chown(path, 0, 0), os.Chmod(path, 0o664)) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if got := look(); got != "" || !f.known["a.tar"].refused {
			t.Errorf("%q were imported, %+v", got, f.known)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := look(); got != "a" {
		t.Errorf("%q were imported of root's", got)
	}
}

// TestWatch ends with its context.
func TestWatch(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a.tar"), "a")
	synctest.Test(t, func(t *testing.T) {
		to := &importer{images: map[string]bool{}}
		f := New(dir, filepath.Join(dir, ".state"), to)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		f.Watch(ctx)
		if got := to.took(); got != "a" {
			t.Errorf("%q were imported", got)
		}
	})
}
