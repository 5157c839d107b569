package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/test/testkit"
)

// Controllers may share a hierarchy. Groups are created in all hierarchies,
// also in those without limits, where a container would see the node's
// processes otherwise.
func TestHierarchies(t *testing.T) {
	list := []hierarchy{
		{dir: "/sys/fs/cgroup/unified"},
		{dir: "/proc/self/fd/9", controllers: []string{"misc", "rdma"}},
		{dir: "/sys/fs/cgroup/systemd", controllers: []string{"name=systemd"}, options: []string{"xattr", "name=systemd"}},
		{dir: "/sys/fs/cgroup/net_cls,net_prio", controllers: []string{"net_cls", "net_prio"}, options: []string{"net_cls", "net_prio"}},
		{dir: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"cpu", "cpuacct"}, options: []string{"cpu", "cpuacct"}},
		{dir: "/sys/fs/cgroup/memory", controllers: []string{"memory"}, options: []string{"memory"}},
		{dir: "/sys/fs/cgroup/devices", controllers: []string{"devices"}, options: []string{"devices"}},
		{dir: "/cg/freezer", controllers: []string{"freezer"}, options: []string{"freezer"}},
	}

	n := &Node{}
	if err := n.useHierarchies(list); err != nil {
		t.Fatal(err)
	}

	want := []string{
		"/sys/fs/cgroup/cpu,cpuacct/x", "/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/devices/x", "/cg/freezer/x",
		"/proc/self/fd/9/x", "/sys/fs/cgroup/systemd/x", "/sys/fs/cgroup/net_cls,net_prio/x", "/sys/fs/cgroup/unified/x",
	}

	if got := n.dirs("/x"); !reflect.DeepEqual(got, want) {
		t.Errorf("groups are made in %v, want %v", got, want)
	}
	if n.mount("cpuacct") != "/sys/fs/cgroup/cpu,cpuacct" || n.mount("cpuset") != "" || n.root != "/sys/fs/cgroup/unified" {
		t.Errorf("cpuacct is at %q, cpuset at %q, the unified hierarchy at %q", n.mount("cpuacct"), n.mount("cpuset"), n.root)
	}

	show := []plan.Hierarchy{
		{Dir: "cpu,cpuacct", Options: []string{"cpu", "cpuacct"}}, {Dir: "memory", Options: []string{"memory"}}, {Dir: "devices", Options: []string{"devices"}},
		{Dir: "systemd", Options: []string{"xattr", "name=systemd"}}, {Dir: "net_cls,net_prio", Options: []string{"net_cls", "net_prio"}},
	}

	if got := n.Hierarchies(); !reflect.DeepEqual(got, show) {
		t.Errorf("shown are %+v, want %+v", got, show)
	}
	if err := new(Node).useHierarchies(list[:6]); !errors.Is(err, ErrUnsupported) {
		t.Errorf("without the devices controller: %v, want %v", err, ErrUnsupported)
	}

	// A version 2 machine with a version 1 hierarchy.
	n = &Node{v2: true}
	if err := n.useHierarchies([]hierarchy{{dir: "/mnt/net_cls", controllers: []string{"net_cls"}}, {dir: "/sys/fs/cgroup"}}); err != nil {
		t.Fatal(err)
	}

	if got := n.dirs("/x"); !reflect.DeepEqual(got, []string{"/sys/fs/cgroup/x", "/mnt/net_cls/x"}) || n.Hierarchies() != nil {
		t.Errorf("groups are made in %v, shown are %v", got, n.Hierarchies())
	}
	if err := (&Node{v2: true}).useHierarchies(list[1:]); !errors.Is(err, ErrUnsupported) {
		t.Errorf("without the unified hierarchy: %v, want %v", err, ErrUnsupported)
	}
}

func TestSelecting(t *testing.T) {
	got := selecting("rw,xattr,release_agent=/lib/agent,name=systemd")
	if want := []string{"xattr", "name=systemd"}; !reflect.DeepEqual(got, want) {
		t.Errorf("options %q, want %q", got, want)
	}
}

