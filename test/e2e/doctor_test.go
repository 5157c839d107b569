package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"crisp/cmd/crisp/doctor"
	"crisp/cri/admin"
	"crisp/cri/config"
	"crisp/runtime/host"
	"crisp/test/testkit/lab"
)

// doctor is the command for the node.
func (n *node) doctor(t *testing.T, more ...string) said {
	t.Helper()
	cmd := n.command(t, append([]string{"doctor", "--root", n.path("root"), "--cni-conf-dir", n.path("net.d")}, more...)...)
	return finish(t, cmd)
}

// TestDoctor examines a node that is well, and after its network plugin is gone.
func TestDoctor(t *testing.T) {
	n := newNode(t, lab.Options{})
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	plugins, err := cache.Plugins()
	if err != nil {
		t.Fatal(err)
	}

	n.pod(t, podNamed("web")).start(t)
	s := n.doctor(t, "--cni-bin-dir", plugins)
	if s.code != 0 || s.err != "" {
		t.Errorf("the examination exits with %d: %s", s.code, s.err)
	}
	wantLines(t, s.out, "^(OK  |WARN)  rights: ", "^(OK  |WARN)  kernel: ", "^OK    configuration: ", "^OK    network: network .* with its plugins$", `^OK    daemon: crisp .* \(pid \d+\) serves`, "^OK    leftovers: nothing is left", `^\d+ OK, \d+ WARN, 0 FAIL$`)

	s = n.doctor(t, "--cni-bin-dir", t.TempDir(), "--json")
	var found []doctor.Finding
	if err := json.Unmarshal([]byte(s.out), &found); err != nil || s.code != 1 || doctor.Worst(found) != doctor.Fail || !strings.Contains(s.err, "not fit") {
		t.Errorf("without plugins: code %d, %v: %+v", s.code, err, found)
	}

	n.Kill()
	s = n.doctor(t, "--cni-bin-dir", plugins)
	wantLines(t, s.out, "^WARN  daemon: no daemon runs", "^OK    leftovers: not judged")
	n.begin(t)
}

