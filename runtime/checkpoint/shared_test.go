package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// sharedMemory mounts a /dev/shm with room for a number of bytes.
func sharedMemory(t testing.TB, size int) (path string, root *os.File) {
	t.Helper()
	path = t.TempDir()
	if err := unix.Mount("shm", path, "tmpfs", 0, fmt.Sprintf("mode=1777,size=%d,nr_inodes=100", size)); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(root.Close(), unix.Unmount(path, 0)); err != nil {
			t.Error(err)
		}
	})
	return path, root
}

// TestShared saves a /dev/shm with everything that is in one, and fills another with it.
func TestShared(t *testing.T) {
	testkit.Root(t)
	from, root := sharedMemory(t, 1<<20)
	in := func(path string) string { return filepath.Join(from, path) }
	when := time.Unix(1_000_000_000, 0)
	sparse, err := os.Create(in("sparse"))
	if err == nil {
		_, err = sparse.WriteAt([]byte("far"), 1<<40)
	}
	if err == nil {
		_, err = sparse.WriteAt([]byte("near"), 200<<10)
	}
	err = errors.Join(err, sparse.Truncate(1<<41), sparse.Close(),
		os.WriteFile(in("sem.a"), []byte("text"), 0o604), os.Chown(in("sem.a"), 7, 8), os.Chtimes(in("sem.a"), when, when),
		os.Mkdir(in("dir"), 0o750), os.Chown(in("dir"), 5, 6), os.WriteFile(in("dir/empty"), nil, 0o600), os.Symlink("/etc/shadow", in("dir/link")), os.Link(in("sem.a"), in("dir/again")),
		unix.Mkfifo(in("pipe"), 0o600), os.Truncate(in("dir/empty"), 4097), os.Chmod(from, 0o1755),
	)
	if err != nil {
		t.Fatal(err)
	}

	var st unix.Stat_t
	if err := unix.Stat(in("dir/empty"), &st); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	names := []Name{{Path: "dir/link_remap.5", ID: [2]uint64{uint64(st.Dev), st.Ino}}}
	if files, err := (Shared{Root: root, IDs: same, Names: names}).write(t.Context(), &archive); err != nil || !files {
		t.Fatal(files, err)
	}
	if archive.Len() > 100<<10 {
		t.Errorf("the archive has %d bytes", archive.Len())
	}

	to, second := sharedMemory(t, 1<<20)
	if err := (Refill{Fresh: true}).Apply(t.Context(), bytes.NewReader(archive.Bytes()), second); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(in("pipe")), os.Link(in("dir/empty"), in("dir/link_remap.5")), sameData(in("sparse"), filepath.Join(to, "sparse"))); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{from, to} {
		if err := errors.Join(os.Remove(filepath.Join(dir, "sparse")), os.Chtimes(filepath.Join(dir, "dir"), when, when)); err != nil {
			t.Fatal(err)
		}
	}
	if want, got := tree(t, from), tree(t, to); want != got {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// sameData compares the size and the pieces of files with holes.
func sameData(one, two string) error {
	var described []string
	for _, path := range []string{one, two} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		list, err := extentsOf(f, info.Size())
		if err != nil {
			return err
		}

		text := fmt.Sprint(info.Size(), info.Mode(), list)
		for _, e := range list {
			b := make([]byte, e.size)
			if _, err := f.ReadAt(b, e.at); err != nil {
				return err
			}
			text += string(bytes.Trim(b, "\x00"))
		}
		described = append(described, text)
	}
	if described[0] != described[1] {
		return fmt.Errorf("it is %s, and was %s", described[1], described[0])
	}
	return nil
}

