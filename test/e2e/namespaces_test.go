package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

func TestNamespaces(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "PID container", func(t *testing.T) {
		p := n.pod(t)
		a, b := p.start(t, named("a")), p.start(t, named("b"))
		if got := a.sh(t, "cat /proc/1/cmdline | tr '\\0' ' '; pgrep -c sleep"); got != "sleep 1000 1" {
			t.Errorf("the container sees %q", got)
		}

		wantSame(t, "pid", a, b, false)
		for _, ns := range []string{"net", "ipc", "uts"} {
			wantSame(t, ns, a, b, true)
		}
		for _, ns := range []string{"mnt", "cgroup"} {
			wantSame(t, ns, a, b, false)
		}
	})

	n.run(t, "PID pod", func(t *testing.T) { testSharedPID(t, n) })
	n.run(t, "PID node", func(t *testing.T) { testNodePID(t, n) })
	n.run(t, "PID target", func(t *testing.T) { testTargetPID(t, n) })
	n.run(t, "network and IPC node", func(t *testing.T) {
		p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
			o := c.Linux.SecurityContext.NamespaceOptions
			o.Network, o.Ipc = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE
		})

		c := p.start(t)
		for _, ns := range []string{"net", "ipc"} {
			if got, want := namespace(t, c.pid(t), ns), namespace(t, os.Getpid(), ns); got != want {
				t.Errorf("the %s namespace is %s, the node's is %s", ns, got, want)
			}
		}

		st := p.status(t)
		if ip := st.Network.GetIp(); ip != "" {
			t.Errorf("the pod has the address %q, want none of its own", ip)
		}
		if mode := st.Linux.Namespaces.Options.Network; mode != runtimeapi.NamespaceMode_NODE {
			t.Errorf("the status says network mode %v", mode)
		}
	})

	n.run(t, "user", func(t *testing.T) { testUserNamespace(t, n) })
	n.run(t, "first process of the pod dies", func(t *testing.T) { testPauseDies(t, n) })
}

// namespace identifies a namespace of a process.
func namespace(t *testing.T, pid int, kind string) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func wantSame(t *testing.T, kind string, a, b *container, want bool) {
	t.Helper()
	if got := namespace(t, a.pid(t), kind) == namespace(t, b.pid(t), kind); got != want {
		t.Errorf("two containers share their %s namespace: %t, want %t", kind, got, want)
	}
}

// testSharedPID checks a pod whose containers see each other. Processes that a
// container leaves behind are killed with it.
func testSharedPID(t *testing.T, n *node) {
	p := n.pod(t, sharedPID)
	a, b := p.start(t, named("a"), sh("sleep 2001 & sleep 2002")), p.start(t, named("b"))
	wantSame(t, "pid", a, b, true)
	all := b.sh(t, "ps -o args")
	for _, want := range []string{"sleep 2001", "sleep 2002", "sleep 1000"} {
		if !strings.Contains(all, want) {
			t.Errorf("container b does not see %q in:\n%s", want, all)
		}
	}

	b.sh(t, "(sleep 0.01 &)") // an orphan, which becomes a child of the pod's first process
	a.stop(t, 0)
	eventually(t, "container a's processes are gone and no zombie stays", func() bool {
		all := b.sh(t, "ps -o stat,args")
		return !strings.Contains(all, "200") && !strings.Contains(all, "\nZ")
	})

	if got := b.sh(t, "echo well"); got != "well" {
		t.Errorf("container b says %q after the end of a", got)
	}
}

// testNodePID stops a container in the node's PID namespace that forked.
func testNodePID(t *testing.T, n *node) {
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
	})
	c := p.start(t, sh("setsid sleep 2003 & echo $$; wait"))
	pid := c.pid(t)
	eventually(t, "the container says its process ID", func() bool { return c.logged(t) != "" })
	if got := c.logged(t); got != fmt.Sprintln(pid) {
		t.Errorf("the container says it is process %s, the node says %d", got, pid)
	}
	c.stop(t, 0)
	if got := n.processes(t, "sleep\x002003"); len(got) != 0 {
		t.Errorf("processes %v outlive their container", got)
	}
}