// TestDoctorKnowsOthers judges nothing of a daemon that shares cgroups with another one
// to be left, and says so if that one cannot be asked.
func TestDoctorKnowsOthers(t *testing.T) {
	warmCgroups(t)
	n := newNode(t, lab.Options{})
	other := lonely(t)
	if err := other.Stop(); err != nil {
		t.Fatal(err)
	}
	dir := other.path("config.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "same.toml"), fmt.Appendf(nil, "cgroup_parent = %q\n", n.CgroupParent()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "images.tar")
	n.crisp(t, "images", "export", "-o", archive, busybox)
	other.crisp(t, "images", "import", archive)

	theirs := other.pod(t, podNamed("theirs"))
	created := theirs.create(t) // its cgroup has no process
	mine := n.pod(t, podNamed("mine")).start(t)
	if a, b := filepath.Dir(mine.cgroups(t)["memory"]), n.Name; !cgroupV2() && !strings.Contains(a, b) {
		t.Fatalf("the container is in %s, not below %s", a, b)
	}
	if left, _ := n.examine(t, false); strings.Contains(left, created.id) || strings.Contains(left, theirs.id[:20]) {
		t.Errorf("of another daemon's pods is left:\n%s", left)
	}

	if err := unix.Kill(other.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	left, fixed := n.examine(t, true)
	if err := unix.Kill(other.PID(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if fixed != "" || !strings.Contains(left, "are not judged: another crisp (pid "+fmt.Sprint(other.PID())) {
		t.Errorf("beside a daemon that does not answer, %q was removed, and is left:\n%s", fixed, left)
	}
	theirs.remove(t)
}

// warmCgroups opens a file of version 2: the library keeps the descriptor of the directory
// above it for good, which is none of the daemon's or the test's.
func warmCgroups(t *testing.T) {
	t.Helper()
	if !cgroupV2() {
		return
	}
	if _, err := cgroups.ReadFile("/sys/fs/cgroup", "cgroup.controllers"); err != nil {
		t.Fatal(err)
	}
}

// examine has the leftovers of a node listed, and removed with repair.
func (n *node) examine(t *testing.T, repair bool) (left, fixed string) {
	t.Helper()
	cfg, err := config.Load(n.path("config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Root, cfg.State, cfg.NetNSDir, cfg.CNIConfDir = n.path("root"), n.path("state"), n.path("state", "netns"), n.path("net.d")
	all := doctor.Examine(t.Context(), &doctor.Node{
		Config: cfg, Facts: host.Probe(), Files: os.DirFS("/"), Examine: func() error { return nil },
		State: func(ctx context.Context) (s admin.State, err error) {
			client := admin.NewClient(n.path("state", admin.Socket))
			defer client.Close()
			return s, client.Get(ctx, admin.StatePath, &s)
		},
	}, repair)

	for _, f := range all {
		switch {
		case f.Check != "leftovers" || f.Status == doctor.OK && !f.Fixed:
		case f.Fixed:
			fixed += f.Text + "\n"
		default:
			left += f.Text + "; " + f.Todo + "\n"
		}
	}
	return left, fixed
}

// TestDoctorFixes plants what pods could leave next to what a pod has.
func TestDoctorFixes(t *testing.T) {
	n := newNode(t, lab.Options{})
	c := n.pod(t, podNamed("web")).start(t)
	examine := func(repair bool) (left, fixed string) { return n.examine(t, repair) }
	if left, _ := examine(false); left != "" {
		t.Errorf("of a pod that exists is left:\n%s", left)
	}

	paths := plant(t, n, c)
	left, fixed := examine(false)
	for _, path := range paths {
		if !strings.Contains(left, " "+path+" ") {
			t.Errorf("%s was not found:\n%s", path, left)
		}
	}
	if fixed != "" || strings.Contains(left, c.id) || strings.Contains(left, c.p.id[:20]) {
		t.Errorf("fixed without being asked: %s; found:\n%s", fixed, left)
	}

	left, fixed = examine(true)
	for _, path := range paths[:3] {
		if !strings.Contains(fixed, " "+path+" ") {
			t.Errorf("%s was not removed: %s\n%s", path, fixed, left)
		}
	}
	if !strings.Contains(left, paths[3]) || strings.Count(left, "\n") != 1 || !strings.Contains(left, "restart the daemon") {
		t.Errorf("afterwards is left:\n%s", left)
	}
	if out := c.sh(t, "ip addr show eth0"); !strings.Contains(out, "inet ") {
		t.Errorf("the container says %q", out)
	}
}

// plant makes what a pod could leave: a pinned network namespace, a cgroup, a mount,
// and a directory, which only the daemon removes.
func plant(t *testing.T, n *node, c *container) []string {
	t.Helper()
	id := strings.Repeat("0123456789abcdef", 4)
	ns := n.path("state", "netns", "crisp-"+id[:20])
	if err := os.WriteFile(ns, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("unshare", "--net", "mount", "--bind", "/proc/self/ns/net", ns).Run(); err != nil {
		t.Fatal(err)
	}

	groups := c.cgroups(t)
	hierarchy := groups["memory"]
	group := filepath.Join("/sys/fs/cgroup/memory", filepath.Dir(hierarchy), id)
	if cgroupV2() {
		group = filepath.Join("/sys/fs/cgroup", filepath.Dir(groups[""]), id)
	}
	dir := n.path("root", "pods", id)
	mount := filepath.Join(dir, "shm")
	if err := os.MkdirAll(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		_ = unix.Unmount(ns, unix.MNT_DETACH)
		_ = os.Remove(ns)
		_ = os.Remove(group)
		_ = unix.Unmount(mount, unix.MNT_DETACH)
		_ = os.RemoveAll(dir)
	})
	return []string{ns, group, mount, dir}
}
