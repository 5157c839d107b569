package pod

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
)

func TestClosedStreamsAreNotKept(t *testing.T) {
	r, w, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pr := &process{stdin: w}
	if got := keep(pr); len(got) != 1 || got[0].Name != "stdin" {
		t.Errorf("keeps %v, want the input", got)
	}
	w.Close()
	if got := keep(pr); len(got) != 0 {
		t.Errorf("keeps %v, want nothing", got)
	}
}

// TestPipesOfContainersBlock: a container must not see EAGAIN on its streams,
// and a read on our end must end when it is closed.
func TestPipesOfContainersBlock(t *testing.T) {
	r, w, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if r, err = polled(r); err != nil {
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
		t.Error("closing did not end the read")
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
		t.Errorf("a link led out of the log folder: %v, %v", left, err)
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
	if err := makeVolume(dir, spec.Volume{Path: "/data", Source: dst}); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dst, "sub/file")); err != nil || string(data) != "content" {
		t.Errorf("file: %q, %v", data, err)
	}
	if to, err := os.Readlink(filepath.Join(dst, "link")); err != nil || to != "/etc/passwd" {
		t.Errorf("link: %q, %v", to, err)
	}
	if info, err := os.Stat(filepath.Join(dst, "sub")); err != nil || info.Mode().Perm() != 0o751 {
		t.Errorf("folder: %v, %v", info, err)
	}
	// A path that the image lacks, or that is a link to nowhere, is an empty volume.
	empty := filepath.Join(t.TempDir(), "empty")
	if err := makeVolume(dir, spec.Volume{Path: "/missing", Source: empty}); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}
