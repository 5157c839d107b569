package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/test/testkit"
)

// testNode is the machine's node with a default parent of the test's own.
func testNode(t testing.TB) *Node {
	t.Helper()
	testkit.Root(t)
	// The library keeps a descriptor from its first read on.
	_, _ = cgroups.ReadFile(mountPoint, "cgroup.controllers")
	if _, ok := t.(*testing.T); ok {
		testkit.Leaks(t)
	}
	n, err := New(Cgroupfs, "/"+testkit.Name(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close node: %v", err)
		}
	})
	return n
}

// v1Node skips where the unified hierarchy is in use.
func v1Node(t testing.TB) *Node {
	t.Helper()
	n := testNode(t)
	if n.V2() {
		testkit.Skip(t, "cgroup1", "the machine has the unified hierarchy")
	}
	return n
}

// eachNode runs a test on the machine's own node and, where that is version 1
// with the unified hierarchy beside it, on the latter too. There are no
// controllers there, but births, kills, freezes, pressure and device filters
// are the real thing.
func eachNode(t *testing.T, f func(t *testing.T, n *Node)) {
	t.Run("native", func(t *testing.T) { f(t, testNode(t)) })
	t.Run("unified", func(t *testing.T) {
		n := testNode(t)
		if n.V2() {
			t.Skip("it is the native one")
		}
		beside := &Node{driver: Cgroupfs, v2: true, root: filepath.Join(mountPoint, "unified"), parent: n.parent}
		if !exists(filepath.Join(beside.root, "cgroup.controllers")) {
			testkit.Skip(t, "cgroup2", "no unified hierarchy is mounted")
		}
		t.Cleanup(func() {
			if err := beside.Close(); err != nil {
				t.Errorf("close node: %v", err)
			}
		})
		f(t, beside)
	})
}

// resources are container resources that the node has controllers for.
func resources(n *Node) *specs.LinuxResources {
	r := containerResources()
	if n.root != mountPoint {
		r.CPU, r.Memory = nil, nil
	}
	return r
}

func create(t testing.TB, n *Node, parent, id string, r *specs.LinuxResources) *Group {
	t.Helper()
	path, err := n.Path(parent, id)
	if err != nil {
		t.Fatal(err)
	}
	g, err := n.Create(t.Context(), path, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			t.Error(err)
		}
	})
	return g
}

// process is a child that is reaped as soon as it ends: a dead one would stay
// in its group.
type process struct {
	pid  int
	done chan struct{}
	err  error
}

// wait returns how the process ended.
func (p *process) wait() error {
	<-p.done
	return p.err
}

// run starts a shell command that joins the group before it begins.
func run(t testing.TB, g *Group, script string) *process {
	t.Helper()
	files, err := g.Entry()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c")
	join := ""
	for i, f := range files {
		defer f.Close()
		if g.node.v2 {
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
			continue
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		// dash knows descriptors 0 to 9 only.
		join += fmt.Sprintf("echo 0 > /proc/self/fd/%d; ", 3+i)
	}
	cmd.Args = append(cmd.Args, join+script)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.done
	})
	return p
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func read(t testing.TB, g *Group, controller, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(g.dir(controller), name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func ptr[T any](v T) *T { return &v }

func containerResources() *specs.LinuxResources {
	r := &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000))},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))},
		Devices: []specs.LinuxDeviceCgroup{
			{Allow: false, Access: "rwm"},
			{Allow: true, Type: "c", Access: "m"},
			{Allow: true, Type: "b", Access: "m"},
		},
	}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}} {
		r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(d[0]), Minor: ptr(d[1]), Access: "rwm"})
	}
	return r
}