// TestSharedOfNothing has no file that says that there is nothing.
func TestSharedOfNothing(t *testing.T) {
	testkit.Root(t)
	_, root := sharedMemory(t, 1<<20)
	s, err := NewStage(t.TempDir(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.FillShared(t.Context(), Shared{Root: root, IDs: same}); err != nil {
		t.Fatal(err)
	}
	if _, err := (&Unpacked{stage: s}).OpenShared(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is one: %v", err)
	}
	gone := Shared{Root: root, IDs: same, Names: []Name{{Path: "a", ID: [2]uint64{1, 2}}}}
	if err := s.FillShared(t.Context(), gone); !errors.Is(err, ErrUnfit) {
		t.Errorf("a name of nothing: %v", err)
	}
}

// TestRefillOccupied fills a /dev/shm that others have.
func TestRefillOccupied(t *testing.T) {
	testkit.Root(t)
	archive := entries{{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700}, {Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o700}, regular("dir/new", "new"), regular("there", "new")}.packed(t)
	for name, c := range map[string]struct {
		make    func(dir string) error
		refused bool
		there   string
	}{
		"not needed": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "there"), []byte("old"), 0o644) }, false, "old"},
		"needed":     {func(dir string) error { return os.WriteFile(filepath.Join(dir, "dir/new"), []byte("old"), 0o644) }, true, ""},
		"link":       {func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "dir/new")) }, true, ""},
		"directory":  {func(dir string) error { return os.Mkdir(filepath.Join(dir, "dir/new"), 0o755) }, true, ""},
		"file as directory": {func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "dir")), os.WriteFile(filepath.Join(dir, "dir"), nil, 0o644))
		}, true, ""},
		"link as directory": {func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "dir")), os.Symlink("/", filepath.Join(dir, "dir")))
		}, true, ""},
		"nothing": {func(string) error { return nil }, false, "new"},
	} {
		path, root := sharedMemory(t, 1<<20)
		if err := errors.Join(os.Mkdir(filepath.Join(path, "dir"), 0o755), c.make(path)); err != nil {
			t.Fatal(err)
		}

		err := Refill{Needed: []string{"dir/new"}}.Apply(t.Context(), bytes.NewReader(archive), root)
		if c.refused != errors.Is(err, ErrOccupied) || !c.refused && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if text, err := os.ReadFile(filepath.Join(path, "there")); c.there != "" && (err != nil || string(text) != c.there) {
			t.Errorf("%s: it is %q, %v", name, text, err)
		}
		info, err := os.Stat(path)
		dir, derr := os.Stat(filepath.Join(path, "dir"))
		if err := errors.Join(err, derr); err != nil || info.Mode().Perm() != 0o777 || !c.refused && dir.Mode().Perm() != 0o755 {
			t.Errorf("%s: the modes are %v, %v", name, info.Mode(), err)
		}
	}
}

