package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"crisp/runtime/keeper/client"
	"crisp/test/testkit/inventory"
)

// leaveTime is how long a test's leavings may take to go by themselves.
const leaveTime = 5 * time.Second

// leavesNothing fails the test if the node has more at its end than it has
// now. Clean-ups that are registered later run before the comparison.
func (n *node) leavesNothing(t *testing.T) {
	t.Helper()
	before := n.inventory(t)
	t.Cleanup(func() {
		for end := time.Now().Add(leaveTime); ; time.Sleep(20 * time.Millisecond) {
			left := slices.DeleteFunc(n.inventory(t), func(s string) bool { return slices.Contains(before, s) })
			if len(left) == 0 {
				return
			}
			if time.Now().After(end) {
				t.Errorf("left on the node: %s", strings.Join(left, ", "))
				return
			}
		}
	})
}

// inventory lists everything that pods have on the node.
func (n *node) inventory(t *testing.T) []string {
	t.Helper()
	var all []string
	add := func(kind string, names []string) {
		for _, name := range names {
			all = append(all, kind+" "+name)
		}
	}
	add("mount", inventory.MountsBelow(n.Dir))
	add("cgroup", inventory.Cgroups(n.Name+"/"))
	add("leased address", n.leases())
	add("pod folder", names(n.path("root", "pods")))
	add("writable layer", names(n.path("root", "image", "containers")))
	add("network result", names(n.path("root", "cni", "results")))
	add("exit record", names(n.path("state", "exits")))
	for _, p := range inventory.Descendants(n.keeper(t)) {
		all = append(all, "process "+p.String())
	}
	add("descriptor of the daemon:", descriptors(n.PID()))
	add("descriptor of the keeper:", descriptors(n.keeper(t))) // before it is asked, which takes one
	add("held by the keeper:", n.held(t))
	return all
}

// leases are the addresses that the IPAM plugin has given away.
func (n *node) leases() []string {
	files, _ := filepath.Glob(n.path("ipam", "*", "*")) // the pattern is good
	var leases []string
	for _, f := range files {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			leases = append(leases, filepath.Base(f))
		}
	}
	return leases
}

// held is what the keeper says it holds.
func (n *node) held(t *testing.T) []string {
	t.Helper()
	// The context of a test has ended when its clean-ups run.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), callTime)
	defer cancel()
	c, err := client.Connect(ctx, n.path("state"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	entries, err := c.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range entries {
		e.Close()
		ids = append(ids, e.ID)
	}
	return ids
}

// keeper is the keeper's process ID.
func (n *node) keeper(t *testing.T) int {
	t.Helper()
	want := "crisp-keeper\x00" + n.path("state") + "\x00"
	for _, name := range names("/proc") {
		if pid, err := strconv.Atoi(name); err == nil && slurp(filepath.Join("/proc", name, "cmdline")) == want {
			return pid
		}
	}
	t.Fatal("no keeper runs")
	return 0
}

// descriptors lists the open files of a process. Those that have no name of
// their own, or one that another process would not have, are counted.
func descriptors(pid int) []string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	seen := map[string]int{}
	var all []string
	for _, fd := range names(dir) {
		target, err := os.Readlink(filepath.Join(dir, fd))
		if err != nil {
			continue
		}
		if kind, _, ok := strings.Cut(target, ":["); ok {
			target = kind
		}
		if seen[target]++; seen[target] > 1 {
			target = fmt.Sprintf("%s (%d)", target, seen[target])
		}
		all = append(all, target)
	}
	return all
}

// names lists a folder, which may be missing.
func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// slurp reads a file, which may be missing.
func slurp(path string) string {
	data, _ := os.ReadFile(path)
	return string(data)
}

// residentMemory is that of a process in bytes.
func residentMemory(t *testing.T, pid int) int {
	t.Helper()
	return statusField(t, pid, "VmRSS") * 1024
}

func threads(t *testing.T, pid int) int {
	t.Helper()
	return statusField(t, pid, "Threads")
}

// statusField is a number in what the kernel tells of a process.
func statusField(t *testing.T, pid int, name string) int {
	t.Helper()
	for line := range strings.Lines(slurp(fmt.Sprintf("/proc/%d/status", pid))) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("process %d has no %s", pid, name)
	return 0
}