func TestCreateV1(t *testing.T) {
	n := v1Node(t)
	g := create(t, n, "", "web", containerResources())
	for _, c := range []struct{ controller, file, want string }{
		{"cpu", "cpu.shares", "512"},
		{"cpu", "cpu.cfs_quota_us", "50000"},
		{"cpu", "cpu.cfs_period_us", "100000"},
		{"memory", "memory.limit_in_bytes", strconv.Itoa(64 << 20)},
		{"cpuset", "cpuset.mems", strings.TrimSpace(readRoot(t, n, "cpuset", "cpuset.mems"))},
		{"cpuset", "cpuset.cpus", strings.TrimSpace(readRoot(t, n, "cpuset", "cpuset.cpus"))},
		{"devices", "devices.list", "c *:* m\nb *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\nc 5:0 rwm\nc 5:2 rwm"},
	} {
		if got := read(t, g, c.controller, c.file); got != c.want {
			t.Errorf("%s is %q, want %q", c.file, got, c.want)
		}
	}
	if n.swap {
		if got := read(t, g, "memory", "memory.memsw.limit_in_bytes"); got != strconv.Itoa(64<<20) {
			t.Errorf("memory and swap limit is %s: a limit without a word about swap must mean none", got)
		}
	}
}

func readRoot(t testing.TB, n *Node, controller, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.mount(controller), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// What a process may do with devices is what counts, not what the files say.
func TestDeviceRules(t *testing.T) { eachNode(t, testDeviceRules) }

func testDeviceRules(t *testing.T, n *Node) {
	g := create(t, n, "", "dev", resources(n))
	probe := func() string {
		out, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd := run(t, g, "for d in null kmsg; do (: < /dev/$d) 2>/dev/null && echo $d; done > "+out.Name())
		if err := cmd.wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(out.Name())
		return strings.Join(strings.Fields(string(data)), " ")
	}
	if got := probe(); got != "null" {
		t.Fatalf("could open %q, want null alone", got)
	}
	// An update, also after a restart, must not drop the rules.
	r := resources(n)
	if r.CPU != nil {
		r.CPU.Shares = ptr(uint64(1024))
	}
	if err := g.Set(r); err != nil {
		t.Fatal(err)
	}
	g, err := n.Open(g.Path())
	if err != nil {
		t.Fatal(err)
	}
	for _, devices := range [][]specs.LinuxDeviceCgroup{nil, r.Devices} {
		r.Devices = devices
		if err := g.Set(r); err != nil {
			t.Fatal(err)
		}
		if got := probe(); got != "null" {
			t.Fatalf("after an update with %d device rules could open %q, want null alone", len(devices), got)
		}
	}
	r.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	if err := g.Set(r); err != nil {
		t.Fatal(err)
	}
	if got := probe(); got != "null kmsg" {
		t.Fatalf("after allowing everything could open %q", got)
	}
}

// Containers with the same rules share a filter, until one's rules change.
func TestSharedFilter(t *testing.T) { eachNode(t, testSharedFilter) }

func testSharedFilter(t *testing.T, n *Node) {
	if !n.v2 {
		t.Skip("version 1 has no filters")
	}
	opens := func(g *Group) bool { return run(t, g, ": < /dev/kmsg").wait() == nil }
	a, b := create(t, n, "", "a", resources(n)), create(t, n, "", "b", resources(n))
	if len(n.filters.programs) != 1 {
		t.Errorf("%d programs for the same rules twice", len(n.filters.programs))
	}
	all := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	if err := a.Set(all); err != nil {
		t.Fatal(err)
	}
	if !opens(a) || opens(b) {
		t.Errorf("after a was opened, it can open kmsg: %v, and b: %v", opens(a), opens(b))
	}
	c := create(t, n, "", "c", all)
	if !opens(c) {
		t.Error("a container that may use everything cannot")
	}
	d := create(t, n, "", "d", resources(n))
	if opens(d) {
		t.Error("a container with the first rules got others")
	}
}

func TestNoResourcesMeansNoDevices(t *testing.T) {
	n := v1Node(t)
	g := create(t, n, "", "none", nil)
	if got := read(t, g, "devices", "devices.list"); got != "" {
		t.Errorf("device rules are %q, want none", got)
	}
}

// Memory and swap limits must be written in an order that the kernel takes,
// whichever way they go.
func TestSetMemoryOrder(t *testing.T) {
	n := v1Node(t)
	g := create(t, n, "", "mem", containerResources())
	const mb = 1 << 20
	for _, c := range []struct{ limit, swap int64 }{
		{128 * mb, 0}, {32 * mb, 0}, {32 * mb, 64 * mb}, {256 * mb, 256 * mb}, {16 * mb, 512 * mb}, {-1, 0}, {64 * mb, 64 * mb},
	} {
		m := &specs.LinuxMemory{Limit: ptr(c.limit)}
		if c.swap != 0 {
			m.Swap = ptr(c.swap)
		}
		if err := g.Set(&specs.LinuxResources{Memory: m}); err != nil {
			t.Fatalf("set limit %d swap %d: %v", c.limit, c.swap, err)
		}
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if want := uint64(max(c.limit, 0)); s.Memory.Limit != want {
			t.Errorf("limit is %d, want %d", s.Memory.Limit, want)
		}
		if want := uint64(max(c.swap-c.limit, 0)); n.swap && c.limit > 0 && s.Memory.SwapLimit != want {
			t.Errorf("swap limit is %d, want %d", s.Memory.SwapLimit, want)
		}
	}
}

func TestSetCPU(t *testing.T) {
	n := v1Node(t)
	g := create(t, n, "", "cpu", containerResources())
	for _, c := range []struct {
		cpu                 specs.LinuxCPU
		quota, period, cpus string
	}{
		{specs.LinuxCPU{Quota: ptr(int64(-1))}, "-1", "100000", ""},
		{specs.LinuxCPU{Quota: ptr(int64(20000)), Period: ptr(uint64(50000))}, "20000", "50000", ""},
		{specs.LinuxCPU{Shares: ptr(uint64(1)), Cpus: "0"}, "20000", "50000", "0"},
	} {
		if err := g.Set(&specs.LinuxResources{CPU: &c.cpu}); err != nil {
			t.Fatal(err)
		}
		if q, p := read(t, g, "cpu", "cpu.cfs_quota_us"), read(t, g, "cpu", "cpu.cfs_period_us"); q != c.quota || p != c.period {
			t.Errorf("quota and period are %s %s, want %s %s", q, p, c.quota, c.period)
		}
		if got := read(t, g, "cpuset", "cpuset.cpus"); c.cpus != "" && got != c.cpus {
			t.Errorf("processors are %s, want %s", got, c.cpus)
		}
	}
	err := g.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "999"}})
	if !errors.Is(err, ErrResources) || !strings.Contains(err.Error(), "999") {
		t.Errorf("processor 999: got error %v, want %v, and one that names it", err, ErrResources)
	}
	if err := g.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(500))}}); !errors.Is(err, ErrResources) {
		t.Errorf("a quota below 1 ms: got %v, want %v", err, ErrResources)
	}
}

