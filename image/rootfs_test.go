package image_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/image"
	"crisp/test/testkit"
)

// userNamespace returns a user namespace in which root is host user first.
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

func identity(first uint32) []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: 0, HostID: first, Size: 65536}}
}

// path leads into a detached mount.
func path(m *os.File, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", m.Fd(), name) }

func read(t *testing.T, m *os.File, name string) string {
	t.Helper()
	data, err := os.ReadFile(path(m, name))
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

func mount(t *testing.T, s *image.Service, id string, userns *os.File) *os.File {
	t.Helper()
	m, err := s.Mount(t.Context(), id, image.View{UserNS: userns})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func layered(t *testing.T, r *testRegistry) string {
	t.Helper()
	owned := text("owned", "1000's")
	owned.Uid, owned.Gid = 1000, 1001
	root := dir("./")
	root.Mode = 0o711
	_, id := r.push("app", "v1", ocispec.ImageConfig{},
		pack(t, root, text("a", "low"), text("gone", "x"), text("d/old", "x"), owned),
		pack(t, text("a", "high"), text(".wh.gone", ""), text("d/.wh..wh..opq", ""), text("d/new", "y")))
	return id
}

func TestMount(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	r := newRegistry(t)
	id := layered(t, r)
	s := open(t, t.TempDir())
	pull(t, s, r.Host+"/app:v1")

	for range 2 { // the second time does nothing
		if err := s.Prepare("c1", id, nil, nil); err != nil {
			t.Fatal(err)
		}
	}

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}

	m := mount(t, s, "c1", nil)
	if got := read(t, m, "a") + read(t, m, "d/new"); got != "highy" {
		t.Errorf("files are %q", got)
	}

	for _, name := range []string{"gone", "d/old"} {
		if _, err := os.Lstat(path(m, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}

	var st unix.Stat_t
	if err := unix.Stat(path(m, "."), &st); err != nil || st.Mode&0o7777 != 0o711 {
		t.Errorf("root has mode %o, %v", st.Mode&0o7777, err)
	}

	if err := os.WriteFile(path(m, "written"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(s.UpperDir("c1"), "written")); err != nil || string(data) != "hello" {
		t.Errorf("upper directory: %q, %v", data, err)
	}

	got, err := s.Usage(t.Context(), "c1")
	bytes, inodes := got.Bytes, got.Inodes
	if err != nil || bytes < 4096 || inodes != 2 {
		t.Errorf("usage %d bytes, %d inodes, %v", bytes, inodes, err)
	}

	if now, _ := os.ReadFile("/proc/self/mountinfo"); string(now) != string(mounts) {
		t.Error("the host's mount table changed")
	}

	// A daemon that starts again mounts it again, with what was written.
	m.Close()
	m = mount(t, s, "c1", nil)
	if got := read(t, m, "written"); got != "hello" {
		t.Errorf("mounted again, the file is %q", got)
	}
	m.Close()

	for range 2 {
		if err := s.Discard("c1"); err != nil {
			t.Fatal(err)
		}
	}

	if _, err := s.Mount(t.Context(), "c1", image.View{}); !errors.Is(err, image.ErrNoRootFS) {
		t.Errorf("mount after discarding: %v", err)
	}
}

func TestMountUserNamespace(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	r := newRegistry(t)
	id := layered(t, r)
	root := t.TempDir()
	s := open(t, root)
	pull(t, s, r.Host+"/app:v1")

	before, _ := s.FsInfo()
	for _, first := range []uint32{100_000, 300_000} {
		name := fmt.Sprint("c", first)
		if err := s.Prepare(name, id, identity(first), identity(first)); err != nil {
			t.Fatal(err)
		}

		m := mount(t, s, name, userNamespace(t, int(first)))
		for _, c := range []struct {
			name     string
			uid, gid uint32
		}{{".", first, first}, {"a", first, first}, {"owned", first + 1000, first + 1001}} {
			var st unix.Stat_t
			if err := unix.Lstat(path(m, c.name), &st); err != nil {
				t.Fatal(err)
			}
			if st.Uid != c.uid || st.Gid != c.gid {
				t.Errorf("%s belongs to %d:%d, want %d:%d", c.name, st.Uid, st.Gid, c.uid, c.gid)
			}
		}

		// As the pod's root: change what the image has, make something new.
		script := fmt.Sprintf("cd %s && echo changed > a && echo new > n && chown 5:5 n", path(m, ""))
		cmd := exec.Command("sh", "-c", strings.ReplaceAll(script, "/proc/self/fd/"+fmt.Sprint(m.Fd()), "/proc/self/fd/3"))
		cmd.ExtraFiles = []*os.File{m}

		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(first), Size: 65536}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, Credential: &syscall.Credential{}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("as the pod's root: %v: %s", err, out)
		}

		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(s.UpperDir(name), "n"), &st); err != nil || st.Uid != first+5 {
			t.Errorf("the new file belongs to %d, %v", st.Uid, err)
		}
	}

	if now, _ := s.FsInfo(); now != before {
		t.Errorf("used %+v, before %+v: layers were copied", now, before)
	}
}

func TestMountManyLayers(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	var layers []packed
	for i := range 127 {
		layers = append(layers, pack(t, text(fmt.Sprintf("f%d", i), fmt.Sprint(i))))
	}

	_, id := r.push("app", "v1", ocispec.ImageConfig{}, layers...)
	s := open(t, t.TempDir())
	pull(t, s, r.Host+"/app:v1")
	if err := s.Prepare("c", id, nil, nil); err != nil {
		t.Fatal(err)
	}

	m := mount(t, s, "c", nil)
	for _, i := range []int{0, 63, 126} {
		if got := read(t, m, fmt.Sprintf("f%d", i)); got != fmt.Sprint(i) {
			t.Errorf("f%d is %q", i, got)
		}
	}
}

func TestImageWithoutLayers(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	_, id := r.push("app", "v1", ocispec.ImageConfig{})
	s := open(t, t.TempDir())
	pull(t, s, r.Host+"/app:v1")
	if err := s.Prepare("c", id, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path(mount(t, s, "c", nil), "f"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

func TestImageVolume(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	r := newRegistry(t)
	link := func(name, target string) file {
		return file{Header: tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink}}
	}

	fifo := file{Header: tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600}}
	_, id := r.push("data", "v1", ocispec.ImageConfig{},
		pack(t, text("models/a/weights", "1"), text("file", "2"), link("abs", "/models"), link("up", "../../.."), link("out", "/etc/passwd"), link("loop", "loop"), fifo))
	s := open(t, t.TempDir())
	pull(t, s, r.Host+"/data:v1")

	for _, c := range []struct{ sub, file, want string }{
		{"", "models/a/weights", "1"}, {"models/a", "weights", "1"}, {"abs/a", "weights", "1"},
		{"up/models", "a/weights", "1"}, {"../../models", "a/weights", "1"}, {"/models", "a/weights", "1"}, {"file", "", "2"},
	} {
		for _, userns := range []*os.File{nil, userNamespace(t, 200_000)} {
			m, err := s.MountImage(t.Context(), id, c.sub, image.View{UserNS: userns})
			if err != nil {
				t.Errorf("%q: %v", c.sub, err)
				continue
			}

			at := path(m, c.file)
			if c.file == "" {
				at = strings.TrimSuffix(at, "/")
			}

			data, err := os.ReadFile(at)
			if err != nil || string(data) != c.want {
				t.Errorf("%q: %q, %v", c.sub, data, err)
			}

			if f, err := os.OpenFile(at, os.O_WRONLY, 0); !errors.Is(err, unix.EROFS) {
				f.Close()
				t.Errorf("%q is writable: %v", c.sub, err)
			}
			m.Close()
		}
	}

	for _, sub := range []string{"nope", "out", "loop", "file/x", "fifo", "models/\x00"} {
		m, err := s.MountImage(t.Context(), id, sub, image.View{})
		if !errors.Is(err, image.ErrSubPath) {
			m.Close()
			t.Errorf("%q: %v, want %v", sub, err, image.ErrSubPath)
		}
	}
}

func TestLayersOutliveTheirImage(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	id := layered(t, r)
	_, data := r.push("data", "v1", ocispec.ImageConfig{}, pack(t, text("model", "m")))
	root := t.TempDir()
	s := reopen(t, root)
	defer func() { s.Close() }()

	pull(t, s, r.Host+"/app:v1")
	pull(t, s, r.Host+"/data:v1")
	if err := s.Prepare("c", id, nil, nil); err != nil {
		t.Fatal(err)
	}

	if err := s.Hold("c", data); err != nil {
		t.Fatal(err)
	}
	volume, err := s.MountImage(t.Context(), data, "", image.View{})
	if err != nil {
		t.Fatal(err)
	}
	defer volume.Close()

	for _, ref := range []string{id, data} {
		if err := s.Remove(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, root)
	if got := s.Containers(); !slices.Equal(got, []string{"c"}) {
		t.Errorf("containers %v", got)
	}

	if got := read(t, mount(t, s, "c", nil), "a"); got != "high" {
		t.Errorf("file is %q", got)
	}
	lower, err := s.Lower(t.Context(), "c")
	if err != nil {
		t.Fatal(err)
	}
	defer lower.Close()
	if got := read(t, lower, "a"); got != "high" {
		t.Errorf("file of the image is %q", got)
	}
	if got := read(t, volume, "model"); got != "m" {
		t.Errorf("file of the volume is %q", got)
	}

	if err := s.Prepare("d", id, nil, nil); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("a new container of a removed image: %v", err)
	}
	if err := s.Discard("c"); err != nil {
		t.Fatal(err)
	}

	if u, _ := s.FsInfo(); u.UsedBytes != 0 {
		t.Errorf("after the last container, used is %+v", u)
	}
}

func TestIDsAreNames(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	id := layered(t, r)
	s := open(t, t.TempDir())
	pull(t, s, r.Host+"/app:v1")
	for _, bad := range []string{"", ".", "..", "a/b", "../x", strings.Repeat("x", 200), "a\x00"} {
		if err := s.Prepare(bad, id, nil, nil); !errors.Is(err, image.ErrInvalidID) {
			t.Errorf("%q: %v, want %v", bad, err, image.ErrInvalidID)
		}
		if err := s.Discard(bad); err != nil {
			t.Errorf("discard %q: %v", bad, err)
		}
	}
}

func TestDirectoriesArePrivate(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	id := layered(t, r)
	root := filepath.Join(t.TempDir(), "image")
	s := open(t, root)
	pull(t, s, r.Host+"/app:v1")
	if err := s.Prepare("c", id, nil, nil); err != nil {
		t.Fatal(err)
	}

	for _, d := range []string{"", "blobs", "layers", "containers", "containers/c", "tmp"} {
		st, err := os.Stat(filepath.Join(root, d))
		if err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%q has mode %v, %v", d, st.Mode(), err)
		}
	}
}

// TestDiscardWhileMounted holds a file of a running container open while
// everything around it is removed.
func TestDiscardWhileMounted(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	id := layered(t, r)
	root := t.TempDir()
	s := open(t, root)
	pull(t, s, r.Host+"/app:v1")

	for _, c := range []string{"c", "other"} {
		if err := s.Prepare(c, id, nil, nil); err != nil {
			t.Fatal(err)
		}
	}

	m := mount(t, s, "other", userNamespace(t, 100_000))
	f, err := os.Open(path(mount(t, s, "c", nil), "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	if err := s.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard("c"); err != nil {
		t.Fatal(err)
	}

	if got := read(t, m, "a"); got != "high" {
		t.Errorf("the other container's file is %q", got)
	}
}

func BenchmarkMount(b *testing.B) {
	testkit.Root(b)
	r := newRegistry(b)
	var layers []packed
	for i := range 8 {
		layers = append(layers, pack(b, text(fmt.Sprintf("f%d", i), fmt.Sprint(i))))
	}

	_, id := r.push("app", "v1", ocispec.ImageConfig{}, layers...)
	s := open(b, b.TempDir())
	pull(b, s, r.Host+"/app:v1")
	b.Run("prepare", func(b *testing.B) {
		for i := range b.N {
			if err := s.Prepare(fmt.Sprint("p", i), id, nil, nil); err != nil {
				b.Fatal(err)
			}
		}
	})

	b.Run("mount", func(b *testing.B) {
		for i := range b.N {
			b.StopTimer()
			name := fmt.Sprint("m", b.N, "-", i)
			if err := s.Prepare(name, id, nil, nil); err != nil {
				b.Fatal(err)
			}

			b.StartTimer()
			m, err := s.Mount(b.Context(), name, image.View{})
			if err != nil {
				b.Fatal(err)
			}

			b.StopTimer()
			m.Close()
			b.StartTimer()
		}
	})
}
