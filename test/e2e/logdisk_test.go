package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// TestLogDisk takes away the disk space or the directory of a log.
func TestLogDisk(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "full", func(t *testing.T) { testLogDiskFull(t, n) })
	n.run(t, "full at the end", func(t *testing.T) { testLogDiskFullAtEnd(t, n) })
	n.run(t, "full for long", func(t *testing.T) { testLogDiskFullForLong(t, n) })
	n.run(t, "refuses for a while", func(t *testing.T) { testLogRefusesForAWhile(t, n) })
	n.run(t, "read-only after an error", func(t *testing.T) { testLogDiskReadOnly(t, n) })
	n.run(t, "directory removed", func(t *testing.T) { testLogDirectoryRemoved(t, n) })
}

// podOn creates a pod whose log directory is a file system of the given size.
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

// awaitFull waits until the disk has no space for the next 64 KiB of a log.
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

// testLogDiskFull requires a writer to block, and every line once there is
// space again; others are not affected, and the keeper may die meanwhile.
func testLogDiskFull(t *testing.T, n *node) {
	p, dir := n.podOn(t, "1m")
	signals := t.TempDir()
	full := p.start(t, named("full"), mount(signals, "/signal"), sh(fmt.Sprintf(countBlocks, 3)))
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

// testLogDiskFullAtEnd requires an exit to be reported although the log is
// incomplete.
func testLogDiskFullAtEnd(t *testing.T, n *node) {
	p, dir := n.podOn(t, "1m")
	c := p.start(t, sh("trap 'exit 4' TERM; seq 1000000 & while :; do sleep 0.1; done"))
	awaitFull(t, dir)
	c.stop(t, 5)
	c.wantEnd(t, 4, "Error")
}

// testLogDiskFullForLong has no space for so long that lines are dropped. The
// writer blocks before, and exactly as many lines are missing as are reported.
func testLogDiskFullForLong(t *testing.T, n *node) {
	const before, after = 20 * time.Second, 40 * time.Second // lines are dropped after 30 s
	p, dir := n.podOn(t, "1m")
	signals := t.TempDir()
	c := p.start(t, mount(signals, "/signal"), sh(`i=0; while [ ! -e /signal/stop ]; do
		seq $i $((i+999)) || exit 99; i=$((i+1000)); echo $i > /signal/at; done; exit 3`))

	awaitFull(t, dir)
	full := time.Now()
	at := func() string { return slurp(filepath.Join(signals, "at")) }
	time.Sleep(pace.Scale(time.Second)) // its pipe is full, too

	stood := at()
	time.Sleep(time.Until(full.Add(before)))
	if now := at(); now != stood {
		t.Errorf("the writer is at %s, was at %s", now, stood)
	}

	if log := slurp(n.path("state", "keeper.log")); !strings.Contains(log, "stdout of "+c.id+": write log: no space left on device; the container's writes block until a retry succeeds") {
		t.Errorf("the keeper's log says\n%s", log)
	}
	for end := full.Add(pace.Scale(after)); at() == stood; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the writer stands still at %s", stood)
		}
	}

	n.pod(t, attempt(1)).start(t, sh("seq 1000; exit 0")).wantEnd(t, 0, "Completed")
	if err := unix.Mount("logs", dir, "tmpfs", unix.MS_REMOUNT, "size=500m"); err != nil {
		t.Fatal(err)
	}

	awaitGrowth(t, c)
	endWriter(t, signals, c)
	if missing, told := countMissing(t, c), toldDropped(t, n, c.id); missing == 0 || missing != told {
		t.Errorf("%d lines are missing, %d were reported as dropped", missing, told)
	}
}

// awaitGrowth waits until a container's log has grown by more than may have
// been in flight.
func awaitGrowth(t *testing.T, c *container) {
	t.Helper()
	size := len(slurp(c.logFile()))
	eventually(t, "the log grows again", func() bool { return len(slurp(c.logFile())) > size+1<<20 })
}

func endWriter(t *testing.T, signals string, c *container) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(signals, "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.wantEnd(t, 3, "Error")
}

// countMissing counts the numbers that are missing in a log, whose lines are
// complete and in order.
func countMissing(t *testing.T, c *container) (missing int) {
	t.Helper()
	last := -1
	for _, l := range parse(t, []byte(slurp(c.logFile()))) {
		i, err := strconv.Atoi(l.content)
		if err != nil || i <= last || l.partial {
			t.Fatalf("the log says %q behind %d", l.content, last)
		}
		missing += i - last - 1
		last = i
	}
	return missing
}

// toldDropped is how many lines of a container the keeper reports as dropped.
func toldDropped(t *testing.T, n *node, id string) (sum int) {
	t.Helper()
	told := regexp.MustCompile("stdout of " + id + ": log writable again after .*, ([0-9]+) lines were dropped")
	for _, m := range told.FindAllStringSubmatch(slurp(n.path("state", "keeper.log")), -1) {
		lines, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += lines
	}
	return sum
}

