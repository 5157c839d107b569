package rootpath

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// bind mounts source on target until the test ends.
func bind(t *testing.T, source, target string) {
	t.Helper()
	must(t, unix.Mount(source, target, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

func TestRemoveAllStopsAtMounts(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	base := t.TempDir()
	root := openDir(t, base)
	must(t, os.MkdirAll(base+"/keep/sub", 0o755))
	must(t, os.WriteFile(base+"/keep/file", nil, 0o644))
	must(t, os.MkdirAll(base+"/tree/dir/mnt", 0o755))
	must(t, os.MkdirAll(base+"/files/dir", 0o755))
	must(t, os.WriteFile(base+"/files/dir/mnt", nil, 0o644))
	must(t, os.Mkdir(base+"/itself", 0o755))

	// Binds of the same file system: only the mount differs, not the device.
	bind(t, base+"/keep", base+"/tree/dir/mnt")
	bind(t, base+"/keep/file", base+"/files/dir/mnt")
	bind(t, base+"/keep", base+"/itself")

	for _, name := range []string{"tree", "files", "itself"} {
		if err := RemoveAll(t.Context(), root, name); !errors.Is(err, ErrMountPoint) {
			t.Errorf("RemoveAll(%q): %v, want ErrMountPoint", name, err)
		}
	}

	for _, path := range []string{"/keep/file", "/keep/sub", "/tree/dir/mnt/file", "/itself/file"} {
		if _, err := os.Stat(base + path); err != nil {
			t.Errorf("removed through a mount: %v", err)
		}
	}
}

// A mount that is too deep to be walked to must not be moved, either.
func TestRemoveAllStopsAtDeepMounts(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	base := t.TempDir()
	root := openDir(t, base)
	must(t, os.Mkdir(base+"/keep", 0o755))
	must(t, os.WriteFile(base+"/keep/file", nil, 0o644))

	path := base + "/tree"
	for range maxDepth {
		path += "/d"
	}

	must(t, os.MkdirAll(path, 0o755))
	bind(t, base+"/keep", path)
	if err := RemoveAll(t.Context(), root, "tree"); !errors.Is(err, ErrMountPoint) {
		t.Errorf("RemoveAll: %v, want ErrMountPoint", err)
	}

	if _, err := os.Stat(base + "/keep/file"); err != nil {
		t.Error(err)
	}
}

func TestOwner(t *testing.T) {
	testkit.Root(t)
	root, dir, _ := tree(t)
	must(t, os.Mkdir(dir+"/have", 0o755))
	own := Owner{UID: 1234, GID: 5678}
	d, err := MkdirAll(root, "have/new/leaf", 0o750, own)
	must(t, err)
	d.Close()
	must(t, CreateTarget(root, "have/file", false, own))

	for path, want := range map[string]Owner{
		"/have": {}, "/have/new": own, "/have/new/leaf": own, "/have/file": own,
	} {
		var st unix.Stat_t
		must(t, unix.Stat(dir+path, &st))
		if got := (Owner{int(st.Uid), int(st.Gid)}); got != want {
			t.Errorf("%s: owner %v, want %v", path, got, want)
		}
	}
}
