package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

func TestCreateV2(t *testing.T) {
	n := controllersV2(t)
	r := containerResources()
	r.Pids = &specs.LinuxPids{Limit: ptr(int64(99))}
	r.Unified = map[string]string{"memory.high": strconv.Itoa(48 << 20), "memory.oom.group": "1"}

	g := create(t, n, "", "web", r)
	for name, want := range map[string]string{
		"cpu.weight":       "59",
		"cpu.max":          "50000 100000",
		"memory.max":       strconv.Itoa(64 << 20),
		"memory.swap.max":  "0", // a limit without a swap limit means no swap
		"memory.high":      strconv.Itoa(48 << 20),
		"memory.oom.group": "1",
		"pids.max":         "99",
	} {
		if got := read(t, g, "", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// The kernel enforces the limits, and the statistics show it.
func TestLimitsHoldV2(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *Node){
		"pids": testPidsHold, "cpu": testCPUHolds, "memory.high": testHighHolds, "io": testIOHolds, "swap": testSwapHolds,
	} {
		t.Run(name, func(t *testing.T) { test(t, controllersV2(t)) })
	}
}

func testPidsHold(t *testing.T, n *Node) {
	g := create(t, n, "", "pids", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(3))}, Devices: containerResources().Devices})
	if err := run(t, g, "sleep 0 & sleep 0 & wait").wait(); err != nil {
		t.Errorf("three processes: %v", err)
	}
	if err := run(t, g, "sleep 1000 & sleep 1000 & sleep 1000 & wait").wait(); err == nil {
		t.Error("four processes ran where three may")
	}
	s, err := g.Stats()
	if err != nil || s.Pids.Limit != 3 {
		t.Errorf("the statistics have the limit %+v, %v", s, err)
	}
}

// Two busy processes that get a twentieth of a CPU: the quota shows as
// throttling and as pressure.
func testCPUHolds(t *testing.T, n *Node) {
	g := create(t, n, "", "cpu", &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Quota: ptr(int64(5000)), Period: ptr(uint64(100000))}, Devices: containerResources().Devices,
	})
	began := time.Now()
	run(t, g, "while :; do :; done & while :; do :; done")
	var s *Stats
	waitFor(t, "ten periods without CPU time", func() bool {
		var err error
		if s, err = g.Stats(); err != nil {
			t.Fatal(err)
		}
		return s.CPU.ThrottledPeriods >= 10 && s.CPU.Pressure != nil && s.CPU.Pressure.Some.Total > 0
	})

	if share := float64(s.CPU.Usage) / float64(time.Since(began)); share > 0.1 {
		t.Errorf("it used %.2f CPUs, want 0.05", share)
	}
	if s.CPU.ThrottledTime == 0 {
		t.Errorf("no time was lost: %+v", s.CPU)
	}
}

// Processes above memory.high are throttled and reclaimed, not killed.
func testHighHolds(t *testing.T, n *Node) {
	const high = 8 << 20
	g := create(t, n, "", "high", &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(256 << 20))}, Devices: containerResources().Devices,
		Unified: map[string]string{"memory.high": strconv.Itoa(high)},
	})

	file := filepath.Join(t.TempDir(), "cache")
	if err := run(t, g, "head -c 33554432 /dev/zero > "+file).wait(); err != nil {
		t.Fatal(err)
	}

	events := read(t, g, "", "memory.events")
	if strings.Contains(events, "high 0\n") || !strings.Contains(events, "oom_kill 0") {
		t.Errorf("memory.events are\n%s", events)
	}

	s, err := g.Stats()
	if err != nil || s.Memory.Usage > 2*high {
		t.Errorf("%+v, %v in use, want %d and a little", s.Memory, err, high)
	}
}

// testIOHolds writes three megabytes to a disk that takes one a second.
func testIOHolds(t *testing.T, n *Node) {
	dir := t.TempDir()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}

	major, minor := int64(unix.Major(st.Dev)), int64(unix.Minor(st.Dev))
	if _, err := os.Stat(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)); err != nil {
		testkit.Skip(t, "block devices", err.Error())
	}

	rate := specs.LinuxThrottleDevice{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: major, Minor: minor}, Rate: 1 << 20}
	g := create(t, n, "", "io", &specs.LinuxResources{
		BlockIO: &specs.LinuxBlockIO{ThrottleWriteBpsDevice: []specs.LinuxThrottleDevice{rate}}, Devices: containerResources().Devices,
	})

	if got, want := read(t, g, "", "io.max"), fmt.Sprintf("%d:%d rbps=max wbps=1048576 riops=max wiops=max", major, minor); got != want {
		t.Errorf("io.max is %q, want %q", got, want)
	}
	began := time.Now()
	if err := run(t, g, "exec dd if=/dev/zero bs=1M count=3 oflag=direct status=none of="+filepath.Join(dir, "x")).wait(); err != nil {
		t.Fatal(err)
	}

	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("three megabytes at one a second took %v", took)
	}
	s, err := g.Stats()
	if err != nil || len(s.IO.Devices) == 0 || s.IO.Devices[0].WriteBytes < 3<<20 || s.IO.Pressure == nil || s.IO.Pressure.Some.Total == 0 {
		t.Errorf("%+v, %v, want 3 MiB written to %d:%d under pressure", s.IO, err, major, minor)
	}
}

// testSwapHolds gives the machine swap space: 48 MiB fit into 32 of memory and
// 32 of swap, unbounded usage does not.
func testSwapHolds(t *testing.T, n *Node) {
	if os.Getenv("CRISP_VM") == "" {
		testkit.Skip(t, "vm", "the test enables swap on the machine")
	}
	file := filepath.Join(t.TempDir(), "swap")
	for _, command := range [][]string{
		{"dd", "if=/dev/zero", "bs=1M", "count=128", "of=" + file}, {"chmod", "600", file}, {"mkswap", file}, {"swapon", file},
	} {
		if out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("swapoff", file).CombinedOutput(); err != nil {
			t.Errorf("swapoff: %v: %s", err, out)
		}
	})

	g := create(t, n, "", "swap", &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(64 << 20))}, Devices: containerResources().Devices,
	})
	run(t, g, `head -c 50331648 /dev/zero | tail -c 50331648 | { read x; sleep 1000; }`)
	var s *Stats
	waitFor(t, "8 MiB in swap", func() bool {
		var err error
		if s, err = g.Stats(); err != nil {
			t.Fatal(err)
		}
		return s.Memory.Swap > 8<<20
	})

	if s.Memory.SwapLimit != 32<<20 || s.Memory.SwapUnlimited || s.Memory.OOMKills != 0 {
		t.Errorf("got %+v", s.Memory)
	}
	if err := run(t, g, "exec tail /dev/zero").wait(); err == nil {
		t.Error("a process of unbounded memory succeeded")
	}
}
