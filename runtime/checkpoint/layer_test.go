package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// layerOf writes a layer and returns its entries.
func layerOf(t *testing.T, d Diff) (entries map[string]*testkit.Entry, changed bool) {
	t.Helper()
	if _, err := d.Upper.Seek(0, io.SeekStart); err != nil { // of its names
		t.Fatal(err)
	}
	var b bytes.Buffer
	changed, err := d.WriteLayer(t.Context(), &b)
	if err != nil {
		t.Fatal(err)
	}
	return testkit.Entries(t, &b), changed
}

// TestLayer has what a layer says of an image's files.
func TestLayer(t *testing.T) {
	testkit.Root(t)
	upper, lower, d := layers(t)
	if entries, changed := layerOf(t, d); changed || len(entries) > 0 {
		t.Errorf("without a change there are %v, %v", entries, changed)
	}

	at := func(name string) string { return filepath.Join(upper, name) }
	err := errors.Join(
		os.MkdirAll(filepath.Join(lower, "etc", "old"), 0o755), os.WriteFile(filepath.Join(lower, "file"), nil, 0o644),
		os.WriteFile(filepath.Join(lower, "socket"), nil, 0o644), os.Symlink("/", filepath.Join(lower, "link")), os.Mkdir(filepath.Join(lower, "d"), 0o755),
		os.MkdirAll(at("d"), 0o755), unix.Mknod(at("d/gone"), unix.S_IFCHR, 0), unix.Mknod(at("removed"), unix.S_IFCHR, 0),
		unix.Mknod(at("socket"), unix.S_IFSOCK, 0), unix.Mknod(at("new-socket"), unix.S_IFSOCK, 0), unix.Mknod(at("fifo"), unix.S_IFIFO, 0),
		unix.Mknod(at("null"), unix.S_IFCHR, int(unix.Mkdev(1, 3))), os.Symlink("/etc/passwd", at("passwd")),
		os.WriteFile(at("one"), []byte("1"), 0o600), os.Link(at("one"), at("two")), unix.Chmod(at("one"), 0o4755),
	)
	for _, dir := range []string{"etc", "file", "link", "new"} {
		err = errors.Join(err, os.MkdirAll(at(dir), 0o755), unix.Setxattr(at(dir), "trusted.overlay.opaque", []byte("y"), 0))
	}
	if err != nil {
		t.Fatal(err)
	}

	entries, changed := layerOf(t, d)
	want := map[string]byte{
		"d/": tar.TypeDir, "d/.wh.gone": tar.TypeReg, ".wh.removed": tar.TypeReg, ".wh.socket": tar.TypeReg, "fifo": tar.TypeFifo, "null": tar.TypeChar,
		"passwd": tar.TypeSymlink, "one": tar.TypeReg, "two": tar.TypeReg, // one of them is a link
		"etc/": tar.TypeDir, "etc/.wh..wh..opq": tar.TypeReg, "file/": tar.TypeDir, "link/": tar.TypeDir, "new/": tar.TypeDir,
	}
	if !changed || !slices.Equal(slices.Sorted(maps.Keys(entries)), slices.Sorted(maps.Keys(want))) {
		t.Fatalf("the layer has %q", slices.Sorted(maps.Keys(entries)))
	}
	for name, e := range entries {
		isLink := e.Typeflag == tar.TypeLink && (name == "one" || name == "two") && (e.Linkname == "one" || e.Linkname == "two")
		if e.Typeflag != want[name] && !isLink || strings.HasPrefix(filepath.Base(name), whiteoutPrefix) && e.Size != 0 {
			t.Errorf("%s is %+v", name, e.Header)
		}
	}
	if a, b := entries["one"], entries["two"]; a.Typeflag == b.Typeflag || string(a.Data)+string(b.Data) != "1" || a.Mode|b.Mode != 0o4755 {
		t.Errorf("a file with two names is %+v and %+v", a.Header, b.Header)
	}
	if n := entries["null"]; n.Devmajor != 1 || n.Devminor != 3 {
		t.Errorf("the device is %+v", n.Header)
	}
}

