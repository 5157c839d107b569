package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

func same(uid, gid uint32) (int, int) { return int(uid), int(gid) }

// layers makes directories for a writable layer and an image.
func layers(t *testing.T) (upper, lower string, d Diff) {
	t.Helper()
	upper, lower = t.TempDir(), t.TempDir()
	open := func(path string) *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	return upper, lower, Diff{Upper: open(upper), Lower: open(lower), IDs: same}
}

// listed writes a difference and returns its entries.
func listed(t *testing.T, d Diff) (entries map[string]*testkit.Entry, deleted []string) {
	t.Helper()
	var b bytes.Buffer
	deleted, err := d.Write(t.Context(), &b)
	if err != nil {
		t.Fatal(err)
	}

	return testkit.Entries(t, &b), deleted
}

// TestReplacedDirectories has directories that hide those of the image.
func TestReplacedDirectories(t *testing.T) {
	testkit.Root(t)
	upper, lower, d := layers(t)
	err := errors.Join(
		os.MkdirAll(filepath.Join(lower, "etc", "old"), 0o755), os.WriteFile(filepath.Join(lower, "etc", "kept"), nil, 0o644),
		os.WriteFile(filepath.Join(lower, "etc", "gone"), nil, 0o644), os.WriteFile(filepath.Join(lower, "file"), nil, 0o644),
		os.Symlink("/", filepath.Join(lower, "link")),
		os.MkdirAll(filepath.Join(upper, "etc"), 0o755), os.WriteFile(filepath.Join(upper, "etc", "kept"), []byte("new"), 0o644),
		unix.Mknod(filepath.Join(upper, "removed"), unix.S_IFCHR, 0),
	)
	for _, dir := range []string{"etc", "file", "link", "new"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(upper, dir), 0o755),
			unix.Setxattr(filepath.Join(upper, dir), "trusted.overlay.opaque", []byte("y"), 0))
	}
	if err != nil {
		t.Fatal(err)
	}

	entries, deleted := listed(t, d)
	slices.Sort(deleted)
	if want := []string{"/etc/gone", "/etc/old", "/removed"}; !slices.Equal(deleted, want) {
		t.Errorf("deleted %q, want %q", deleted, want)
	}
	for _, name := range []string{"etc/", "etc/kept", "file/", "link/", "new/"} {
		if entries[name] == nil {
			t.Errorf("no %s among %v", name, entries)
		}
	}
	for name, h := range entries {
		for key := range h.PAXRecords {
			if strings.Contains(key, "trusted.") {
				t.Errorf("%s has %s", name, key)
			}
		}
	}
}

// TestAttributes has what a tar archive can keep of a file, and what it cannot.
func TestAttributes(t *testing.T) {
	testkit.Root(t)
	upper, _, d := layers(t)
	file := filepath.Join(upper, "file")
	const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	err := errors.Join(
		os.WriteFile(file, []byte("x"), 0o600), os.Chown(file, 100007, 100008),
		unix.Setxattr(file, "security.capability", []byte(capability), 0),
		unix.Setxattr(file, "user.note", []byte("a\nb"), 0), unix.Setxattr(file, "user.a=b", []byte("c"), 0),
		os.WriteFile(filepath.Join(upper, "odd \xff\nname"), nil, 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}

	d.IDs = func(uid, gid uint32) (int, int) { return int(uid % 100000), int(gid % 100000) }
	entries, _ := listed(t, d)
	h := entries["file"]
	if h == nil || h.Uid != 7 || h.Gid != 8 || h.PAXRecords[xattrPrefix+"user.note"] != "a\nb" || h.PAXRecords[xattrPrefix+"security.capability"] != capability {
		t.Errorf("file: %+v", h)
	}
	if entries["odd \xff\nname"] == nil {
		t.Errorf("no file of an odd name in %v", entries)
	}
}

// TestManyAttributes gives a file more extended attributes than an entry of an archive
// can have, as XFS allows.
func TestManyAttributes(t *testing.T) {
	testkit.Root(t)
	disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, args := range [][]string{{"truncate", "-s", "320M", disk}, {"mkfs.xfs", "-q", disk}, {"mount", "-o", "loop", disk, dir}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			testkit.Skip(t, "a loop device and mkfs.xfs", fmt.Sprintf("%q: %v: %s", args, err, out))
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the disk: %v", err)
		}
	})

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	value := make([]byte, 60<<10)
	for i := range 9 {
		if err := unix.Setxattr(file, fmt.Sprintf("user.%d", i), value, 0); err != nil {
			t.Fatal(err)
		}
		upper, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer upper.Close()

		d := Diff{Upper: upper, Lower: upper, IDs: same}
		if fits := (i+1)*len(value) < maxAttributes; fits {
			entries, _ := listed(t, d)
			if got := len(entries["file"].PAXRecords[fmt.Sprintf("%suser.%d", xattrPrefix, i)]); got != len(value) {
				t.Errorf("attribute %d has %d bytes", i, got)
			}
		} else if _, err := d.Write(t.Context(), io.Discard); !errors.Is(err, ErrUnfit) {
			t.Errorf("%d attributes: error %v", i+1, err)
		}
	}
}