// A failed Create leaves nothing, not even the parent.
func TestCreateFails(t *testing.T) {
	n := v1Node(t)
	parent := n.parent + "-x/pod1"
	path, err := n.Path(parent, "bad")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Create(t.Context(), path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "999"}}); !errors.Is(err, ErrResources) {
		t.Fatalf("a cpuset of processor 999: got %v, want %v", err, ErrResources)
	}
	if _, err := n.Open(path); !errors.Is(err, ErrNotFound) {
		t.Errorf("open after a failed create: %v, want %v", err, ErrNotFound)
	}
	if _, err := n.Parent(parent); !errors.Is(err, ErrNotFound) {
		t.Errorf("the parent is left: %v", err)
	}
}

// Parents are kubelet's unless this package made them.
func TestParents(t *testing.T) { eachNode(t, testParents) }

func testParents(t *testing.T, n *Node) {
	theirs := n.parent + "-kubelet"
	for _, dir := range n.dirs(theirs) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(dir)
	}
	ctx := t.Context()
	for _, c := range []struct {
		parent string
		stays  bool
	}{{theirs, true}, {theirs + "/pod1", false}, {n.parent, true}, {n.parent + "-made/a/b", false}} {
		path, err := n.Path(c.parent, "c")
		if err != nil {
			t.Fatal(err)
		}
		a, err := n.Create(ctx, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		b := create(t, n, c.parent, "d", nil)
		if err := a.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		if !b.Exists() {
			t.Fatalf("%s: removing one group removed the other", c.parent)
		}
		if err := b.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		if err := b.Remove(ctx); err != nil {
			t.Errorf("second removal: %v", err)
		}
		if _, err := n.Parent(c.parent); (err == nil) != c.stays {
			t.Errorf("%s: after its last group: %v, want it to stay: %v", c.parent, err, c.stays)
		}
	}
	if _, err := n.Parent(n.parent + "-made"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a parent of ours two levels up is left: %v", err)
	}
}

