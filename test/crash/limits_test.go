//go:build crash

package crash

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// limit is a resource of the machine that is exhausted.
type limit struct {
	name string
	// impose takes it away up to a small random rest; lift gives it back.
	impose func(n *node, random *rand.Rand) error
	lift   func(n *node) error
	// fatal means that it may end daemon or keeper, or the connection between them.
	fatal bool
	// stalls means that a process that needs more may block until it is lifted.
	stalls bool
	code   codes.Code
}

// stallTime bounds how long a limit that stalls is imposed.
const stallTime = 2 * time.Second

// outcome counts operations under a limit.
type outcome struct{ tried, refused, ended, succeeded, passed int }

func (o outcome) row(name string) string {
	return fmt.Sprintf("| %s | %d | %d | %d | %d | %d of %d |\n", name, o.tried, o.refused, o.ended, o.succeeded, o.passed, o.tried)
}

var limits = []limit{
	{name: "disk full", impose: fillDisk, lift: (*node).emptyDisk, code: codes.ResourceExhausted},
	{name: "out of inodes", impose: fillInodes, lift: (*node).emptyDisk, code: codes.ResourceExhausted},
	{name: "disk read-only", impose: readOnly, lift: (*node).writable, code: codes.FailedPrecondition},
	{name: "open files of the daemon", code: codes.ResourceExhausted, fatal: true,
		impose: func(n *node, r *rand.Rand) error { return limitFiles(n.PID(), r.IntN(12)) },
		lift:   func(n *node) error { return limitFiles(n.PID(), 100000) }},
	{name: "open files of the keeper", code: codes.ResourceExhausted, fatal: true,
		impose: func(n *node, r *rand.Rand) error { return n.limitKeeperFiles(r.IntN(8)) },
		lift:   func(n *node) error { return n.limitKeeperFiles(100000) }},
	{name: "processes of the keeper", code: codes.ResourceExhausted, fatal: true,
		impose: (*node).limitTasks, lift: (*node).unlimitTasks},
	{name: "memory of the daemon, OOM kill", code: codes.ResourceExhausted, fatal: true,
		impose: func(n *node, r *rand.Rand) error { return n.limitMemory(n.PID(), r, true) }, lift: (*node).unlimitMemory},
	{name: "memory of the keeper, OOM kill", code: codes.ResourceExhausted, fatal: true,
		impose: func(n *node, r *rand.Rand) error { return n.limitKeeperMemory(r, true) }, lift: (*node).unlimitMemory},
	{name: "memory of the daemon, ENOMEM", code: codes.ResourceExhausted, fatal: true, stalls: true,
		impose: func(n *node, r *rand.Rand) error { return n.limitMemory(n.PID(), r, false) }, lift: (*node).unlimitMemory},
	{name: "memory of the keeper, ENOMEM", code: codes.ResourceExhausted, fatal: true, stalls: true,
		impose: func(n *node, r *rand.Rand) error { return n.limitKeeperMemory(r, false) }, lift: (*node).unlimitMemory},
	{name: "address space of the daemon", code: codes.ResourceExhausted, fatal: true,
		impose: func(n *node, r *rand.Rand) error { return limitSpace(n.PID(), r) },
		lift:   func(n *node) error { return unlimitSpace(n.PID()) }},
	{name: "address space of the keeper", code: codes.ResourceExhausted, fatal: true,
		impose: func(n *node, r *rand.Rand) error { return n.limitKeeperSpace(r) },
		lift:   (*node).unlimitKeeperSpace},
}

// limited are the operations to be limited: those with step tables, and a pull.
var limited = append(slices.Clone(operations), operation{
	name: "PullImage",
	call: func(s *scene) error {
		_, err := try(s.t, s.n.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: nginx}})
		return err
	},
	done: func(s *scene) {
		kinds[2].change(s)
		s.container.Image.Image = nginx
		s.container.Tty, s.container.Stdin = false, false
		s.run()
		s.create()
		s.start()
		s.wantAlive()
		s.must("remove pod", s.tryRemovePod())
		s.n.removeImage(s.t, nginx)
	},
})

