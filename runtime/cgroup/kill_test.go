package cgroup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/test/testkit/pace"
)

func TestKill(t *testing.T) { eachNode(t, testKill) }

func testKill(t *testing.T, n *Node) {
	g := create(t, n, "", "kill", resources(n))
	if err := g.Kill(t.Context()); err != nil {
		t.Fatalf("kill an empty group: %v", err)
	}

	// It ignores all signals that it can and has children in child groups.
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
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(20*time.Second))
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
		t.Errorf("kill a removed group: %v", err)
	}
}

func shortContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// A group in which every process forks continuously can be killed. A shell that
// cannot fork exits, so the limit must not be reached.
func TestKillForks(t *testing.T) {
	n := testNode(t)
	g := create(t, n, "", "bomb", &specs.LinuxResources{
		Pids:    &specs.LinuxPids{Limit: ptr(int64(60))},
		Devices: containerResources().Devices,
	})
	run(t, g, `for i in 1 2 3 4 5 6 7 8; do (while :; do (:); done) & done; wait`)
	waitFor(t, "forks", func() bool { pids, _ := g.Pids(); return len(pids) > 8 })
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(30*time.Second))
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
		t.Errorf("a frozen group used %v of CPU time", time.Duration(after-before))
	}

	if err := g.Thaw(ctx); err != nil {
		t.Fatal(err)
	}
	before = usage()
	waitFor(t, "the group to continue", func() bool { return usage()-before > uint64(5*time.Millisecond) })
}