// deep calls do in a directory below upper whose path has as many names of 255 bytes,
// with the path of the directory, which ends in a slash.
func deep(upper string, names int, do func(dir string) error) error {
	dir, err := os.Open(upper)
	for i := 0; err == nil && i < names; i++ {
		at := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), strings.Repeat("d", 255))
		var next *os.File
		if err = os.Mkdir(at, 0o700); err == nil {
			next, err = os.Open(at)
		}
		err = errors.Join(err, dir.Close())
		dir = next
	}
	if err != nil {
		return err
	}
	return errors.Join(do(fmt.Sprintf("/proc/self/fd/%d/", dir.Fd())), dir.Close())
}

// TestUnfit has trees that would take too much.
func TestUnfit(t *testing.T) {
	testkit.Root(t)
	for name, make := range map[string]func(upper string) error{
		"deep": func(upper string) error {
			return os.MkdirAll(filepath.Join(upper, strings.Repeat("d/", maxDepth+2)), 0o755)
		},
		"holes": func(upper string) error {
			for i := range 3 {
				path := filepath.Join(upper, fmt.Sprint(i))
				if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, maxHoles/2)); err != nil {
					return err
				}
			}
			return nil
		},
		"long paths": func(upper string) error {
			return deep(upper, 20, func(dir string) error { return os.WriteFile(dir+"file", nil, 0o600) })
		},
	} {
		upper, _, d := layers(t)
		if err := make(upper); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Write(t.Context(), io.Discard); !errors.Is(err, ErrUnfit) || len(err.Error()) > 1000 {
			t.Errorf("%s: error %.2000v", name, err)
		}
	}

	upper, _, d := layers(t)
	if err := os.WriteFile(filepath.Join(upper, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	late := errors.New("too late")
	cancel(late)
	if _, err := d.Write(ctx, io.Discard); !errors.Is(err, late) {
		t.Errorf("after its end: %v", err)
	}
}

// TestManyNames has files with several names when no more of them are remembered.
func TestManyNames(t *testing.T) {
	testkit.Root(t)
	upper, _, d := layers(t)
	large := filepath.Join(upper, "large")
	f, err := os.Create(large)
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, 4<<20), f.Close(), os.Link(large, large+"2"))
	}
	if err != nil {
		t.Fatal(err)
	}

	full := map[[2]uint64]string{}
	for i := range uint64(maxLinks) {
		full[[2]uint64{1 << 63, i}] = ""
	}
	for name, c := range map[string]struct {
		differ
		want int64 // bytes that the names add
		fail bool
	}{
		"remembered":           {differ{linked: map[[2]uint64]string{}}, 0, false},
		"too many names":       {differ{linked: map[[2]uint64]string{}, names: maxNames - 1}, 0, true},
		"not remembered":       {differ{linked: full}, 8 << 20, false},
		"not remembered, full": {differ{linked: full, holes: maxHoles - 5<<20}, 0, true},
	} {
		w := c.differ
		w.Diff, w.ctx, w.tar = d, t.Context(), tar.NewWriter(io.Discard)
		if _, err := d.Upper.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if err := w.directory(d.Upper, nil); c.fail != errors.Is(err, ErrUnfit) || !c.fail && (err != nil || w.holes != c.want) {
			t.Errorf("%s: %v, %d bytes added, want %d", name, err, w.holes, c.want)
		}
	}
}

// TestArchiveAppearsWhole writes archives where something else is.
func TestArchiveAppearsWhole(t *testing.T) {
	s, err := NewStage(t.TempDir(), "stage")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Images(), "pages-1.img"), []byte("memory"), 0o600); err != nil {
		t.Fatal(err)
	}

	key, err := OpenKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "a.tar")
	for range 2 { // a second one replaces the first
		if _, err := write(t.Context(), s, file, key); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}

	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := write(t.Context(), s, filepath.Join(dir, "link"), key); !errors.Is(err, os.ErrExist) {
		t.Errorf("in place of a link: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := write(ctx, s, filepath.Join(dir, "late"), key); !errors.Is(err, context.Canceled) {
		t.Errorf("too late: %v", err)
	}

	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 2 {
		t.Errorf("there are %v, %v", names, err)
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}