// diskSize is that of a disk of a test.
const diskSize = 256 << 20

// ext4On mounts a new disk on a directory.
func ext4On(t *testing.T, dir string) {
	t.Helper()
	mountDisk(t, dir, diskSize, unix.MNT_DETACH, "mkfs.ext4", "-q", "-F")
}

// testLogRefusesForAWhile has a log refuse writes for a temporary reason other
// than space: nothing is lost, without any intervention.
func testLogRefusesForAWhile(t *testing.T, n *node) {
	dir, signals := t.TempDir(), t.TempDir()
	ext4On(t, dir)
	c := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = dir }).
		start(t, mount(signals, "/signal"), sh(fmt.Sprintf(countPaced, 3)))

	awaitGrowth(t, c)
	immutable := func(yes bool) {
		f, err := os.Open(c.logFile())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()

		const flag = 0x10 // FS_IMMUTABLE_FL
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			t.Fatal(err)
		}

		if flags &^= flag; yes {
			flags |= flag
		}
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
			t.Fatal(err)
		}
	}

	immutable(true)
	wantStandstill(t, n, c)
	immutable(false)
	awaitGrowth(t, c)
	endWriter(t, signals, c)
	wantCounted(t, c.logFile(), "")
}

// wantStandstill requires a container to block on its log, and others not to.
func wantStandstill(t *testing.T, n *node, c *container) {
	t.Helper()
	time.Sleep(300 * time.Millisecond)
	size := fileSize(t, c.logFile())
	n.pod(t, attempt(1)).start(t, sh("seq 1000; exit 0")).wantEnd(t, 0, "Completed")

	if got := string(c.exec(t, "echo", "there").Stdout); got != "there\n" {
		t.Errorf("exec says %q", got)
	}
	if now := fileSize(t, c.logFile()); now != size {
		t.Errorf("the log has %d bytes, had %d", now, size)
	}

	if st := c.status(t); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", st)
	}
	if log := slurp(n.path("state", "keeper.log")); !strings.Contains(log, "stdout of "+c.id+": write log: ") {
		t.Errorf("the keeper's log says\n%s", log)
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// mapped returns a function that reads a growing file through mapped memory:
// before Linux 6.15 ext4 refuses to read files after an error, but existing
// mappings still work.
func mapped(t *testing.T, path string) (read func() []byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	all, err := unix.Mmap(int(f.Fd()), 0, diskSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(all); err != nil {
			t.Error(err)
		}
	})

	return func() []byte { return all[:fileSize(t, path)] }
}

// refusesWrites returns a function that reports whether the disk of a directory
// refuses to extend files. Linux 6.1 accepts that after an error, and loses it.
func refusesWrites(t *testing.T, dir string) func() bool {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })

	return func() bool {
		_, err := f.Write(make([]byte, 64<<10))
		return err != nil
	}
}

// testLogDiskReadOnly has a disk become read-only as one does after an error,
// under an open log. It cannot become writable again; another one takes its
// place, where kubelet notices that the log is missing and reopens it.
func testLogDiskReadOnly(t *testing.T, n *node) {
	dir, signals := t.TempDir(), t.TempDir()
	ext4On(t, dir)
	c := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = dir }).
		start(t, mount(signals, "/signal"), sh(fmt.Sprintf(countPaced, 3)))

	awaitGrowth(t, c)
	log, refuses := mapped(t, c.logFile()), refusesWrites(t, dir)
	if out, err := exec.Command("mount", "-o", "remount,abort", dir).CombinedOutput(); err != nil {
		t.Fatalf("make the disk read-only: %v: %s", err, out)
	}

	if !refuses() {
		// What is written is lost, and no program can know. The container must be
		// taken over all the same.
		n.killKeeper(t)
		ext4On(t, dir)
		call(t, n.Runtime.ReopenContainerLog, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
		awaitGrowth(t, c)
		endWriter(t, signals, c)
		return
	}

	wantStandstill(t, n, c)
	n.killKeeper(t)
	wantStandstill(t, n, c)
	old := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(old, log(), 0o644); err != nil {
		t.Fatal(err)
	}

	ext4On(t, dir)
	call(t, n.Runtime.ReopenContainerLog, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
	awaitGrowth(t, c)
	endWriter(t, signals, c)
	wantCounted(t, c.logFile(), old)
}

func testLogDirectoryRemoved(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.start(t, sh("i=0; while :; do echo $i || exit 99; i=$((i+1)); done"))
	eventually(t, "there is a log", func() bool { return slurp(c.logFile()) != "" })
	if err := os.RemoveAll(filepath.Dir(c.logFile())); err != nil {
		t.Fatal(err)
	}

	n.killKeeper(t) // its successor does not know the path
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
