package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// TestOOMKillsOfRemovedScopes simulates systemd, which removes a scope before
// its counter can be read.
func TestOOMKillsOfRemovedScopes(t *testing.T) {
	n := &Node{driver: Systemd, v2: true, parent: "pod.slice"}
	if err := n.useHierarchies([]hierarchy{{dir: t.TempDir()}}); err != nil {
		t.Fatal(err)
	}

	counts := func(rel string, kills int) {
		t.Helper()
		dir := filepath.Join(n.root, rel)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "memory.events"), fmt.Appendf(nil, "max 9\noom 9\noom_kill %d\n", kills), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	group := func(id string, own int) *Group {
		t.Helper()
		counts("pod.slice/crisp-"+id+".scope", own)
		g, err := n.Open("pod.slice:crisp:" + id)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}

	gone := func(g *Group) {
		t.Helper()
		if err := os.RemoveAll(g.dirs[0]); err != nil {
			t.Fatal(err)
		}
	}

	want := func(g *Group, kills uint64) {
		t.Helper()
		if got, err := g.OOMKills(false); err != nil || got != kills {
			t.Errorf("%s: got %d, %v; want %d", g.path, got, err, kills)
		}
	}

	counts("pod.slice", 2) // of containers removed before
	a, b, c := group("a", 0), group("b", 0), group("c", 0)
	counts("pod.slice", 3)
	gone(a) // killed
	want(a, 1)
	gone(b) // exited by itself
	want(b, 0)

	// A kill in an existing group is not counted for another.
	counts("pod.slice", 4)
	counts("pod.slice/crisp-c.scope", 1)
	d := group("d", 0)
	gone(d)
	want(d, 0)

	// An existing group's counter is read, and its kill is not counted for another.
	e := group("e", 0)
	want(c, 1)
	gone(c)
	gone(e)
	want(e, 0)
}

// TestOOMEvents removes groups of version 1, as systemd does, before their
// counters are read.
func TestOOMEvents(t *testing.T) {
	testkit.Root(t)
	n := testNode(t)
	if n.v2 {
		testkit.Skip(t, "cgroup1", "version 2 has counters that include removed groups")
	}
	for name, c := range map[string]struct {
		inner, outer string // what runs in the group, and what before in its parent
		killed       bool
		want         uint64
	}{
		"killed":               {"exec tail /dev/zero", "", true, 1},
		"another killed":       {"tail /dev/zero; exit 1", "", false, 1},
		"exited":               {"exit 3", "", false, 0},
		"its parent's":         {"exit 3", "exec tail /dev/zero", false, 0},
		"killed, its parent's": {"kill -9 $$", "exec tail /dev/zero", true, 1},
	} {
		n.driver = Cgroupfs
		limited := func(parent, id string, bytes int64) *Group {
			return create(t, n, parent, id, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &bytes}, Devices: containerResources().Devices})
		}
		parent := limited("", "pod", 16<<20)
		g := limited(parent.path, "c", 8<<20)
		n.driver = Systemd
		g.WatchOOM()
		if c.outer != "" {
			_ = run(t, parent, c.outer).wait()
		}
		if err := run(t, g, c.inner).wait(); err == nil {
			t.Errorf("%s: the process succeeded", name)
		}

		waitFor(t, "the group to be empty", func() bool { return unix.Rmdir(g.dir("memory")) == nil })
		if kills, err := g.OOMKills(c.killed); err != nil || kills != c.want {
			t.Errorf("%s: %d OOM kills, %v, want %d", name, kills, err, c.want)
		}
		n.driver = Cgroupfs
		if err := errors.Join(g.Remove(t.Context()), parent.Remove(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}
