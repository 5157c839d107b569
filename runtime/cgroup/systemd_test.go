package cgroup

import (
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// systemdNode is a node with the systemd driver and a slice of the test's own.
func systemdNode(t *testing.T) *Node {
	t.Helper()
	testkit.Root(t)
	if !systemd.IsRunningSystemd() {
		testkit.Skip(t, "systemd", "scopes need systemd")
	}

	slice := testkit.Name(t) + ".slice"
	// The library keeps a connection from its first use on.
	m, err := systemd.NewUnifiedManager(&cgroups.Cgroup{
		Name: "none", ScopePrefix: scopePrefix, Parent: slice, Systemd: true, Resources: &cgroups.Resources{},
	}, filepath.Join(mountPoint, "none"))

	if err == nil {
		err = m.Destroy()
	}
	if err != nil {
		t.Fatal(err)
	}

	n := nodeOf(t, Systemd, slice)
	t.Cleanup(func() {
		systemctl(t, "stop", slice)
		// In version 1 systemd does not manage all hierarchies.
		for _, dir := range n.dirs("/" + slice) {
			_ = unix.Rmdir(dir) // what is left is a leak
		}
	})
	return n
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		t.Errorf("systemctl %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// gated starts a shell command that waits, attaches it, and lets it continue.
func gated(t *testing.T, g *Group, script string) *process {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read go; "+script)
	gate, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}

	p := begin(t, cmd)
	if err := g.Attach(t.Context(), p.pid); err != nil {
		t.Fatal(err)
	}

	if _, err := io.WriteString(gate, "\n"); err != nil {
		t.Fatal(err)
	}
	return p
}

// A scope has its limits and device rules, and systemd, which rewrites them on
// every daemon-reload, agrees with them.
func TestScope(t *testing.T) {
	n := systemdNode(t)
	r := containerResources()
	r.Pids = &specs.LinuxPids{Limit: ptr(int64(99))}
	g := create(t, n, "", "web", r)
	if !g.NeedsGate() || g.Exists() {
		t.Fatalf("needs a process first: %v, and is there: %v", g.NeedsGate(), g.Exists())
	}

	p := gated(t, g, "exec sleep 1000")
	if pids, err := g.Pids(); err != nil || len(pids) != 1 || pids[0] != p.pid {
		t.Fatalf("processes %v, %v, want %d", pids, err, p.pid)
	}

	holds := func(when string, memory int64) {
		t.Helper()
		limit := strconv.FormatInt(memory, 10)
		files := map[string]string{"cpu.shares": "512", "cpu.cfs_quota_us": "50000", "memory.limit_in_bytes": limit, "pids.max": "99"}
		if n.v2 {
			files = map[string]string{"cpu.weight": "59", "cpu.max": "50000 100000", "memory.max": limit, "memory.swap.max": "0", "pids.max": "99"}
		}
		for name, want := range files {
			controller, _, _ := strings.Cut(name, ".")
			if got := read(t, g, controller, name); got != want {
				t.Errorf("%s: %s is %s, want %s", when, name, got, want)
			}
		}

		if run(t, g, ": < /dev/null").wait() != nil || run(t, g, ": < /dev/kmsg").wait() == nil {
			t.Errorf("%s: the device rules do not hold", when)
		}
	}

	holds("at first", 64<<20)
	systemctl(t, "daemon-reload")
	holds("after a reload", 64<<20)
	r.Memory.Limit = ptr(int64(32 << 20))
	if err := g.Set(r); err != nil {
		t.Fatal(err)
	}

	holds("after an update", 32<<20)
	systemctl(t, "daemon-reload")
	holds("after an update and a reload", 32<<20)
	again, err := n.Open(g.Path())
	if err != nil {
		t.Fatal(err)
	}

	if s, err := again.Stats(); err != nil || s.Memory.Limit != 32<<20 {
		t.Errorf("a restart finds %+v, %v", s, err)
	}
}

// systemd removes a scope with its last process. In version 2 its OOM kills are
// still counted; in version 1 no other group counts them.
func TestScopeEnds(t *testing.T) {
	n := systemdNode(t)
	stays := create(t, n, "", "stays", containerResources())
	gated(t, stays, "exec sleep 1000")
	g := create(t, n, "", "oom", &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20))}, Devices: containerResources().Devices,
	})
	if err := gated(t, g, "exec tail /dev/zero").wait(); err == nil {
		t.Fatal("a process of unbounded memory succeeded")
	}

	waitFor(t, "the scope's end", func() bool { return !exists(g.dir("memory")) })
	if kills, err := g.OOMKills(true); err != nil || kills != 1 {
		t.Errorf("%d OOM kills, %v, want 1", kills, err)
	}

	if err := g.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if err := stays.Kill(t.Context()); err != nil {
		t.Error(err)
	}

	if err := stays.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	waitFor(t, "systemd to forget the scopes", func() bool {
		return systemctl(t, "list-units", "--all", "--no-legend", "--plain", "crisp-oom.scope", "crisp-stays.scope") == ""
	})
}