func TestKill(t *testing.T) { eachNode(t, testKill) }

func testKill(t *testing.T, n *Node) {
	g := create(t, n, "", "kill", resources(n))
	if err := g.Kill(t.Context()); err != nil {
		t.Fatalf("kill an empty group: %v", err)
	}
	// It ignores what can be ignored and has children in groups of their own.
	below := filepath.Join(g.processDir(), "below")
	run(t, g, "trap '' TERM INT HUP; sleep 1000 & mkdir "+below+"; sleep 1000 & echo $! > "+below+"/cgroup.procs; wait")
	waitFor(t, "three processes", func() bool {
		pids, err := g.Pids()
		inner, _ := os.ReadFile(below + "/cgroup.procs")
		return err == nil && len(pids) == 3 && len(inner) > 1
	})
	if err := g.Remove(shortContext(t)); !errors.Is(err, ErrBusy) {
		t.Errorf("remove a running group: %v, want %v", err, ErrBusy)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := g.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Pids(); err != nil || len(pids) != 0 {
		t.Errorf("processes after kill: %v, %v", pids, err)
	}
	if err := g.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(ctx); err != nil {
		t.Errorf("kill a group that is gone: %v", err)
	}
}

func shortContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// A group in which everything forks all the time dies too.
func TestKillForks(t *testing.T) {
	n := testNode(t)
	g := create(t, n, "", "bomb", &specs.LinuxResources{
		Pids:    &specs.LinuxPids{Limit: ptr(int64(60))},
		Devices: containerResources().Devices,
	})
	run(t, g, `f() { while :; do (f) & (f) & wait; done; }; f 2>/dev/null`)
	waitFor(t, "forks", func() bool { pids, _ := g.Pids(); return len(pids) > 20 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := g.Kill(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestFreeze(t *testing.T) { eachNode(t, testFreeze) }

func testFreeze(t *testing.T, n *Node) {
	g := create(t, n, "", "cold", nil)
	run(t, g, "while :; do :; done")
	waitFor(t, "a process", func() bool { pids, _ := g.Pids(); return len(pids) == 1 })
	usage := func() uint64 {
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return s.CPU.Usage
	}
	ctx := t.Context()
	if err := g.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	before := usage()
	time.Sleep(50 * time.Millisecond)
	if after := usage(); after-before > uint64(5*time.Millisecond) {
		t.Errorf("a frozen group used %v of processor time", time.Duration(after-before))
	}
	if err := g.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	before = usage()
	waitFor(t, "the group to go on", func() bool { return usage()-before > uint64(5*time.Millisecond) })
}

func TestStatsLive(t *testing.T) {
	n := v1Node(t)
	g := create(t, n, "", "live", containerResources())
	run(t, g, `head -c 8388608 /dev/zero | tail -c 8388608 | { read x; sleep 1000; }`)
	var s *Stats
	waitFor(t, "memory in use", func() bool {
		var err error
		if s, err = g.Stats(); err != nil {
			t.Fatal(err)
		}
		return s.Memory.RSS > 4<<20
	})
	m := s.Memory
	if s.CPU.Usage == 0 || m.Usage < m.RSS || m.WorkingSet == 0 || m.WorkingSet > m.Usage || m.MaxUsage < m.Usage ||
		m.Faults == 0 || m.Limit != 64<<20 || s.Pids.Current == 0 || s.Time.IsZero() {
		t.Errorf("implausible: %+v", s)
	}
}

func TestOOMKills(t *testing.T) {
	n := v1Node(t)
	g := create(t, n, "", "oom", &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(8 << 20))},
		Devices: containerResources().Devices,
	})
	if kills, err := g.OOMKills(); err != nil || kills != 0 {
		t.Fatalf("before: %d, %v", kills, err)
	}
	if err := run(t, g, "exec tail /dev/zero").wait(); err == nil {
		t.Fatal("a process of unbounded memory ended well")
	}
	waitFor(t, "an OOM kill", func() bool {
		kills, err := g.OOMKills()
		if err != nil {
			t.Fatal(err)
		}
		return kills == 1
	})
}

func TestGone(t *testing.T) { eachNode(t, testGone) }

func testGone(t *testing.T, n *Node) {
	g := create(t, n, "", "gone", nil)
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, statsErr := g.Stats()
	_, pidsErr := g.Pids()
	_, oomErr := g.OOMKills()
	_, entryErr := g.Entry()
	_, openErr := n.Open(g.Path())
	for what, err := range map[string]error{
		"stats": statsErr, "pids": pidsErr, "oom": oomErr, "entry": entryErr, "open": openErr,
		"set": g.Set(resources(n)), "freeze": g.Freeze(t.Context()),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s of a removed group: %v, want %v", what, err, ErrNotFound)
		}
	}
}

// A process that joins a container goes where its first process went.
func TestEntryOf(t *testing.T) { eachNode(t, testEntryOf) }

func testEntryOf(t *testing.T, n *Node) {
	g := create(t, n, "", "nested", resources(n))
	p := run(t, g, "exec sleep 1000")
	waitFor(t, "a process", func() bool { pids, _ := g.Pids(); return len(pids) == 1 })
	names := func(files []*os.File, err error) (list []string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			list = append(list, f.Name())
			f.Close()
		}
		return list
	}
	plain := names(g.Entry())
	if got := names(g.EntryOf(p.pid)); !slices.Equal(got, plain) {
		t.Errorf("beside the first process: %v, want %v", got, plain)
	}
	if got := names(g.EntryOf(os.Getpid())); !slices.Equal(got, plain) {
		t.Errorf("beside a process of another group: %v, want %v", got, plain)
	}
	below := filepath.Join(g.processDir(), "init.scope")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(below+"/cgroup.procs", []byte(strconv.Itoa(p.pid)), 0); err != nil {
		t.Fatal(err)
	}
	want := plain
	if n.v2 {
		want = []string{below}
	}
	if got := names(g.EntryOf(p.pid)); !slices.Equal(got, want) {
		t.Errorf("beside a first process that has moved: %v, want %v", got, want)
	}
}

