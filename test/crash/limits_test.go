//go:build crash

package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// limit is something that the machine has no more of.
type limit struct {
	name string
	// impose takes it away but for a random rest; lift gives it back.
	impose func(n *node, random *rand.Rand) error
	lift   func(n *node) error
	// fatal says that it may end the keeper or the connection to it.
	fatal bool
	code  codes.Code
}

var limits = []limit{
	{name: "disk full", impose: fillDisk, lift: (*node).emptyDisk, code: codes.ResourceExhausted},
	{name: "no more files on disk", impose: fillInodes, lift: (*node).emptyDisk, code: codes.ResourceExhausted},
	{name: "disk read-only", impose: readOnly, lift: (*node).writable, code: codes.FailedPrecondition},
	{name: "descriptors of the daemon", code: codes.ResourceExhausted, fatal: true,
		impose: func(n *node, r *rand.Rand) error { return limitFiles(n.PID(), r.IntN(12)) },
		lift:   func(n *node) error { return limitFiles(n.PID(), 100000) }},
	{name: "descriptors of the keeper", code: codes.ResourceExhausted, fatal: true,
		impose: func(n *node, r *rand.Rand) error { return n.limitKeeperFiles(r.IntN(8)) },
		lift:   func(n *node) error { return n.limitKeeperFiles(100000) }},
	{name: "processes of the keeper", code: codes.ResourceExhausted, fatal: true,
		impose: (*node).limitTasks, lift: (*node).unlimitTasks},
}

// TestFaultLimits makes every operation meet the limits of the machine.
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
	score := score{first: "limit"}
	for _, l := range limits {
		for _, op := range operations {
			score.add(l.name, "operations", t.Run(l.name+"/"+op.name, func(t *testing.T) { n.limited(t, op, l, random) }))
		}
	}
	score.publish(t, "limits of the machine")
}

// mountDisk mounts a disk until the test ends, and makes it the data folder of
// the daemon that lives in dir.
func mountDisk(t *testing.T, dir, image, options string) {
	t.Helper()
	disk := t.TempDir()
	command(t, "mount", "-o", options, image, disk)
	t.Cleanup(func() { command(t, "umount", disk) })
	// The daemon's folder is removed before.
	if err := os.Symlink(disk, filepath.Join(dir, "root")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(disk, 0o755); err != nil {
		t.Fatal(err)
	}
}

func (n *node) limited(t *testing.T, op operation, l limit, random *rand.Rand) {
	s := n.newScene(t)
	defer n.tidy(t, s)
	for _, f := range op.prepare {
		f(s)
	}
	n.give(t)
	if err := l.impose(n, random); err != nil {
		t.Fatal(err)
	}
	failure := op.call(s)
	_, listErr := try(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	if err := l.lift(n); err != nil {
		t.Fatal(err)
	}
	if listErr != nil {
		t.Errorf("list pods: %v", listErr)
	}
	defer func() {
		if t.Failed() {
			t.Logf("the call had ended with: %v", failure)
		}
	}()
	if code := status.Code(failure); failure != nil && code != l.code && !(l.fatal && code == codes.Unavailable) {
		t.Errorf("got %v, want code %v", failure, l.code)
	}
	n.awaitKeeper(t, 0)
	s.wantListed()
	if op.name == "StartContainer" && failure != nil && len(s.containers()) == 1 {
		s.wantStarted()
	}
	if op.heal != nil {
		op.heal(s)
	}
	if failure != nil && (op.skip == nil || !op.skip(s)) {
		s.must("try again", op.call(s))
	}
	op.done(s)
}

// wantStarted wants a start that failed to be recorded at last, and to be the
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

// fillDisk leaves up to 16 KB.
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

// fillInodes leaves up to twenty.
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

// readOnly puts read-only mounts over the folders: the disk itself is in use.
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

// limitFiles lets a process open so many files more.
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
		return nil // there is another one soon
	}
	if err != nil {
		return err
	}
	return limitFiles(pid, more)
}

// tasks is a group that limits processes.
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
