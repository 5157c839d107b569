package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

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
			t.Errorf("memory and swap limit is %s: a limit without a swap limit must mean no swap", got)
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
		t.Fatalf("could open %q, want only null", got)
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
			t.Fatalf("after an update with %d device rules could open %q, want only null", len(devices), got)
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
// Version 1 has no filters.
func TestSharedFilter(t *testing.T) {
	n := v2Node(t)
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

func TestNoResourcesMeansNoDevices(t *testing.T) { eachNode(t, testNoResources) }

func testNoResources(t *testing.T, n *Node) {
	g := create(t, n, "", "none", nil)
	if !n.v2 {
		if got := read(t, g, "devices", "devices.list"); got != "" {
			t.Errorf("device rules are %q, want none", got)
		}
	}
	if err := run(t, g, ": < /dev/null").wait(); err == nil {
		t.Error("a process could open a device")
	}
}

// Memory and swap limits must be written in an order that the kernel accepts,
// whether they rise or fall.
func TestSetMemoryOrder(t *testing.T) {
	n := testNode(t)
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
	n := testNode(t)
	g := create(t, n, "", "cpu", containerResources())
	quota := func() string {
		if n.v2 {
			return strings.Replace(read(t, g, "cpu", "cpu.max"), "max", "-1", 1)
		}
		return read(t, g, "cpu", "cpu.cfs_quota_us") + " " + read(t, g, "cpu", "cpu.cfs_period_us")
	}

	for _, c := range []struct {
		cpu         specs.LinuxCPU
		quota, cpus string
	}{
		{specs.LinuxCPU{Quota: ptr(int64(-1))}, "-1 100000", ""},
		{specs.LinuxCPU{Quota: ptr(int64(20000)), Period: ptr(uint64(50000))}, "20000 50000", ""},
		{specs.LinuxCPU{Shares: ptr(uint64(1)), Cpus: "0"}, "20000 50000", "0"},
	} {
		if err := g.Set(&specs.LinuxResources{CPU: &c.cpu}); err != nil {
			t.Fatal(err)
		}
		if got := quota(); got != c.quota {
			t.Errorf("quota and period are %s, want %s", got, c.quota)
		}

		if got := read(t, g, "cpuset", "cpuset.cpus"); c.cpus != "" && got != c.cpus {
			t.Errorf("cpus are %s, want %s", got, c.cpus)
		}
	}

	err := g.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "999"}})
	if !errors.Is(err, ErrResources) || !strings.Contains(err.Error(), "999") {
		t.Errorf("CPU 999: got error %v, want %v, and one that names it", err, ErrResources)
	}
	if err := g.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(500))}}); !errors.Is(err, ErrResources) {
		t.Errorf("a quota below 1 ms: got %v, want %v", err, ErrResources)
	}
}

// A failed Create leaves nothing, not even the parent.
func TestCreateFails(t *testing.T) {
	n := testNode(t)
	parent := n.parent + "-x/pod1"
	path, err := n.Path(parent, "bad")
	if err != nil {
		t.Fatal(err)
	}

	if _, err := n.Create(t.Context(), path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "999"}}); !errors.Is(err, ErrResources) {
		t.Fatalf("a cpuset of CPU 999: got %v, want %v", err, ErrResources)
	}
	if _, err := n.Open(path); !errors.Is(err, ErrNotFound) {
		t.Errorf("open after a failed create: %v, want %v", err, ErrNotFound)
	}

	if _, err := n.Parent(parent); !errors.Is(err, ErrNotFound) {
		t.Errorf("the parent is left: %v", err)
	}
}

// Parents are kubelet's unless this package created them.
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

func TestStatsLive(t *testing.T) {
	n := testNode(t)
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
	if n.v2 && (s.CPU.Pressure == nil || m.Pressure == nil || s.IO.Pressure == nil) {
		t.Errorf("pressure is missing: %+v", s)
	}
}

func TestOOMKills(t *testing.T) {
	n := testNode(t)
	g := create(t, n, "", "oom", &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(8 << 20))},
		Devices: containerResources().Devices,
	})
	if kills, err := g.OOMKills(true); err != nil || kills != 0 {
		t.Fatalf("before: %d, %v", kills, err)
	}

	if err := run(t, g, "exec tail /dev/zero").wait(); err == nil {
		t.Fatal("a process of unbounded memory succeeded")
	}
	waitFor(t, "an OOM kill", func() bool {
		kills, err := g.OOMKills(true)
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
	_, oomErr := g.OOMKills(true)
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

// A process that joins a container enters the group of its init.
func TestEntryOf(t *testing.T) { eachNode(t, testEntryOf) }

func testEntryOf(t *testing.T, n *Node) {
	g := create(t, n, "", "nested", resources(n))
	p := run(t, g, "exec sleep 1000")
	waitFor(t, "a process", func() bool { pids, _ := g.Pids(); return len(pids) == 1 })
	names := func(e *Entry, err error) map[string]string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()

		list := map[string]string{}
		for name, f := range e.Files() {
			list[name] = f.Name()
		}
		return list
	}

	plain := names(g.Entry())
	if got := names(g.EntryOf(p.pid)); !maps.Equal(got, plain) {
		t.Errorf("joining the first process: %v, want %v", got, plain)
	}

	if got := names(g.EntryOf(os.Getpid())); !maps.Equal(got, plain) {
		t.Errorf("joining a process of another group: %v, want %v", got, plain)
	}
	if g.unifiedDir() == "" {
		return
	}

	below := filepath.Join(g.unifiedDir(), "init.scope")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(below+"/cgroup.procs", []byte(strconv.Itoa(p.pid)), 0); err != nil {
		t.Fatal(err)
	}
	want := maps.Clone(plain)
	want["cgroup"] = below

	if got := names(g.EntryOf(p.pid)); !maps.Equal(got, want) {
		t.Errorf("joining a first process that has moved: %v, want %v", got, want)
	}
}

// Groups of one parent are created and removed concurrently, and the parent with them.
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
	for name, read := range map[string]func() (*Stats, error){"all": g.Stats, "usage": g.Usage} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
