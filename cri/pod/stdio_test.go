package pod

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/pod/stdio"
	"crisp/cri/spec"
	"crisp/test/testkit"
)

func TestClosedStreamsAreNotKept(t *testing.T) {
	r, w, err := stdio.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pr := &process{stdin: w}
	if got := pr.keep(); len(got) != 1 || got[0].Name != "stdin" {
		t.Errorf("keeps %v, want the input", got)
	}
	w.Close()
	if got := pr.keep(); len(got) != 0 {
		t.Errorf("keeps %v, want nothing", got)
	}
}

// TestPipesOfContainersBlock: a container must not see EAGAIN on its streams,
// and a read on the daemon's end must return when it is closed.
func TestPipesOfContainersBlock(t *testing.T) {
	r, w, err := stdio.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()

	if r, err = stdio.Polled(r); err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(w.Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags of the container's end: %#x, %v", flags, err)
	}

	done := make(chan error, 1)
	go func() {
		_, err := io.ReadAll(r)
		done <- err
	}()

	time.Sleep(10 * time.Millisecond)
	r.Close()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("closing did not interrupt the read")
	}
}

func TestOpenLog(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}

	if err := os.Symlink(filepath.Join(outside, "target"), filepath.Join(dir, "final.log")); err != nil {
		t.Fatal(err)
	}
	sandbox := &runtimeapi.PodSandboxConfig{LogDirectory: dir}
	for path, good := range map[string]bool{"web/0.log": true, "0.log": true, "final.log": false} {
		f, err := openLog(sandbox, &runtimeapi.ContainerConfig{LogPath: path})
		if (err == nil) != good {
			t.Errorf("%s: error %v", path, err)
		}
		if err == nil {
			f.Close()
			if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("%s: %v, %v", path, info, err)
			}
		}
	}

	if f, err := openLog(sandbox, &runtimeapi.ContainerConfig{LogPath: "link/0.log"}); err == nil {
		f.Close()
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("a link led out of the log directory: %v, %v", left, err)
	}

	f, err := openLog(sandbox, &runtimeapi.ContainerConfig{})
	if err != nil || f.Name() != os.DevNull {
		t.Errorf("without a path: %v, %v", f, err)
	}
	f.Close()
}

func TestMakeVolumeCopiesAndFollowsNothing(t *testing.T) {
	root, dst := t.TempDir(), filepath.Join(t.TempDir(), "volume")
	for _, step := range []error{
		os.MkdirAll(filepath.Join(root, "data/sub"), 0o751),
		os.WriteFile(filepath.Join(root, "data/sub/file"), []byte("content"), 0o640),
		os.Symlink("/etc/passwd", filepath.Join(root, "data/link")),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}

	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()

	if err := makeVolume(t.Context(), dir, spec.Volume{Path: "/data", Source: dst}); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dst, "sub/file")); err != nil || string(data) != "content" {
		t.Errorf("file: %q, %v", data, err)
	}

	if to, err := os.Readlink(filepath.Join(dst, "link")); err != nil || to != "/etc/passwd" {
		t.Errorf("link: %q, %v", to, err)
	}
	if info, err := os.Stat(filepath.Join(dst, "sub")); err != nil || info.Mode().Perm() != 0o751 {
		t.Errorf("directory: %v, %v", info, err)
	}

	// A path that the image lacks, or that is a link to nowhere, is an empty volume.
	empty := filepath.Join(t.TempDir(), "empty")
	if err := makeVolume(t.Context(), dir, spec.Volume{Path: "/missing", Source: empty}); err != nil {
		t.Error(err)
	}

	if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestMakeVolumeShiftsOwnersOnce copies a root file system's files as seen in a
// pod with a user namespace: the mount of the volume shifts them again.
func TestMakeVolumeShiftsOwnersOnce(t *testing.T) {
	testkit.Root(t)
	root, dst := t.TempDir(), filepath.Join(t.TempDir(), "volume")
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "data/sub"), 0o755), os.WriteFile(filepath.Join(root, "data/f"), nil, 0o600), os.Symlink("x", filepath.Join(root, "data/link"))); err != nil {
		t.Fatal(err)
	}

	for name, ids := range map[string][2]int{"data": {100000, 200000}, "data/sub": {100999, 200033}, "data/f": {165535, 265535}, "data/link": {100001, 200002}} {
		if err := os.Lchown(filepath.Join(root, name), ids[0], ids[1]); err != nil {
			t.Fatal(err)
		}
	}

	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()

	v := spec.Volume{
		Path: "/data", Source: dst,
		UIDMappings: []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}, GIDMappings: []specs.LinuxIDMapping{{HostID: 200000, Size: 65536}},
	}
	if err := makeVolume(t.Context(), dir, v); err != nil {
		t.Fatal(err)
	}

	for name, want := range map[string][2]uint32{".": {0, 0}, "sub": {999, 33}, "f": {65535, 65535}, "link": {1, 2}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dst, name), &st); err != nil || st.Uid != want[0] || st.Gid != want[1] {
			t.Errorf("%s belongs to %d:%d (%v), want %v", name, st.Uid, st.Gid, err, want)
		}
	}
}