// TestRootOfLayer changes the root directory.
func TestRootOfLayer(t *testing.T) {
	testkit.Root(t)
	for name, change := range map[string]func(upper string) error{
		"mode":      func(upper string) error { return unix.Chmod(upper, 0o1711) },
		"owner":     func(upper string) error { return os.Chown(upper, 100007, 100000) },
		"attribute": func(upper string) error { return unix.Setxattr(upper, "user.note", []byte("x"), 0) },
	} {
		upper, _, d := layers(t)
		d.IDs = func(uid, gid uint32) (int, int) { return int(uid % 100000), int(gid % 100000) }
		if err := change(upper); err != nil {
			t.Fatal(err)
		}

		entries, changed := layerOf(t, d)
		if h := entries["./"]; !changed || h == nil || h.Typeflag != tar.TypeDir {
			t.Errorf("%s: the layer has %v", name, entries)
		} else if name == "owner" && h.Uid != 7 || name == "mode" && h.Mode != 0o1711 {
			t.Errorf("%s: the root is %+v", name, h.Header)
		}
	}
}

// TestUnfitLayer has files that a checkpoint can have, and a layer cannot.
func TestUnfitLayer(t *testing.T) {
	testkit.Root(t)
	for name, change := range map[string]func(upper string) error{
		"forged": func(upper string) error { return os.WriteFile(filepath.Join(upper, ".wh.sh"), nil, 0o600) },
		"deep": func(upper string) error {
			return os.MkdirAll(filepath.Join(upper, strings.Repeat("d/", layerDepth+1)), 0o755)
		},
		"of long path": func(upper string) error {
			return deep(upper, 15, func(dir string) error { return os.WriteFile(dir+strings.Repeat("f", 250), nil, 0o600) })
		},
	} {

		upper, _, d := layers(t)
		if err := change(upper); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Write(t.Context(), io.Discard); err != nil {
			t.Errorf("%s: a checkpoint: %v", name, err)
		}
		if _, err := d.Upper.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteLayer(t.Context(), io.Discard); !errors.Is(err, ErrUnfit) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestLayerOfRunning archives files while they are replaced, removed, shortened and made
// into what must not be opened.
func TestLayerOfRunning(t *testing.T) {
	testkit.Root(t)
	upper, _, d := layers(t)
	ctx, stop := context.WithCancel(t.Context())
	at := func(name string) string { return filepath.Join(upper, name) }
	if err := os.WriteFile(at("always"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}

	done := make(chan error)
	go func() {
		var err error
		for i := 0; ctx.Err() == nil && err == nil; i++ {
			// A FIFO would block whoever opens it, a device of no driver would fail.
			err = errors.Join(
				os.WriteFile(at("tmp"), bytes.Repeat([]byte{'x'}, i%3*1000), 0o600), os.Rename(at("tmp"), at("always")), os.Truncate(at("always"), 1),
				unix.Mknod(at("odd"), unix.S_IFIFO, 0), os.Remove(at("odd")), unix.Mknod(at("odd"), unix.S_IFBLK, int(unix.Mkdev(4000, 1))), os.Remove(at("odd")),
				os.WriteFile(at("odd"), make([]byte, 100_000), 0o600), os.Truncate(at("odd"), 10), os.Remove(at("odd")),
				os.Symlink("/etc/shadow", at("odd")), os.Remove(at("odd")), os.Mkdir(at("odd"), 0o700), os.Remove(at("odd")),
			)
		}
		done <- err
	}()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for i := range 300 {
		if entries, _ := layerOf(t, d); entries["always"] == nil && entries["tmp"] == nil {
			t.Fatalf("round %d: a file that there always is is not among %v", i, entries)
		}
	}
}

// TestShortened archives a file that is shorter than it was.
func TestShortened(t *testing.T) {
	for name, c := range map[string]struct {
		was  int64
		fits bool
	}{"little": {10, true}, "much": {maxHoles + 10, false}} {
		var b bytes.Buffer
		w := differ{Diff: Diff{IDs: same}, ctx: t.Context(), tar: tar.NewWriter(&b)}
		err := w.tar.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: c.was})
		if err == nil {
			err = w.body(strings.NewReader("abc"), c.was)
		}

		if !c.fits {
			if !errors.Is(err, ErrUnfit) {
				t.Errorf("%s: error %v", name, err)
			}
			continue
		}
		if err = errors.Join(err, w.tar.Close()); err != nil {
			t.Fatal(err)
		}
		if got := string(testkit.Entries(t, &b)["f"].Data); got != "abc"+strings.Repeat("\x00", 7) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// BenchmarkWriteLayer archives a directory of 1000 files of 4 KiB.
func BenchmarkWriteLayer(b *testing.B) {
	dir := b.TempDir()
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, 4096), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		upper, err := os.Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := (Diff{Upper: upper, Lower: upper, IDs: same}).WriteLayer(b.Context(), io.Discard); err != nil {
			b.Fatal(err)
		}
		upper.Close()
	}
}