// TestRefillRefuses has content that leads out of a /dev/shm, is none that one has, or too
// much.
func TestRefillRefuses(t *testing.T) {
	testkit.Root(t)
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("whole"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := tar.Header{Typeflag: tar.TypeSymlink, Name: "made", Linkname: outside}
	holes := func(size, extents, text string) entries {
		h := regular("a", text)
		h.PAXRecords = map[string]string{sizeRecord: size}
		if extents != "" {
			h.PAXRecords[extentsRecord] = extents
		}
		return entries{h}
	}
	for name, c := range map[string]struct {
		of      entries
		refused bool
	}{
		"parent":                    {entries{regular("../canary", "x")}, true},
		"absolute":                  {entries{regular(canary, "x")}, true},
		"through a link of its own": {entries{link, regular("made/canary", "x")}, true},
		"directory through a link":  {entries{link, {Typeflag: tar.TypeDir, Name: "made/new/"}}, true},
		"link to what is outside":   {entries{link, {Typeflag: tar.TypeLink, Name: "a", Linkname: "made/canary"}}, true},
		"link to parent":            {entries{{Typeflag: tar.TypeLink, Name: "a", Linkname: "../canary"}}, true},
		"onto a link of its own":    {entries{{Typeflag: tar.TypeSymlink, Name: "a", Linkname: canary}, regular("a", "x")}, true},
		"device":                    {entries{{Typeflag: tar.TypeChar, Name: "a", Devmajor: 1, Devminor: 1}}, true},
		"disk":                      {entries{{Typeflag: tar.TypeBlock, Name: "a", Devmajor: 8}}, true},
		"FIFO":                      {entries{{Typeflag: tar.TypeFifo, Name: "a"}}, true},
		"root as a link":            {entries{{Typeflag: tar.TypeSymlink, Name: ".", Linkname: outside}}, true},
		"deep":                      {entries{{Typeflag: tar.TypeDir, Name: strings.Repeat("d/", maxDepth+2)}}, true},
		"large":                     {entries{regular("a", strings.Repeat("x", 2<<20))}, true},
		"large, of pieces":          {holes("5000000", "0:2097152", strings.Repeat("x", 2<<20)), true},
		"many":                      {many(200), true},
		"holes":                     {holes("1000000000000", "5:1,900000000000:2", "abc"), false},
		"only a hole":               {holes("1000000000000", "", ""), false},
		"no size":                   {holes("x", "", ""), true},
		"negative size":             {holes("-1", "", ""), true},
		"huge size":                 {holes("9223372036854775807", "", ""), true},
		"beyond its size":           {holes("10", "9:2", "ab"), true},
		"in disorder":               {holes("10", "5:1,0:1", "ab"), true},
		"overlapping":               {holes("10", "0:2,1:1", "abc"), true},
		"negative":                  {holes("10", "-5:1", "a"), true},
		"of nothing":                {holes("10", "5:0", ""), true},
		"too little":                {holes("10", "5:2", "a"), true},
		"too much":                  {holes("10", "5:1", "ab"), true},
		"overflowing":               {holes("10", "9223372036854775807:9223372036854775807", "a"), true},
		"many pieces":               {holes("100000000", strings.TrimSuffix(strings.Repeat("0:1,", maxExtents+1), ","), "a"), true},
	} {
		_, root := sharedMemory(t, 1<<20)
		err := Refill{Fresh: true}.Apply(t.Context(), bytes.NewReader(c.of.packed(t)), root)
		if c.refused != (err != nil) || err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLarge) || len(fmt.Sprint(err)) > 1000 {
			t.Errorf("%s: error %.1000v", name, err)
		}
		if text, err := os.ReadFile(canary); err != nil || string(text) != "whole" {
			t.Fatalf("%s: outside there is %q, %v", name, text, err)
		}
		if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
			t.Fatalf("%s: outside there are %v, %v", name, names, err)
		}
	}

	_, root := sharedMemory(t, 1<<20)
	late := errors.New("too late")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(late)
	if err := (Refill{Fresh: true}).Apply(ctx, bytes.NewReader(entries{regular("a", "x")}.packed(t)), root); !errors.Is(err, late) {
		t.Errorf("after its end: %v", err)
	}
}

// many are more files than a small file system has room for.
func many(n int) (list entries) {
	for i := range n {
		list = append(list, regular(fmt.Sprint("f", i), "x"))
	}
	return list
}

// FuzzRefill fills a /dev/shm with any bytes.
func FuzzRefill(f *testing.F) {
	testkit.Root(f)
	f.Add(entries{{Typeflag: tar.TypeDir, Name: "d/"}, regular("d/file", "text"), {Typeflag: tar.TypeLink, Name: "hard", Linkname: "d/file"}}.packed(f), true)
	f.Add(entries{{Typeflag: tar.TypeReg, Name: "a", Size: 1, Uname: "x", PAXRecords: map[string]string{sizeRecord: "9", extentsRecord: "3:1"}}}.packed(f), false)
	parent, _ := sharedMemory(f, 1<<20)
	f.Fuzz(func(t *testing.T, archive []byte, fresh bool) {
		dir, err := os.MkdirTemp(parent, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		root, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()

		err = Refill{Fresh: fresh}.Apply(t.Context(), bytes.NewReader(archive), root)
		if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrOccupied) {
			t.Errorf("error %v", err)
		}
		if names, err := os.ReadDir(parent); err != nil || len(names) != 1 {
			t.Errorf("there are %v, %v", names, err)
		}
	})
}
