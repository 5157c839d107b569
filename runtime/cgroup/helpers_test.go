package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// testNode is the machine's node with a default parent of the test's own.
func testNode(t testing.TB) *Node {
	t.Helper()
	return nodeOf(t, Cgroupfs, "/"+testkit.Name(t))
}

func nodeOf(t testing.TB, driver, parent string) *Node {
	t.Helper()
	testkit.Root(t)

	// The library keeps a descriptor from its first read on.
	_, _ = cgroups.ReadFile(mountPoint, "cgroup.controllers")
	if _, ok := t.(*testing.T); ok {
		testkit.Leaks(t)
	}

	n, err := New(driver, parent)
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
// with the unified hierarchy alongside, on the latter, too. It has no
// controllers, but clone, kill, freeze, pressure and device filters work.
func eachNode(t *testing.T, f func(t *testing.T, n *Node)) {
	t.Run("native", func(t *testing.T) { f(t, testNode(t)) })
	if !exists(filepath.Join(mountPoint, "cgroup.controllers")) {
		t.Run("unified", func(t *testing.T) { f(t, v2Node(t)) })
	}
}

// v2Node is a node with the unified hierarchy, the machine's own or the one
// alongside version 1.
func v2Node(t *testing.T) *Node {
	t.Helper()
	n := testNode(t)
	if n.V2() {
		return n
	}

	root := filepath.Join(mountPoint, "unified")
	if !exists(filepath.Join(root, "cgroup.controllers")) {
		testkit.Skip(t, "cgroup2", "no unified hierarchy is mounted")
	}

	beside := &Node{driver: Cgroupfs, v2: true, parent: n.parent}
	if err := beside.useHierarchies([]hierarchy{{dir: root}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := beside.Close(); err != nil {
			t.Errorf("close node: %v", err)
		}
	})

	return beside
}

// controllersV2 skips where the unified hierarchy has no controllers.
func controllersV2(t *testing.T) *Node {
	t.Helper()
	n := testNode(t)
	if !n.V2() {
		testkit.Skip(t, "cgroup2", "controllers are in version 1")
	}
	return n
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
		ctx, cancel := context.WithTimeout(context.Background(), pace.Scale(20*time.Second))
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			t.Error(err)
		}
	})

	return g
}

// process is a child that is reaped as soon as it exits: a zombie would stay in
// its group.
type process struct {
	pid  int
	done chan struct{}
	err  error
}

// wait returns the exit status of the process.
func (p *process) wait() error {
	<-p.done
	return p.err
}

// run starts a shell command that joins the group before it begins.
func run(t testing.TB, g *Group, script string) *process {
	t.Helper()
	entry, err := g.Entry()
	if err != nil {
		t.Fatal(err)
	}
	defer entry.Close()

	cmd := exec.Command("/bin/sh", "-c")
	if entry.Unified != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(entry.Unified.Fd())}
	}

	join := ""
	for _, f := range entry.Tasks {
		// A shell only redirects descriptors 0 to 9.
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		join += fmt.Sprintf("echo 0 > /proc/self/fd/%d; ", 2+len(cmd.ExtraFiles))
	}

	cmd.Args = append(cmd.Args, join+script)
	return begin(t, cmd)
}

// begin starts a command, which is killed when the test ends.
func begin(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
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
	for end := time.Now().Add(pace.Scale(20 * time.Second)); !cond(); time.Sleep(time.Millisecond) {
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
