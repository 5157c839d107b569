package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// soon is how long killing a hostile group may take.
const soon = 5 * time.Second

// wantSoon kills and removes a group in time.
func wantSoon(t *testing.T, g *Group) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(4*soon))
	defer cancel()
	began := time.Now()
	if err := g.Kill(ctx); err != nil {
		t.Fatalf("kill, after %v: %v", time.Since(began), err)
	}

	killed := time.Since(began)
	if err := g.Remove(ctx); err != nil {
		t.Fatalf("remove, after %v: %v", time.Since(began), err)
	}

	took := time.Since(began)
	t.Logf("killed in %v, gone after %v", killed, took)
	if took > pace.Scale(soon) {
		t.Errorf("it took %v", took)
	}

	if g.Exists() {
		t.Error("the group is still there")
	}
}

// bomb fills a group with processes that fork continuously once it is lit.
func bomb(t *testing.T, g *Group, count int) (first *process, light func()) {
	t.Helper()
	lit := filepath.Join(t.TempDir(), "lit")
	first = run(t, g, fmt.Sprintf(`i=0; while [ $i -lt %d ]; do i=$((i+1))
(while [ ! -e %s ]; do sleep 1; done; while :; do (:); done) 2>/dev/null & done; wait`, count, lit))

	waitFor(t, "processes", func() bool {
		time.Sleep(20 * time.Millisecond)
		pids, _ := g.Pids()
		return len(pids) >= count
	})
	return first, func() {
		if err := os.WriteFile(lit, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// wantReaped waits for a killed process and its orphans, which are the test's
// children now: moved out of their group they may still need CPU time to exit.
func wantReaped(t *testing.T, p *process) {
	t.Helper()
	began := time.Now()
	_ = p.wait()
	waitFor(t, "the orphans to end", func() bool {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if err == unix.ECHILD {
				return true
			}
			if err == nil && pid == 0 {
				return false
			}
		}
	})

	if took := time.Since(began); took > pace.Scale(soon) {
		t.Errorf("the processes exited %v after their group was removed", took)
	}
}

// parentOf creates the parent of a test's groups, as kubelet would.
func parentOf(t *testing.T, n *Node) string {
	t.Helper()
	rel := n.parent + "-pod"
	for i, dir := range n.dirs(rel) {
		if _, err := n.makeDir(dir, n.hierarchies[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
	}

	if dir := filepath.Join(n.mount("cpuset"), rel); !n.v2 && n.mount("cpuset") != "" {
		if err := fillCpuset(dir, "", ""); err != nil {
			t.Fatal(err)
		}
	}

	return rel
}

// A fork bomb with a quota of a hundredth of a CPU needs CPU time to exit.
func TestKillForkBombUnderQuota(t *testing.T) {
	for _, where := range []string{"own", "parent"} {
		t.Run(where, func(t *testing.T) {
			n := testNode(t)
			if n.mount("cpu") == "" {
				testkit.Skip(t, "cpu", "no controller")
			}

			parent := parentOf(t, n)
			r := containerResources()
			r.CPU, r.Memory, r.Pids = nil, nil, &specs.LinuxPids{Limit: ptr(int64(2000))}
			g := create(t, n, parent, "bomb", r)
			first, light := bomb(t, g, pace.Load(500))
			dir := g.dir("cpu")

			if where == "parent" {
				dir = filepath.Dir(dir)
			}
			name, value := "cpu.cfs_quota_us", "1000"

			if n.v2 {
				name, value = "cpu.max", "1000 100000"
			}
			if err := writeFile(dir, name, value); err != nil {
				t.Fatal(err)
			}

			light()
			time.Sleep(pace.Scale(2 * time.Second)) // it exhausts its quota
			wantSoon(t, g)
			wantReaped(t, first)

			if got, err := os.ReadFile(filepath.Join(dir, name)); where == "parent" && (err != nil || !strings.HasPrefix(string(got), "1000")) {
				t.Errorf("the parent's quota is %q, %v", got, err)
			}
		})
	}
}

// Processes frozen at any level, by any process, can be killed.
func TestKillFrozen(t *testing.T) { eachNode(t, testKillFrozen) }

func testKillFrozen(t *testing.T, n *Node) {
	for _, where := range []string{"group", "below", "parent"} {
		t.Run(where, func(t *testing.T) {
			parent := parentOf(t, n)
			g := create(t, n, parent, "cold", resources(n))
			below := filepath.Join(g.processDir(), "below")
			run(t, g, "sleep 1000 & mkdir "+below+"; sleep 1000 & echo $! > "+below+"/cgroup.procs; wait")
			waitFor(t, "three processes", func() bool {
				pids, err := g.Pids()
				inner, _ := os.ReadFile(below + "/cgroup.procs")
				return err == nil && len(pids) == 3 && len(inner) > 1
			})

			dir := map[string]string{"group": g.processDir(), "below": below, "parent": filepath.Dir(g.processDir())}[where]
			name, cold, warm := "freezer.state", "FROZEN", "THAWED"
			if n.v2 {
				name, cold, warm = "cgroup.freeze", "1", "0"
			}
			if err := writeFile(dir, name, cold); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = writeFile(dir, name, warm) })
			wantSoon(t, g)

			if got, _ := os.ReadFile(filepath.Join(dir, name)); where == "parent" && !strings.HasPrefix(string(got), cold[:1]) {
				t.Errorf("the parent is %q", got)
			}
		})
	}
}

// A container at its memory limit, with the OOM killer disabled, can be killed.
func TestKillWithoutMemory(t *testing.T) {
	for name, disable := range map[string]bool{"limit": false, "no killing": true} {
		t.Run(name, func(t *testing.T) {
			n := testNode(t)
			if n.v2 && disable {
				testkit.Skip(t, "cgroup1", "version 2 always kills")
			}

			g := create(t, n, "", "full", &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20)), DisableOOMKiller: &disable}, Devices: containerResources().Devices,
			})
			run(t, g, "while :; do tail /dev/zero; done & while :; do tail /dev/zero; done & wait")
			time.Sleep(pace.Scale(time.Second))
			wantSoon(t, g)
		})
	}
}