// Groups of one parent come and go at the same time, and the parent with them.
func TestConcurrent(t *testing.T) { eachNode(t, testConcurrent) }

func testConcurrent(t *testing.T, n *Node) {
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			for i := range 15 {
				path, err := n.Path(n.parent+"-busy/pod", fmt.Sprintf("c%d-%d", worker, i))
				if err != nil {
					t.Error(err)
					return
				}
				g, err := n.Create(t.Context(), path, resources(n))
				if err != nil {
					t.Error(err)
					return
				}
				_, statsErr := g.Stats()
				if err := errors.Join(statsErr, g.Set(resources(n)), g.Remove(t.Context())); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := n.Parent(n.parent + "-busy"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the parent is left: %v", err)
	}
}

func TestUnifiedNeedsV2(t *testing.T) {
	n := v1Node(t)
	path, _ := n.Path("", "u")
	if _, err := n.Create(t.Context(), path, &specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v, want %v", err, ErrUnsupported)
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	n := testNode(b)
	r := resources(n)
	path, _ := n.Path("", "bench")
	var creating, removing time.Duration
	for b.Loop() {
		start := time.Now()
		g, err := n.Create(b.Context(), path, r)
		if err != nil {
			b.Fatal(err)
		}
		created := time.Now()
		if err := g.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
		creating += created.Sub(start)
		removing += time.Since(created)
	}
	b.ReportMetric(float64(creating.Microseconds())/float64(b.N), "create-µs")
	b.ReportMetric(float64(removing.Microseconds())/float64(b.N), "remove-µs")
}

func BenchmarkStats(b *testing.B) {
	n := testNode(b)
	g := create(b, n, "", "bench", containerResources())
	for b.Loop() {
		if _, err := g.Stats(); err != nil {
			b.Fatal(err)
		}
	}
}