// TestFaultLimits runs every operation under every limit of the machine.
func TestFaultLimits(t *testing.T) {
	n := newNode(t, func(o *lab.Options) {
		o.Dir = t.TempDir()
		image := filepath.Join(t.TempDir(), "disk")
		command(t, "truncate", "-s", "96M", image)
		command(t, "mke2fs", "-q", "-t", "ext4", "-N", "4000", "-m", "0", image)
		mountDisk(t, o.Dir, image, "loop")
	})

	t.Logf("-seed %d", *seed)
	random := rand.New(rand.NewPCG(*seed, 2))
	table := "| limit | operations | refused | daemon or keeper ended | succeeded | passed |\n| --- | --- | --- | --- | --- | --- |\n"
	for _, l := range limits {
		var o outcome
		for i := range *limitRounds * len(limited) {
			op := limited[i%len(limited)]
			o.tried++
			if t.Run(l.name+"/"+op.name, func(t *testing.T) { n.limited(t, op, l, random, &o) }) {
				o.passed++
			}
		}

		if o.tried > 0 {
			table += o.row(l.name)
		}
	}

	t.Log(table)
	if !partial() {
		publish(t, "resource limits", table)
	}
}

var limitRounds = flag.Int("rounds", 1, "how often each operation is run under each limit")

// mountDisk mounts a disk until the test ends, as the data directory of the daemon
// in dir.
func mountDisk(t *testing.T, dir, image, options string) {
	t.Helper()
	disk := t.TempDir()
	command(t, "mount", "-o", options, image, disk)
	t.Cleanup(func() { command(t, "umount", disk) })
	// Clean-ups run in reverse: the daemon's directory is removed before.
	if err := os.Symlink(disk, filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(disk, 0o755); err != nil {
		t.Fatal(err)
	}
}

func (n *node) limited(t *testing.T, op operation, l limit, random *rand.Rand, o *outcome) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	for _, f := range op.prepare {
		f(s)
	}

	n.give(t)
	daemon, keeper := n.PID(), n.keeperOrNone()
	if err := l.impose(n, random); err != nil {
		t.Fatal(err, n.lift(l))
	}

	failure := n.meet(t, l, func() error { return op.call(s) })
	defer func() {
		if t.Failed() {
			t.Logf("the call: %v", failure)
		}
	}()

	if ended(daemon) && l.fatal {
		n.Kill() // only waits
		n.begin(t)
	}

	n.awaitKeeper(t, 0)
	switch code := status.Code(failure); {
	case n.PID() != daemon || n.keeperOrNone() != keeper:
		o.ended++
	case failure == nil:
		o.succeeded++
	case code == l.code:
		o.refused++
	}

	if code := status.Code(failure); failure != nil && code != l.code && !(l.fatal && (code == codes.Unavailable || pluginKilled(failure))) {
		t.Errorf("got %v, want code %v", failure, l.code)
	}
	s.wantListed()

	if op.name == "StartContainer" && failure != nil && len(s.containers()) == 1 {
		s.wantStarted()
	}
	if op.heal != nil {
		op.heal(s)
	}
	if failure != nil && (op.skip == nil || !op.skip(s)) {
		s.must("retry", op.call(s))
	}
	op.done(s)
}

