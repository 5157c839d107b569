package cgroup

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The trees in testdata are the files of groups of either version, as kernels show them.
func fixture(t *testing.T, version string) *Node {
	t.Helper()
	root := filepath.Join("testdata", version)
	n := &Node{driver: Cgroupfs, v2: version == "v2", swap: true, pageSizes: []string{"2MB"}, parent: "/crisp"}
	if n.v2 {
		if err := n.useHierarchies([]hierarchy{{dir: root}}); err != nil {
			t.Fatal(err)
		}
		return n
	}

	var list []hierarchy
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}

	for _, e := range entries {
		list = append(list, hierarchy{dir: filepath.Join(root, e.Name()), controllers: strings.Split(e.Name(), ",")})
	}

	// These two are not read.
	list = append(list, hierarchy{controllers: []string{"devices"}}, hierarchy{controllers: []string{"freezer"}})
	if err := n.useHierarchies(list); err != nil {
		t.Fatal(err)
	}
	return n
}

func fixtureStats(t *testing.T, n *Node, rel string) *Stats {
	t.Helper()
	s, err := n.group(rel, location{rel: rel}).Stats()
	if err != nil {
		t.Fatal(err)
	}
	if time.Since(s.Time) > time.Minute {
		t.Errorf("time is %v", s.Time)
	}
	s.Time = time.Time{}
	return s
}

func wantStats() *Stats {
	return &Stats{
		CPU: CPUStats{Usage: 9000000123, User: 6000000100, System: 3000000023, Periods: 40, ThrottledPeriods: 7, ThrottledTime: 150000000},
		Memory: MemoryStats{
			Usage: 4194304, MaxUsage: 8388608, Limit: 67108864, WorkingSet: 4194304 - 787456,
			RSS: 2099200, Cache: 1049600, MappedFile: 525312, Kernel: 262144,
			ActiveFile: 262144, InactiveFile: 787456,
			SwapAccounted: true, Swap: 8192, SwapLimit: 33554432,
			Faults: 801, MajorFaults: 12, OwnFaults: 701, OwnMajorFaults: 11, LimitHits: 3, OOMKills: 2,
		},
		Pids: PidsStats{Current: 6},
		IO: IOStats{Devices: []DeviceIO{
			{Major: 254, Minor: 0, ReadBytes: 4096, WriteBytes: 8192, Reads: 1, Writes: 2},
			{Major: 7, Minor: 1, ReadBytes: 512, Reads: 4},
		}},
		Hugetlb: []HugetlbStats{{PageSize: "2MB", Usage: 2097152, MaxUsage: 6291456}},
	}
}