func TestParseMemberships(t *testing.T) {
	got, err := parseMemberships([]byte("4:cpu,cpuacct:/a:b/\xff\n1:name=systemd:/\n0::/../x (deleted)\n"))
	want := []membership{{[]string{"cpu", "cpuacct"}, "/a:b/\xff"}, {[]string{"name=systemd"}, "/"}, {nil, "/../x (deleted)"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for _, text := range []string{"x\n", "1:cpu\n", "1::/\n", "0:cpu:/\n", "1:cpu:\n", "\n"} {
		if got, err := parseMemberships([]byte(text)); err == nil {
			t.Errorf("%q is %q, want an error", text, got)
		}
	}
}

func FuzzParseMemberships(f *testing.F) {
	f.Add([]byte("4:cpu,cpuacct:/a:b/\xff\n1:name=systemd:/\n0::/../x (deleted)\n"))
	f.Add([]byte("1::/\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseMemberships(data)
		if err != nil {
			return
		}

		// It must survive a round trip.
		var again strings.Builder
		for _, m := range list {
			id := "1"
			if len(m.controllers) == 0 {
				id = "0"
			}
			again.WriteString(id + ":" + strings.Join(m.controllers, ",") + ":" + m.path + "\n")
		}

		if back, err := parseMemberships([]byte(again.String())); err != nil || !reflect.DeepEqual(back, list) {
			t.Errorf("%q is %q, and that %q, %v", data, list, back, err)
		}
	})
}

// waitForSleep waits until a shell has joined and executed sleep.
func waitForSleep(t *testing.T, pid int) {
	t.Helper()
	waitFor(t, "the process to have begun", func() bool {
		name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
		return err == nil && string(name) == "sleep\n"
	})
}

// inEvery checks that a process is in the group in every hierarchy.
func inEvery(t *testing.T, pid int, g *Group) {
	t.Helper()
	waitForSleep(t, pid)
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}

	list, err := parseMemberships(data)
	if err != nil {
		t.Fatal(err)
	}

	for _, m := range list {
		if m.path != g.Relative() {
			t.Errorf("in the hierarchy of %q the process is in %s", m.controllers, m.path)
		}
	}
}

// A process is in its group in every hierarchy, also in one that is mounted at
// an unusual place or unmounted meanwhile.
func TestJoinsEveryHierarchy(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	const options = "none,name=crisp-odd"
	mount := func() {
		t.Helper()
		if err := unix.Mount("none", dir, "cgroup", 0, options); err != nil {
			testkit.Skip(t, "cgroup1", err.Error())
		}
	}

	mount()
	t.Cleanup(func() { endHierarchy(t, dir, mount) })

	n := testNode(t)
	g := create(t, n, "", "all", resources(n))
	inEvery(t, run(t, g, "exec sleep 1000").pid, g)

	// The node keeps the hierarchy alive without a mount that others see.
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mount)
	g = create(t, n, "", "unmounted", resources(n))
	inEvery(t, run(t, g, "exec sleep 1000").pid, g)

	again, err := New(Cgroupfs, n.parent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	g = create(t, again, "", "another", resources(n))
	inEvery(t, run(t, g, "exec sleep 1000").pid, g)
}

// A hierarchy created later is joined by groups created afterwards.
func TestJoinsLateHierarchy(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	mount := func() {
		t.Helper()
		if err := unix.Mount("none", dir, "cgroup", 0, "none,name=crisp-odd"); err != nil {
			testkit.Skip(t, "cgroup1", err.Error())
		}
	}

	mount()
	t.Cleanup(func() { endHierarchy(t, dir, mount) })
	n := testNode(t)

	// As if it had not existed.
	late := slices.IndexFunc(n.hierarchies, func(h hierarchy) bool { return slices.Equal(h.controllers, []string{"name=crisp-odd"}) })
	n.hierarchies[late].own.Close()
	if err := n.useHierarchies(slices.Delete(slices.Clone(n.hierarchies), late, late+1)); err != nil {
		t.Fatal(err)
	}

	early := n.group("/x/y", location{rel: "/x/y"})

	g := create(t, n, "", "late", resources(n))
	if len(g.dirs) != len(early.dirs)+1 || len(early.in) != len(early.dirs) {
		t.Errorf("a group is made in %d hierarchies, before in %d", len(g.dirs), len(early.dirs))
	}

	inEvery(t, run(t, g, "exec sleep 1000").pid, g)
	if strings.Contains(fmt.Sprint(n.Hierarchies()), "odd") {
		t.Error("it is shown")
	}
}

// endHierarchy unmounts a test's hierarchy, which the kernel destroys a little
// later, once it has released removed groups.
func endHierarchy(t *testing.T, dir string, mount func()) {
	t.Helper()
	for range 20 {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if own, err := os.ReadFile("/proc/self/cgroup"); err != nil || !strings.Contains(string(own), "name=crisp-odd") {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		mount()
	}

	_ = unix.Unmount(dir, 0)
	t.Log("the test's hierarchy is in use by another process")
}

// Groups of an earlier version are not in the hierarchies without limits.
// Processes that enter them join those, too, and they can be killed and
// removed.
func TestGroupsOfEarlierVersion(t *testing.T) {
	n := testNode(t)
	g := create(t, n, "", "old", resources(n))
	lacking := 0
	for i, dir := range g.dirs {
		if h := n.hierarchies[i]; !h.limited() && dir != g.processDir() {
			lacking++
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
		}
	}

	again, err := n.Open(g.Path())
	if err != nil {
		t.Fatal(err)
	}

	if pids, err := again.Pids(); err != nil || len(pids) != 0 {
		t.Errorf("processes %v, %v", pids, err)
	}
	inEvery(t, run(t, again, "exec sleep 1000").pid, again)
	t.Logf("%d hierarchies were missing", lacking)

	for i, dir := range g.dirs {
		if h := n.hierarchies[i]; !h.limited() && dir != g.processDir() {
			_ = os.Remove(dir) // a process may be in it, which does not matter
		}
	}

	if err := errors.Join(again.Kill(t.Context()), again.Remove(t.Context())); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Entry(); !errors.Is(err, ErrNotFound) || again.Exists() {
		t.Errorf("entry of a removed group: %v, and it is there: %v", err, again.Exists())
	}
}

// A process that systemd has put into some hierarchies is moved in the others.
func TestJoin(t *testing.T) { eachNode(t, testJoin) }

func testJoin(t *testing.T, n *Node) {
	g := create(t, n, "", "join", resources(n))
	for i, dir := range g.dirs {
		if !n.hierarchies[i].limited() && dir != g.processDir() {
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
		}
	}

	other := create(t, n, "", "other", resources(n))
	p := run(t, other, "exec sleep 1000")
	waitForSleep(t, p.pid)
	if err := g.join(p.pid); err != nil {
		t.Fatal(err)
	}

	for i, dir := range g.dirs {
		if data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err != nil || strings.TrimSpace(string(data)) != strconv.Itoa(p.pid) {
			t.Errorf("in %q are %q, %v", n.hierarchies[i].controllers, data, err)
		}
	}

	if err := g.join(p.pid); err != nil {
		t.Errorf("a second time: %v", err)
	}
}