// meet makes a call under a limit, and then lifts the limit.
func (n *node) meet(t *testing.T, l limit, call func() error) error {
	t.Helper()
	limit := callTime
	if l.stalls {
		limit = stallTime
	}

	reply := make(chan error, 1)
	go func() { reply <- call() }()
	var failure error
	select {
	case failure = <-reply:
		reply <- failure
	case <-time.After(limit):
	}

	daemon := n.PID()
	var listErr error
	if !l.stalls {
		_, listErr = try(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	}

	if err := n.lift(l); err != nil {
		t.Fatal(err)
	}
	if listErr != nil && !(l.fatal && ended(daemon)) {
		t.Errorf("list pods: %v", listErr)
	}

	return <-reply
}

// lift lifts a limit on processes that may have ended.
func (n *node) lift(l limit) error {
	if err := l.lift(n); err != nil && !(l.fatal && errors.Is(err, unix.ESRCH)) {
		return err
	}
	return nil
}

// ended reports whether a process has ended or does so within a moment.
func ended(pid int) bool {
	for range 20 {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil || zombie(pid) {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// pluginKilled reports whether a network plugin was OOM-killed: it is in the
// daemon's cgroup, and the daemon cannot know the reason.
func pluginKilled(err error) bool {
	return status.Code(err) == codes.Internal &&
		(strings.Contains(err.Error(), "signal: killed") || strings.Contains(err.Error(), "signal: segmentation fault"))
}

func (n *node) keeperOrNone() int {
	pid, err := n.Keeper()
	if err != nil {
		return 0 // it will be replaced soon
	}
	return pid
}

// wantStarted checks that a start that failed is recorded eventually, and was the
// only one.
func (s *scene) wantStarted() {
	s.t.Helper()
	if s.runs() {
		return
	}
	if err := s.tryStart(); err != nil && status.Code(err) != codes.FailedPrecondition {
		s.t.Errorf("the next start: %v", err)
	}
	if !s.runs() {
		s.wantEnd()
	}
}

func (n *node) disk() string { return filepath.Join(n.Dir, "root") }

// fillDisk leaves up to 16 KB free.
func fillDisk(n *node, random *rand.Rand) error {
	f, err := os.Create(filepath.Join(n.disk(), "filler"))
	if err != nil {
		return err
	}
	defer f.Close()

	block := make([]byte, 1<<20)
	for len(block) >= 512 {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			return err
		}
	}

	if err := f.Sync(); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}

	return f.Truncate(max(0, st.Size()-random.Int64N(5)*4096))
}

// fillInodes leaves up to twenty free.
func fillInodes(n *node, random *rand.Rand) error {
	dir := filepath.Join(n.disk(), "fillers")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}

	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if errors.Is(err, unix.ENOSPC) {
			for rest := random.IntN(20); rest > 0; rest-- {
				if err := os.Remove(filepath.Join(dir, fmt.Sprint(i-rest))); err != nil {
					return err
				}
			}
			return nil
		}
		if err != nil {
			return err
		}
		f.Close()
	}
}

func (n *node) emptyDisk() error {
	return errors.Join(os.RemoveAll(filepath.Join(n.disk(), "fillers")), os.RemoveAll(filepath.Join(n.disk(), "filler")))
}

// readOnly mounts the directories read-only over themselves: the disk itself is
// busy.
func readOnly(n *node, _ *rand.Rand) error {
	for _, name := range []string{"pods", "image", "cni"} {
		dir := filepath.Join(n.disk(), name)
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) writable() error {
	var errs []error
	for _, name := range []string{"pods", "image", "cni"} {
		errs = append(errs, unix.Unmount(filepath.Join(n.disk(), name), unix.MNT_DETACH))
	}
	return errors.Join(errs...)
}

// limitFiles lets a process open only a number of additional files.
func limitFiles(pid, more int) error {
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		return err
	}
	open := len(inventory.Names(fmt.Sprintf("/proc/%d/fd", pid)))
	old.Cur = min(old.Max, uint64(open+more))
	return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil)
}

func (n *node) limitKeeperFiles(more int) error {
	pid, err := n.Keeper()
	if errors.Is(err, os.ErrNotExist) {
		return nil // it will be replaced soon
	}
	if err != nil {
		return err
	}
	return limitFiles(pid, more)
}

// tasks is a cgroup that limits processes.
func (n *node) tasks() string { return "/sys/fs/cgroup/pids/" + n.Name + "-limit" }

func (n *node) limitTasks(random *rand.Rand) error {
	pid, err := n.Keeper()
	if err != nil {
		return err
	}

	if err := os.Mkdir(n.tasks(), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.tasks(), "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
		return err
	}

	now, err := os.ReadFile(filepath.Join(n.tasks(), "pids.current"))
	if err != nil {
		return err
	}

	var count int
	if _, err := fmt.Sscan(strings.TrimSpace(string(now)), &count); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.tasks(), "pids.max"), fmt.Append(nil, count+random.IntN(2)), 0)
}

func (n *node) unlimitTasks() error {
	procs, err := os.ReadFile(filepath.Join(n.tasks(), "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(string(procs)) {
		_ = os.WriteFile("/sys/fs/cgroup/pids/cgroup.procs", []byte(pid), 0) // it may have ended
	}
	return unix.Rmdir(n.tasks())
}