// A container with write access to its groups moves a process in one hierarchy only.
func TestKillInOneHierarchy(t *testing.T) {
	n := v1Node(t)
	g := create(t, n, "", "moved", containerResources())
	p := run(t, g, "exec sleep 1000")
	waitForSleep(t, p.pid)

	for i, dir := range g.dirs {
		if n.hierarchies[i].controllers == nil || n.hierarchies[i].controllers[0] == "cpuset" {
			continue
		}
		if err := os.WriteFile(filepath.Join(filepath.Dir(filepath.Dir(dir)), "tasks"), []byte(strconv.Itoa(p.pid)), 0); err != nil {
			t.Fatal(err)
		}
	}

	if pids, err := g.Pids(); err != nil || len(pids) != 1 {
		t.Errorf("processes %v, %v, want the one that has moved", pids, err)
	}
	wantSoon(t, g)
	_ = p.wait()
}

// A killed group has its pids.max again when it is reused.
func TestKillRestoresForks(t *testing.T) {
	n := v1Node(t)
	r := containerResources()
	r.Pids = &specs.LinuxPids{Limit: ptr(int64(77))}
	g := create(t, n, "", "again", r)
	for range 2 {
		p := run(t, g, "exec sleep 1000")
		waitForSleep(t, p.pid)
		if err := g.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if most := read(t, g, "pids", "pids.max"); most != "77" {
			t.Errorf("after a kill it may have %s processes", most)
		}
	}
}

// nest creates child groups: many, with every kind of name, and deep.
func nest(t *testing.T, dir string, wide, deep int) (made int) {
	t.Helper()
	at, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { at.Close() }()

	names := []string{strings.Repeat("\xff", 255), strings.Repeat("n", 255), "a b", "..x", "-", "\xc3\x28", "é\u202e", "\t\x1b[2J"}
	for i := range wide {
		names = append(names, strconv.Itoa(i))
	}

	for _, name := range names {
		if err := unix.Mkdirat(int(at.Fd()), name, 0o755); err != nil {
			t.Logf("the kernel creates no more than %d groups: %v", made, err)
			break
		}
		made++
	}

	for range deep {
		if err := unix.Mkdirat(int(at.Fd()), "deep", 0o755); err != nil {
			t.Logf("the kernel creates no more than %d groups: %v", made, err)
			return made
		}

		made++
		next, err := openAt(at, "deep")
		if err != nil {
			t.Fatal(err)
		}
		at.Close()
		at = next
	}

	return made
}

// TestNested has a container create thousands of child groups in each
// hierarchy. Its statistics stay quick, and it is removed in time, with a
// handful of descriptors.
func TestNested(t *testing.T) { eachNode(t, testNested) }