// processes are those of the node's containers with this prefix of the command
// line.
func (n *node) processes(t *testing.T, words string) []int {
	t.Helper()
	var pids []int
	for _, p := range inventory.Descendants(n.keeper(t)) {
		if strings.HasPrefix(slurp(fmt.Sprintf("/proc/%d/cmdline", p.PID)), words) {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// testTargetPID has a container list another's processes, as kubectl debug
// does.
func testTargetPID(t *testing.T, n *node) {
	p := n.pod(t)
	target := p.start(t, named("target"), sh("sleep 2004 & wait"))
	debug := p.start(t, named("debug"), func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target.id}
	})
	wantSame(t, "pid", target, debug, true)
	if all := debug.sh(t, "ps -o args"); !strings.Contains(all, "sleep 2004") {
		t.Errorf("the debugging container sees\n%s", all)
	}
	debug.stop(t, 0)
	if all := target.sh(t, "ps -o args"); !strings.Contains(all, "sleep 2004") || strings.Contains(all, "sleep 1000") {
		t.Errorf("after the end of the debugging container its target sees\n%s", all)
	}
}

// testUserNamespace checks a pod with a user namespace: it is root inside,
// unprivileged outside, and owns its files.
func testUserNamespace(t *testing.T, n *node) {
	const first, many = 200000, 65536
	mapping := []*runtimeapi.IDMapping{{HostId: first, ContainerId: 0, Length: many}}
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
			Mode: runtimeapi.NamespaceMode_POD, Uids: mapping, Gids: mapping,
		}
	})

	volume := t.TempDir()
	if err := os.Chmod(filepath.Dir(volume), 0o755); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(filepath.Join(volume, "from-node"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := p.start(t, func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{
			{HostPath: volume, ContainerPath: "/volume", UidMappings: mapping, GidMappings: mapping},
			{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: busybox}, Readonly: true},
		}
	})

	if got := strings.Join(strings.Fields(c.sh(t, "id -u; cat /proc/self/uid_map")), " "); got != "0 0 200000 65536" {
		t.Errorf("inside, the user and the map of users are %s", got)
	}
	owned := "/ /bin/sh /image/bin/sh /volume/from-node /etc/hosts /etc/resolv.conf"
	if got := c.sh(t, "stat -c %u:%g "+owned+" | uniq"); got != "0:0" {
		t.Errorf("inside, the owners of %s are %q", owned, got)
	}

	c.sh(t, "echo x > /volume/from-container; echo x > /root/file; chown 7:8 /root/file; mkdir /new")
	if got := statusField(t, c.pid(t), "Uid"); got != first {
		t.Errorf("outside, the first process is user %d, want %d", got, first)
	}

	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(volume, "from-container"), &st); err != nil || st.Uid != 0 {
		t.Errorf("outside, the volume's new file belongs to %d, %v, want 0 as by the volume's mapping", st.Uid, err)
	}

	layer := n.path("root", "image", "containers", c.id, "upper", "root", "file")
	if err := unix.Stat(layer, &st); err != nil || st.Uid != first+7 || st.Gid != first+8 {
		t.Errorf("outside, the writable layer's file belongs to %d:%d, %v, want %d:%d", st.Uid, st.Gid, err, first+7, first+8)
	}

	if r := c.exec(t, "sh", "-c", "echo x > /image/file"); r.ExitCode == 0 {
		t.Error("the image volume can be written to")
	}
	if got := p.status(t).Linux.Namespaces.Options.UsernsOptions; got.GetMode() != runtimeapi.NamespaceMode_POD || len(got.GetUids()) != 1 {
		t.Errorf("the status says of the user namespace: %v", got)
	}
}

// testPauseDies kills the first process of a shared PID namespace: the
// containers die with it and the pod is not ready.
func testPauseDies(t *testing.T, n *node) {
	p := n.pod(t, sharedPID)
	c := p.start(t)
	first := strings.TrimSpace(c.sh(t, "cat /proc/1/cmdline | tr '\\0' ' '"))
	pause := n.processes(t, first+"\x00")
	if len(pause) != 1 {
		t.Fatalf("the first process of the pod is %q, of which there are %v", first, pause)
	}

	if err := unix.Kill(pause[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.wantEnd(t, 137, "Error")
	eventually(t, "the pod is not ready", func() bool {
		return p.status(t).State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
}
