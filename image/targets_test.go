package image_test

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crisp/image"
	"crisp/runtime/rootpath"
	"crisp/test/testkit"
)

// TestTargets looks at what the mount targets that a pull makes are like in
// containers, with and without a user namespace.
func TestTargets(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	r := newRegistry(t)
	root, etc := dir("."), dir("etc")
	root.Mode, etc.Mode, etc.Uid = 0o711, 0o750, 7

	_, id := r.push("app", "v1", ocispec.ImageConfig{},
		pack(t, root, etc, text("etc/hosts", "the image's"), file{Header: tar.Header{Name: "etc/resolv.conf", Linkname: "../run/resolv.conf", Typeflag: tar.TypeSymlink}}))
	directory := t.TempDir()
	s := open(t, directory)
	pull(t, s, r.Host+"/app:v1")

	before, err := s.FsInfo()
	if err != nil {
		t.Fatal(err)
	}

	// They are found again, and counted the same.
	s.Close()
	s = open(t, directory)
	if after, err := s.FsInfo(); err != nil || after != before {
		t.Errorf("usage is %+v, was %+v, %v", after, before, err)
	}

	for _, tt := range []struct {
		id    string
		first int
	}{{"c1", 0}, {"c2", 200000}} {
		var userns *os.File
		maps := identity(uint32(tt.first))
		if tt.first != 0 {
			userns = userNamespace(t, tt.first)
		}

		if err := s.Prepare(tt.id, id, maps, maps); err != nil {
			t.Fatal(err)
		}
		m := mount(t, s, tt.id, userns)
		if got := read(t, m, "etc/hosts"); got != "the image's" {
			t.Errorf("%s: hosts is %q", tt.id, got)
		}

		for name, want := range map[string]struct {
			mode uint32
			uid  int
		}{
			".": {unix.S_IFDIR | 0o711, 0}, "etc": {unix.S_IFDIR | 0o750, 7}, "proc": {unix.S_IFDIR | 0o755, 0},
			"etc/hostname": {unix.S_IFREG | 0o644, 0}, "run/resolv.conf": {unix.S_IFREG | 0o644, 0},
		} {
			var st unix.Stat_t
			if err := unix.Lstat(path(m, name), &st); err != nil {
				t.Errorf("%s: %s: %v", tt.id, name, err)
			}
			if st.Mode != want.mode || int(st.Uid) != tt.first+want.uid || st.Gid != uint32(tt.first) {
				t.Errorf("%s: %s has mode %o, owner %d:%d", tt.id, name, st.Mode, st.Uid, st.Gid)
			}
		}

		for _, name := range []string{"/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
			if err := rootpath.CreateTarget(m, name, false, rootpath.Owner{}); err != nil {
				t.Errorf("%s: %s: %v", tt.id, name, err)
			}
		}

		if names, err := os.ReadDir(s.UpperDir(tt.id)); err != nil || len(names) > 0 {
			t.Errorf("%s: its own layer has %v, %v", tt.id, names, err)
		}
		m.Close()
		if err := s.Discard(tt.id); err != nil {
			t.Fatal(err)
		}
	}

	// They go with the image, and are not seen in an image volume.
	v, err := s.MountImage(t.Context(), id, "", image.View{})
	if err != nil {
		t.Fatal(err)
	}

	if _, err := os.Lstat(path(v, "proc")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("proc in an image volume: %v", err)
	}
	v.Close()
	if err := s.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}

	if after, err := s.FsInfo(); err != nil || after.InodesUsed != 0 || after.UsedBytes != 0 {
		t.Errorf("after removal: %+v, %v", after, err)
	}
	if left, err := filepath.Glob(filepath.Join(directory, "layers", "*", "targets")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
