package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"crisp/test/testkit/belongings"
	"crisp/test/testkit/pace"
)

// leakTime is how long resources of a test may take to disappear by
// themselves.
const leakTime = 20 * time.Second

// checkLeaks fails the test if the node has more resources at its end than
// it has now. Cleanups that are registered later run before the comparison.
func (n *node) checkLeaks(t *testing.T) {
	t.Helper()
	before := n.inventory(t)
	t.Cleanup(func() {
		for end := time.Now().Add(pace.Scale(leakTime)); ; time.Sleep(20 * time.Millisecond) {
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

// inventory lists all resources of pods on the node.
func (n *node) inventory(t *testing.T) []string {
	t.Helper()
	// The context of a test has ended when its cleanups run.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), pace.Scale(callTime))
	defer cancel()
	all, err := belongings.List(ctx, n.Lab)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// keeper is the keeper's process ID.
func (n *node) keeper(t *testing.T) int {
	t.Helper()
	pid, err := n.Keeper()
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// names lists a directory, which may be missing.
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

// residentMemory is that of a process in bytes, in base pages and in huge
// pages: with transparent huge pages enabled, as on Debian, touching a part of
// 2 MiB can count as all of it at any time.
func residentMemory(t *testing.T, pid int) (usual, huge int) {
	t.Helper()
	huge = numberIn(t, fmt.Sprintf("/proc/%d/smaps_rollup", pid), "AnonHugePages") * 1024
	return statusField(t, pid, "VmRSS")*1024 - huge, huge
}

func threads(t *testing.T, pid int) int {
	t.Helper()
	return statusField(t, pid, "Threads")
}

// statusField is a number in a process's status file.
func statusField(t *testing.T, pid int, name string) int {
	t.Helper()
	return numberIn(t, fmt.Sprintf("/proc/%d/status", pid), name)
}

// numberIn is the number behind a name and a colon in a file of /proc.
func numberIn(t *testing.T, path, name string) int {
	t.Helper()
	for line := range strings.Lines(slurp(path)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s has no %s", path, name)
	return 0
}