func testNested(t *testing.T, n *Node) {
	g := create(t, n, "", "nest", resources(n))
	fast := statsTime(t, g)
	wide := pace.Load(10000)
	made := 0
	for i, dir := range g.dirs {
		// One hierarchy has all, the others as many as the test's time allows.
		many := wide / 20
		if dir == g.processDir() {
			many = wide
		}
		if n.hierarchies[i].limited() || n.hierarchies[i].unified() {
			made += nest(t, dir, many, 1000)
		}
	}

	run(t, g, "exec sleep 1000")
	waitFor(t, "a process", func() bool { pids, _ := g.Pids(); return len(pids) == 1 })
	t.Logf("%d groups", made)

	if slow := statsTime(t, g); slow > 2*fast+pace.Scale(5*time.Millisecond) {
		t.Errorf("statistics take %v, and took %v", slow, fast)
	}
	began := time.Now()

	if pids, err := g.Pids(); err != nil || len(pids) != 1 {
		t.Errorf("processes %v, %v", pids, err)
	}
	if took := time.Since(began); took > pace.Scale(time.Second) {
		t.Errorf("to list the processes takes %v", took)
	}

	// A cancelled removal returns at once.
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(30*time.Second))
	defer cancel()
	if err := g.Kill(ctx); err != nil {
		t.Fatal(err)
	}

	short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
	defer stop()
	began = time.Now()
	if err := g.Remove(short); !errors.Is(err, ErrBusy) && err != nil {
		t.Errorf("a removal that was cancelled: %v, want %v", err, ErrBusy)
	}

	if took := time.Since(began); took > pace.Scale(time.Second) {
		t.Errorf("a removal that was cancelled after 20 ms took %v", took)
	}

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}

	few := limit
	few.Cur = uint64(descriptors(t)) + 12
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }()

	began = time.Now()
	if err := g.Remove(ctx); err != nil {
		t.Fatal(err)
	}

	t.Logf("removed in %v", time.Since(began))
	if g.Exists() {
		t.Error("the group is still there")
	}
}

func descriptors(t *testing.T) (highest int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		n, _ := strconv.Atoi(e.Name())
		highest = max(highest, n)
	}
	return highest
}

func statsTime(t *testing.T, g *Group) time.Duration {
	t.Helper()
	best := time.Hour
	for range 5 {
		began := time.Now()
		if _, err := g.Stats(); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(began))
	}
	return best
}

// Processes deep down, where a group's path exceeds PATH_MAX, are found and killed.
func TestKillDeep(t *testing.T) { eachNode(t, testKillDeep) }

func testKillDeep(t *testing.T, n *Node) {
	g := create(t, n, "", "deep", resources(n))
	p := run(t, g, "exec sleep 1000")
	waitForSleep(t, p.pid)
	dir := g.processDir()

	if n.v2 {
		if err := writeFile(dir, "cgroup.max.depth", "max"); err != nil {
			t.Fatal(err)
		}
	}

	nest(t, dir, 0, 1000)
	var last *os.File
	err := walk(nil, dir, visitor{enter: func(at *os.File) error {
		if last != nil {
			last.Close()
		}
		fd, err := unix.Dup(int(at.Fd()))
		last = os.NewFile(uintptr(fd), "last")
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}

	defer last.Close()
	if err := writeAt(last, "cgroup.procs", strconv.Itoa(p.pid)); err != nil {
		t.Fatal(err)
	}

	if pids, err := g.Pids(); err != nil || len(pids) != 1 || pids[0] != p.pid {
		t.Errorf("processes %v, %v, want %d", pids, err, p.pid)
	}
	wantSoon(t, g)
}

// Groups of version 2 are bounded at creation.
func TestNestingIsBounded(t *testing.T) {
	n := v2Node(t)
	g := create(t, n, "", "bound", resources(n))
	if made := nest(t, g.dirs[0], 0, 100); made < 64 || made > 80 {
		t.Errorf("%d groups deep, want about 64", made)
	}
	if got := read(t, g, "", "cgroup.max.descendants"); got != "4096" {
		t.Errorf("%s groups may be created", got)
	}
}

// A threaded group does not list its processes, and cannot be killed at once.
func TestKillThreaded(t *testing.T) {
	n := v2Node(t)
	parent := parentOf(t, n)
	g := create(t, n, parent, "threads", resources(n))
	above := filepath.Dir(g.dirs[0])
	controllers, err := os.ReadFile(filepath.Join(above, "cgroup.subtree_control"))
	if err != nil {
		t.Fatal(err)
	}

	for _, c := range strings.Fields(string(controllers)) {
		if err := writeFile(above, "cgroup.subtree_control", "-"+c); err != nil {
			t.Fatal(err)
		}
	}

	if err := writeFile(g.dirs[0], "cgroup.type", "threaded"); err != nil {
		t.Fatal(err)
	}

	// Its processes are the parent's, with some or all threads in the group.
	p := run(t, create(t, n, "", "plain", resources(n)), "exec sleep 1000")
	waitForSleep(t, p.pid)
	if err := writeFile(above, "cgroup.procs", strconv.Itoa(p.pid)); err != nil {
		t.Fatal(err)
	}

	if err := writeFile(g.dirs[0], "cgroup.threads", strconv.Itoa(p.pid)); err != nil {
		t.Fatal(err)
	}
	wantSoon(t, g)
	_ = p.wait()
}
