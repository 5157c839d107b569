package pod

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/cgroup"
	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// leaver is a manager with a real cgroup that was left, and a process in it in
// place of one that has ended and was not reaped.
type leaver struct {
	*Manager
	group *cgroup.Group
	ended *exec.Cmd
}

func newLeaver(t *testing.T, id string) leaver {
	t.Helper()
	testkit.Root(t)
	node, err := cgroup.New(cgroup.Cgroupfs, "/"+testkit.Name(t))
	if err != nil {
		t.Fatal(err)
	}
	path, err := node.Path("", id)
	if err != nil {
		t.Fatal(err)
	}
	group, err := node.Create(t.Context(), path, &specs.LinuxResources{})
	if err != nil {
		t.Fatal(err)
	}

	entry, err := group.Entry()
	if err != nil {
		t.Fatal(err)
	}
	defer entry.Close()
	l := leaver{Manager: bareManager(), group: group, ended: exec.Command("sleep", "1000")}
	if entry.Unified != nil {
		l.ended.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(entry.Unified.Fd())}
	}
	if err := l.ended.Start(); err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		l.end(t)
		ctx, cancel := context.WithTimeout(context.Background(), pace.Scale(20*time.Second))
		defer cancel()
		if err := errors.Join(group.Remove(ctx), node.Close()); err != nil {
			t.Error(err)
		}
	})
	if err := group.Admit(l.ended.Process.Pid); err != nil {
		t.Fatal(err)
	}
	l.Cgroups = node
	return l
}

// end empties the group.
func (l leaver) end(t *testing.T) {
	t.Helper()
	if l.ended.ProcessState == nil {
		_ = l.ended.Process.Kill()
		_ = l.ended.Wait()
	}
}

// daemon removes what was left, until the function that it returns is called.
func (l leaver) daemon(t *testing.T, dir string) (stop func()) {
	t.Helper()
	left, err := openLeft(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.left = left
	ctx, cancel := context.WithCancel(t.Context())
	l.wg.Go(func() { l.removeLeft(ctx) })
	return func() { cancel(); l.wg.Wait() }
}

// TestLeftCgroup leaves a cgroup with a process to a daemon, and that one to the next,
// which removes the cgroup when it is empty.
func TestLeftCgroup(t *testing.T) {
	const id = "0123"
	dir := filepath.Join(t.TempDir(), leftDir)
	l := newLeaver(t, id)
	stop := l.daemon(t, dir)
	if err := l.left.add(l.group.Path()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(minLeftWait * 3 / 2)
	stop()
	if !l.group.Exists() || len(l.left.list()) != 1 {
		t.Fatal("a cgroup with a process was removed")
	}

	if err := os.WriteFile(filepath.Join(dir, "4567"), []byte(filepath.Dir(l.group.Path())+"/4567"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer l.daemon(t, dir)()
	if l.left.list()[id] != l.group.Path() {
		t.Fatalf("the next daemon knows only of %v", l.left.list())
	}
	l.end(t)
	for end := time.Now().Add(pace.Scale(30 * time.Second)); len(l.left.list()) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after the end of the process there are: %v", l.left.list())
		}
	}

	if l.group.Exists() {
		t.Error("the cgroup was forgotten and not removed")
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("files left: %v, %v", files, err)
	}
}

// A cgroup whose container is still recorded belongs to that one's removal.
func TestLeftCgroupIsUsed(t *testing.T) {
	l := newLeaver(t, "p1")
	l.end(t)
	record := testRecord(t, "p1")
	p := newPod(l.Manager, record, nil)
	l.register(p)
	if l.removeLeftGroup(t.Context(), "p1", l.group.Path()) || !l.group.Exists() {
		t.Error("the cgroup of a recorded pod was removed")
	}
	l.unregister(p)
	if !l.removeLeftGroup(t.Context(), "p1", l.group.Path()) || l.group.Exists() {
		t.Error("the cgroup of a removed pod is there")
	}
}
