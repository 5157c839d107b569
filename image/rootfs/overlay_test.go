package rootfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// stacked is an overlay of two layers and a directory to write to.
func stacked(t *testing.T) Overlay {
	t.Helper()
	base := t.TempDir()
	for path, content := range map[string]string{
		"layers/high/fs/a": "high", "layers/low/fs/a": "low", "layers/low/fs/d/b": "b", "layers/empty/fs/.keep": "",
		"c/upper/.keep": "", "c/work/.keep": "",
	} {
		full := filepath.Join(base, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}

		if filepath.Base(path) == ".keep" {
			continue
		}
		if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	o := Overlay{Lower: []string{"high/fs", "low/fs"}, Empty: "empty/fs"}
	appends, err := AppendsLayers()
	o.OneString = err == nil && !appends
	for _, f := range []struct {
		to   **os.File
		name string
	}{{&o.Layers, "layers"}, {&o.Upper, "c"}} {
		dir, err := os.Open(filepath.Join(base, f.name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dir.Close() })
		*f.to = dir
	}

	return o
}

func userNamespace(t *testing.T, first int) *os.File {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait() // killed
	}()

	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func in(m *os.File, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", m.Fd(), name) }

// heap puts layers with nothing in them on top of a stack, so that it has n.
func heap(t *testing.T, o *Overlay, n int) {
	t.Helper()
	var more []string
	for i := range n - len(o.Lower) {
		name := fmt.Sprintf("more-%d-%d", n, i)
		if err := os.Mkdir(filepath.Join(o.Layers.Name(), name), 0o755); err != nil {
			t.Fatal(err)
		}
		more = append(more, name)
	}
	o.Lower = append(more, o.Lower...)
}

// testOneString mounts a stack and looks at it.
func testOneString(t *testing.T, o Overlay) {
	m, err := o.Mount(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()

	if data, err := os.ReadFile(in(m, "a")); err != nil || string(data) != "high" {
		t.Errorf("file is %q, %v", data, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(in(m, "a"), &st); err != nil || (st.Uid == 100_000) != (o.UserNS != nil) {
		t.Errorf("file belongs to %d, %v", st.Uid, err)
	}

	err = os.WriteFile(in(m, "new"), nil, 0o600)
	if writable := err == nil; writable != (o.Upper != nil) {
		t.Errorf("write: %v", err)
	}

	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(m.Fd()), &fs); err != nil || (fs.Flags&unix.ST_NOEXEC != 0) != (o.Attr&unix.MOUNT_ATTR_NOEXEC != 0) {
		t.Errorf("mount flags %#x, %v, want those of %#x", fs.Flags, err, o.Attr)
	}
}

// TestOlderKernels takes the ways that are meant for kernels older than this one.
func TestOlderKernels(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}

	t.Run("layers as one string", func(t *testing.T) {
		for name, change := range map[string]func(*Overlay){
			"usual":          func(*Overlay) {},
			"mapped":         func(o *Overlay) { o.UserNS = userNamespace(t, 100_000) },
			"many":           func(o *Overlay) { heap(t, o, 128) },
			"read-only":      func(o *Overlay) { o.Upper = nil },
			"one, read-only": func(o *Overlay) { o.Upper, o.Lower = nil, o.Lower[:1] },
			"many, mapped": func(o *Overlay) {
				o.UserNS = userNamespace(t, 100_000)
				heap(t, o, 128)
			},
			"many, read-only": func(o *Overlay) {
				o.Upper, o.Attr = nil, unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_RDONLY
				heap(t, o, 128)
			},
		} {
			t.Run(name, func(t *testing.T) {
				o := stacked(t)
				o.OneString = true
				change(&o)
				testOneString(t, o)
			})
		}

		o := stacked(t)
		o.OneString = true
		heap(t, &o, maxLayers)
		testOneString(t, o)

		heap(t, &o, maxLayers+1)
		if _, err := o.Mount(t.Context()); !errors.Is(err, ErrUnsupported) {
			t.Errorf("more layers than overlayfs takes: %v, want %v", err, ErrUnsupported)
		}
	})

	t.Run("id-mapped layers in a namespace", func(t *testing.T) {
		o := stacked(t)
		if o.OneString {
			testkit.Skip(t, "linux 6.7", "layers are given as one string, as above")
		}
		// What the refused attempt leaves behind.
		refused, err := o.Mount(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		refused.Close()
		o.UserNS = userNamespace(t, 100_000)

		for _, upper := range []*os.File{o.Upper, nil} {
			o.Upper = upper
			m, err := o.stackAttached(t.Context())
			if err != nil {
				t.Fatal(err)
			}

			var st unix.Stat_t
			if err := unix.Stat(in(m, "a"), &st); err != nil || st.Uid != 100_000 {
				t.Errorf("file belongs to %d, %v", st.Uid, err)
			}

			err = os.WriteFile(in(m, "new"), nil, 0o600)
			if writable := err == nil; writable != (upper != nil) {
				t.Errorf("write: %v", err)
			}
			m.Close()
		}
	})

	t.Run("path in an attached mount", func(t *testing.T) {
		o := stacked(t)
		m, err := o.Mount(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()

		sub, err := subPathAttached(m, "d")
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Close()

		if data, err := os.ReadFile(in(sub, "b")); err != nil || string(data) != "b" {
			t.Errorf("file is %q, %v", data, err)
		}
	})

	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(after) != string(before) {
		t.Error("the mount table changed")
	}
}

// TestCVE_2021_25741 resolves a sub path while somebody exchanges a directory of it
// with a link to the host: what is mounted is the directory, or nothing.
func TestCVE_2021_25741(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	canary, volume := t.TempDir(), t.TempDir()
	for _, dir := range []string{canary + "/sub", volume + "/a/sub"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}

	if err := os.Symlink(canary, volume+"/b"); err != nil {
		t.Fatal(err)
	}
	var want unix.Stat_t
	if err := unix.Stat(volume+"/a/sub", &want); err != nil {
		t.Fatal(err)
	}

	subPath := func() (*os.File, error) {
		// A mount of its own each time: before Linux 6.15 it is used up.
		fd, err := unix.OpenTree(unix.AT_FDCWD, volume, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		mount := os.NewFile(uintptr(fd), volume)
		defer mount.Close()
		return SubPath(mount, "a/sub")
	}

	testkit.Exchange(t, volume, "a", "b")
	found := 0
	for range testkit.Rounds(t) {
		f, err := subPath()
		if err != nil {
			if !errors.Is(err, ErrSubPath) {
				t.Fatal(err)
			}
			continue
		}

		var got unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &got); err != nil || got.Ino != want.Ino || got.Dev != want.Dev {
			t.Fatalf("the sub path is inode %d of %d, %v; want %d of %d", got.Ino, got.Dev, err, want.Ino, want.Dev)
		}
		found++
		f.Close()
	}
	t.Logf("%d of %d sub paths were found", found, testkit.Rounds(t))
}

// TestAppendsLayers compares the answer of the kernel with its version.
func TestAppendsLayers(t *testing.T) {
	testkit.Root(t)
	got, err := AppendsLayers()
	if err != nil {
		t.Fatal(err)
	}

	if testkit.KernelAtLeast(t, 6, 7) && !got {
		t.Error("the kernel is said not to append layers, as Linux 6.7 does")
	}
}

// TestWholeChanges changes files below on a kernel whose defaults let the writable layer
// refer to them.
func TestWholeChanges(t *testing.T) {
	testkit.Root(t)
	o := stacked(t)
	if o.OneString {
		testkit.Skip(t, "linux 6.7", "layers are not passed one by one")
	}
	m, err := o.create(o.Upper, func(fs int) error {
		for _, opt := range []option{{key: "redirect_dir", value: "on"}, {key: "metacopy", value: "on"}} {
			if err := opt.set(fs); err != nil {
				return err
			}
		}
		return errors.Join(unix.FsconfigSetString(fs, "lowerdir+", fdPath(o.Layers)+"/high/fs"), unix.FsconfigSetString(fs, "lowerdir+", fdPath(o.Layers)+"/low/fs"))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()

	if err := os.Chmod(in(m, "a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(o.Upper.Name(), upperDir, "a")); err != nil || string(data) != "high" {
		t.Errorf("the writable layer has %q, %v", data, err)
	}
	if err := os.Rename(in(m, "d"), in(m, "e")); !errors.Is(err, unix.EXDEV) {
		t.Errorf("a directory below was renamed: %v", err)
	}
}