// An image may have directories as deep as paths allow, and files of any size:
// copying them takes few descriptors and can be cancelled.
func TestMakeVolumeIsBounded(t *testing.T) {
	base := t.TempDir()
	if err := os.MkdirAll(filepath.Join(base, "data", strings.Repeat("d/", 300)), 0o700); err != nil {
		t.Fatal(err)
	}

	if err := os.Mkdir(filepath.Join(base, "large"), 0o700); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(base, "large", "file")
	if err := errors.Join(os.WriteFile(large, nil, 0o600), os.Truncate(large, 1<<40)); err != nil {
		t.Fatal(err)
	}

	root, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()

	if err := makeVolume(t.Context(), root, spec.Volume{Path: "/data", Source: filepath.Join(t.TempDir(), "v")}); !errors.Is(err, ErrInvalid) {
		t.Errorf("deep directories: %v", err)
	}
	f, err := os.OpenFile(large, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	for at, text := range map[int64]string{0: "begin", 1 << 39: "middle"} {
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}

	to := filepath.Join(t.TempDir(), "v")
	began := time.Now()
	if err := makeVolume(t.Context(), root, spec.Volume{Path: "/large", Source: to}); err != nil {
		t.Fatal(err)
	}

	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("a sparse file took %v", took)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(to, "file"), &st); err != nil || st.Size != 1<<40 || st.Blocks > 1000 {
		t.Errorf("the copy has %d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := makeVolume(ctx, root, spec.Volume{Path: "/large", Source: filepath.Join(t.TempDir(), "v")}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A container with the node's logs mounted cannot make the daemon write its
// output elsewhere: not by dots or links in a path, not by a link in place of a
// directory, swapped at the worst moment, and not to a device (CVE-2025-0750).
func TestCVE20250750LogsStayInTheirDirectory(t *testing.T) {
	base := t.TempDir()
	dir, outside := filepath.Join(base, "pod"), filepath.Join(base, "outside")
	for _, d := range []string{dir + "/real", outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}

	for link, target := range map[string]string{base + "/podlink": outside, dir + "/swap": outside, dir + "/up": "../outside", dir + "/file": outside + "/x"} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}

	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(dir, path string) error {
		f, err := openLog(&runtimeapi.PodSandboxConfig{LogDirectory: dir}, &runtimeapi.ContainerConfig{LogPath: path})
		if err == nil {
			f.WriteString("hostile\n")
			f.Close()
		}
		return err
	}

	for _, path := range []string{"../outside/0.log", "../../outside/0.log", "real/../../outside/0.log", "up/0.log", "swap/0.log", outside + "/0.log"} {
		_ = open(dir, path) // inside, or not at all
	}
	for _, bad := range [][2]string{{base + "/podlink", "0.log"}, {base + "/podlink/", "0.log"}, {dir, "file"}, {dir, "fifo"}, {dir, "real"}} {
		if err := open(bad[0], bad[1]); err == nil {
			t.Errorf("%s in %s was opened", bad[1], bad[0])
		}
	}

	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, dir+"/real", unix.AT_FDCWD, dir+"/swap", unix.RENAME_EXCHANGE)
				_ = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, base+"/podlink", unix.RENAME_EXCHANGE)
			}
		}
	}()

	good := 0
	for range 10_000 {
		if open(dir, "real/0.log") == nil {
			good++
		}
	}
	close(stop)
	<-done
	t.Logf("%d of 10,000 logs were opened", good)

	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("output went outside: %v, %v", left, err)
	}
}

// A container's directory may be as deep as a disk is large.
func TestRemoveTree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "container")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}

	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}

	for range 30_000 {
		if err := unix.Mkdirat(fd, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)

	for range 2 {
		if err := removeTree(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}

	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}
