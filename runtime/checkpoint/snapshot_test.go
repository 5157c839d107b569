package checkpoint

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// settled makes a snapshot of a stage with the files that a saved container has.
func settled(t *testing.T) (dir string) {
	t.Helper()
	parent := t.TempDir()
	s, err := NewStage(parent, "stage")
	if err != nil {
		t.Fatal(err)
	}

	err = s.WriteStreams(Streams{"pipe:[1]", "pipe:[2]", ""})
	for name, text := range map[string]string{
		configFile: `{"id": "c", "name": "app"}`, specFile: `{"process": {}, "linux": {}}`, diffFile: "diff", containerLog: "log", "dump.log": "criu",
		"checkpoint/inventory.img": "inventory", "checkpoint/pages-1.img": "pages", "checkpoint/irmap-cache": "cache",
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(s.dir(), name), []byte(text), 0o600))
	}

	dir = filepath.Join(parent, "kept")
	if err := errors.Join(err, s.Settle(t.Context(), dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stage is still there: %v", err)
	}
	return dir
}

// filesOf lists the regular files below a directory.
func filesOf(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// TestSnapshot makes two checkpoints of a snapshot. What becomes of one is nothing to the
// other.
func TestSnapshot(t *testing.T) {
	dir := settled(t)
	want := []string{"checkpoint/inventory.img", "checkpoint/pages-1.img", configFile, streamsFile, diffFile, specFile}
	slices.Sort(want)
	if got := filesOf(t, dir); !slices.Equal(got, want) {
		t.Errorf("a snapshot has %q, want %q", got, want)
	}

	s, parent := OpenSnapshot(dir), filepath.Join(filepath.Dir(dir), "clones")
	var clones []*Unpacked
	for _, name := range []string{"a", "b"} {
		u, err := s.Clone(t.Context(), parent, name)
		if err != nil {
			t.Fatal(err)
		}
		if got := filesOf(t, filepath.Join(parent, name)); !slices.Equal(got, want) || u.Config.Name != "app" {
			t.Errorf("a clone of %q has %q, want %q", u.Config.Name, got, want)
		}
		clones = append(clones, u)
	}

	// As criu.SetFilter replaces an image.
	other := filepath.Join(parent, "new")
	if err := errors.Join(os.WriteFile(other, []byte("changed"), 0o600), os.Rename(other, filepath.Join(clones[0].Images(), "pages-1.img"))); err != nil {
		t.Fatal(err)
	}
	if err := clones[0].Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, images := range []string{clones[1].Images(), filepath.Join(dir, ImagesDir)} {
		if text, err := os.ReadFile(filepath.Join(images, "pages-1.img")); err != nil || string(text) != "pages" {
			t.Errorf("%s: %q, %v", images, text, err)
		}
	}
	list, err := ReadStreams(filepath.Join(parent, "b"))
	if want := (Streams{"pipe:[1]", "pipe:[2]", ""}); err != nil || list != want {
		t.Errorf("streams: %q, %v, want %q", list, err, want)
	}
	if size, err := s.Size(); err != nil || size < int64(len(want))*sectorSize {
		t.Errorf("it takes %d bytes, %v", size, err)
	}
}

// TestSnapshotErrors has snapshots that cannot be cloned, of which nothing is left.
func TestSnapshotErrors(t *testing.T) {
	ended, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the pod is removed")
	cancel(why)
	for _, test := range []struct {
		name   string
		ctx    context.Context
		change func(dir string) error
		want   error
	}{
		{"removed", t.Context(), os.RemoveAll, fs.ErrNotExist},
		{"damaged", t.Context(), func(dir string) error { return os.Truncate(filepath.Join(dir, configFile), 3) }, ErrInvalid},
		{"without an inventory", t.Context(), func(dir string) error { return os.Remove(filepath.Join(dir, "checkpoint/inventory.img")) }, ErrInvalid},
		{"ended", ended, func(string) error { return nil }, why},
	} {
		dir := settled(t)
		if err := test.change(dir); err != nil {
			t.Fatal(err)
		}

		parent := filepath.Join(filepath.Dir(dir), "clones")
		if _, err := OpenSnapshot(dir).Clone(test.ctx, parent, "a"); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", test.name, left, err)
		}
	}
}
