package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// TestLogDisk takes the room or the folder of a log away.
func TestLogDisk(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "full", func(t *testing.T) { testLogDiskFull(t, n) })
	n.run(t, "full at the end", func(t *testing.T) { testLogDiskFullAtEnd(t, n) })
	n.run(t, "folder removed", func(t *testing.T) { testLogFolderRemoved(t, n) })
}

// podOn makes a pod whose log folder is a file system of the given size.
func (n *node) podOn(t *testing.T, size string) (p *pod, dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("logs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = dir }), dir
}

// awaitFull waits until no more of a log fits, which comes in pieces of 64 KiB.
func awaitFull(t *testing.T, dir string) {
	t.Helper()
	var st unix.Statfs_t
	eventually(t, "the disk is full", func() bool {
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return st.Bfree*uint64(st.Bsize) < 128<<10
	})
}

// testLogDiskFull wants a writer to wait, and every line when there is room
// again; others notice nothing, and the keeper may die meanwhile.
func testLogDiskFull(t *testing.T, n *node) {
	p, dir := n.podOn(t, "1m")
	signals := t.TempDir()
	full := p.start(t, named("full"), mount(signals, "/signal"), sh("i=0; while [ ! -e /signal/stop ]; do seq $i $((i+999)) || exit 99; seq $i $((i+999)) >&2 || exit 99; i=$((i+1000)); done; exit 3"))
	awaitFull(t, dir)
	other := n.pod(t, attempt(1))
	other.start(t, sh("seq 1000; exit 0")).wantEnd(t, 0, "Completed")
	if got := string(full.exec(t, "echo", "there").Stdout); got != "there\n" {
		t.Errorf("exec says %q", got)
	}
	n.killKeeper(t)
	time.Sleep(200 * time.Millisecond) // still full
	if st := full.status(t); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", st.State)
	}
	if err := unix.Mount("logs", dir, "tmpfs", unix.MS_REMOUNT, "size=200m"); err != nil {
		t.Fatal(err)
	}
	size := int64(2 << 20)
	eventually(t, "the log grows again", func() bool {
		info, err := os.Stat(full.logFile())
		return err == nil && info.Size() > size
	})
	if err := os.WriteFile(filepath.Join(signals, "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	full.wantEnd(t, 3, "Error")
	wantCounted(t, full.logFile(), "")
}

// testLogDiskFullAtEnd wants an end to be told though the log is not whole.
func testLogDiskFullAtEnd(t *testing.T, n *node) {
	p, dir := n.podOn(t, "1m")
	c := p.start(t, sh("trap 'exit 4' TERM; seq 1000000 & while :; do sleep 0.1; done"))
	awaitFull(t, dir)
	c.stop(t, 5)
	c.wantEnd(t, 4, "Error")
}

func testLogFolderRemoved(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.start(t, sh("i=0; while :; do echo $i || exit 99; i=$((i+1)); done"))
	eventually(t, "there is a log", func() bool { return slurp(c.logFile()) != "" })
	if err := os.RemoveAll(filepath.Dir(c.logFile())); err != nil {
		t.Fatal(err)
	}
	n.killKeeper(t) // its successor has no path to go by
	if err := os.MkdirAll(p.cfg.GetLogDirectory(), 0o755); err != nil {
		t.Fatal(err)
	}
	call(t, n.Runtime.ReopenContainerLog, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
	eventually(t, "there is a log again", func() bool { return slurp(c.logFile()) != "" })
	c.stop(t, 0)
	if st := c.wait(t); st.ExitCode != 137 {
		t.Errorf("the container ended with code %d", st.ExitCode)
	}
}