func TestStatsV1(t *testing.T) {
	if got, want := fixtureStats(t, fixture(t, "v1"), "/kubepods/pod1/web"), wantStats(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestStatsV2(t *testing.T) {
	want := wantStats()
	want.CPU.Usage, want.CPU.User, want.CPU.System = 9000000000, 6000000000, 3000000000
	want.CPU.Pressure = &Pressure{Some: Stall{Total: 123456000, Avg10: 1.5, Avg60: 0.7, Avg300: 0.1}, Full: Stall{Total: 3456000, Avg10: 0.25, Avg60: 0.05}}
	want.Memory.Pressure = &Pressure{Some: Stall{Total: 10000}, Full: Stall{Total: 5000}}
	want.Memory.OwnFaults, want.Memory.OwnMajorFaults, want.Memory.HighHits = 801, 12, 5
	want.IO.Pressure = &Pressure{Some: Stall{Total: 20000, Avg10: 99.99}, Full: Stall{Total: 15000}}
	want.Pids.Limit = 99
	want.Hugetlb[0].MaxUsage = 2097152
	got := fixtureStats(t, fixture(t, "v2"), "/kubepods.slice/kubepods-pod1.slice/crisp-web.scope")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Usage returns the same as Stats.
func TestUsage(t *testing.T) {
	for version, rel := range map[string]string{
		"v1": "/kubepods/pod1/web", "v2": "/kubepods.slice/kubepods-pod1.slice/crisp-web.scope",
	} {
		n := fixture(t, version)
		want := fixtureStats(t, n, rel)
		got, err := n.group(rel, location{rel: rel}).Usage()
		if err != nil {
			t.Fatal(err)
		}

		if got.CPU.Usage != want.CPU.Usage || !reflect.DeepEqual(got.CPU.Pressure, want.CPU.Pressure) || !reflect.DeepEqual(got.IO.Pressure, want.IO.Pressure) {
			t.Errorf("%s: CPU %+v and I/O %+v, want %+v and %+v", version, got.CPU, got.IO, want.CPU, want.IO)
		}
		m := want.Memory
		m.MaxUsage, m.LimitHits, m.OOMKills, m.HighHits = 0, 0, 0, 0

		if got.Memory.Kernel == 0 {
			m.Kernel = 0
		}
		if !reflect.DeepEqual(got.Memory, m) {
			t.Errorf("%s: memory %+v, want %+v", version, got.Memory, m)
		}
	}
}

func TestStatsV2Open(t *testing.T) {
	n := fixture(t, "v2")
	n.pageSizes = nil
	got := fixtureStats(t, n, "/open/web")
	want := &Stats{
		CPU: CPUStats{Usage: 5000, User: 3000, System: 2000},
		// More inactive cache than usage: the two are read at different times.
		Memory: MemoryStats{Usage: 100, RSS: 10, Cache: 300, InactiveFile: 200, SwapAccounted: true, SwapUnlimited: true},
		Pids:   PidsStats{Current: 1},
	}

	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	got = fixtureStats(t, n, "/bare/web")
	if want := (&Stats{CPU: want.CPU}); !reflect.DeepEqual(got, want) {
		t.Errorf("without controllers: got  %+v\nwant %+v", got, want)
	}
}

func TestStatsBroken(t *testing.T) {
	n := fixture(t, "v2")
	_, err := n.group("/broken/web", location{rel: "/broken/web"}).Stats()
	if err == nil || !strings.Contains(err.Error(), "cpu.stat") || !strings.Contains(err.Error(), "usage_usec") {
		t.Errorf("got %v, want an error that names the file and the key", err)
	}
}

// The files of version 2 that limits are written to. A directory stands in for
// the kernel: alongside version 1 there may be no controllers.
func TestSetV2(t *testing.T) {
	cgroups.TestMode = true
	t.Cleanup(func() { cgroups.TestMode = false })
	root := t.TempDir()
	n := &Node{driver: Cgroupfs, v2: true, swap: true, pageSizes: []string{"2MB"}, parent: "/crisp"}
	if err := n.useHierarchies([]hierarchy{{dir: root}}); err != nil {
		t.Fatal(err)
	}

	g := n.group("/crisp/web", location{rel: "/crisp/web", parentRel: "/crisp"})
	write := func(dir, name, value string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	write(g.dirs[0], "cgroup.controllers", "cpuset cpu io memory hugetlb pids\n")
	r := containerResources()
	r.Devices = nil // they need a real kernel
	r.Memory.Swap = ptr(int64(96 << 20))
	r.CPU.Cpus, r.CPU.Mems = "0-1", "0"
	r.Pids = &specs.LinuxPids{Limit: ptr(int64(-1))}
	r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}, {Pagesize: "1GB"}}
	r.Unified = map[string]string{"memory.high": "60000000", "memory.oom.group": "1"}
	if err := g.Set(r); err != nil {
		t.Fatal(err)
	}

	want := map[string]string{
		"cpu.weight": "59", "cpu.max": "50000 100000", "cpuset.cpus": "0-1", "cpuset.mems": "0",
		"memory.max": "67108864", "memory.swap.max": "33554432", "memory.high": "60000000", "memory.oom.group": "1",
		"pids.max": "max", "hugetlb.2MB.max": "4194304", "hugetlb.2MB.rsvd.max": "4194304",
		"cgroup.controllers": "cpuset cpu io memory hugetlb pids\n",
	}

	files := func() map[string]string {
		t.Helper()
		got := map[string]string{}
		entries, err := os.ReadDir(g.dirs[0])
		if err != nil {
			t.Fatal(err)
		}

		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(g.dirs[0], e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			got[e.Name()] = string(data)
		}

		return got
	}

	if got := files(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if err := g.Set(&specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Quota: ptr(int64(-1)), Period: ptr(uint64(100000))},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))},
	}); err != nil {
		t.Fatal(err)
	}

	want["cpu.max"], want["memory.swap.max"] = "max 100000", "0"
	if got := files(); !reflect.DeepEqual(got, want) {
		t.Errorf("after an update: got  %v\nwant %v", got, want)
	}
}

// Only missing controllers are enabled, from the top.
func TestDelegate(t *testing.T) {
	root := t.TempDir()
	n := &Node{v2: true}
	if err := n.useHierarchies([]hierarchy{{dir: root}}); err != nil {
		t.Fatal(err)
	}

	pod := filepath.Join(root, "kubepods", "pod1")
	if err := os.MkdirAll(pod, 0o755); err != nil {
		t.Fatal(err)
	}

	files := map[string]string{
		filepath.Join(root, "cgroup.controllers"):                 "cpuset cpu memory pids\n",
		filepath.Join(root, "cgroup.subtree_control"):             "cpuset cpu memory pids\n",
		filepath.Join(root, "kubepods", "cgroup.subtree_control"): "cpu memory\n",
		filepath.Join(pod, "cgroup.subtree_control"):              "",
	}

	for name, data := range files {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	if err := n.delegate(pod); err != nil {
		t.Fatal(err)
	}
	files[filepath.Join(root, "kubepods", "cgroup.subtree_control")] = "+cpuset +pids"
	files[filepath.Join(pod, "cgroup.subtree_control")] = "+cpuset +cpu +memory +pids"

	for name, want := range files {
		if data, err := os.ReadFile(name); err != nil || string(data) != want {
			t.Errorf("%s is %q, %v, want %q", name, data, err, want)
		}
	}
}
