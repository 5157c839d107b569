package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

func TestCgroups(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "CVE-2022-0492", func(t *testing.T) { testReleaseAgent(t, n) })
	n.run(t, "fork bomb under a quota", func(t *testing.T) {
		// Until they are let go they wait in the open of a pipe, which takes no CPU.
		c := n.pod(t).start(t, sh(`mkfifo /start; i=0; while [ $i -lt 300 ]; do i=$((i+1)); (read x </start; while :; do (:); done) 2>/dev/null & done; wait`))
		eventually(t, "the container has its processes", func() bool { return strings.Count(c.sh(t, "ps -o args"), "\nsh ") >= 300 })

		c.update(t, &runtimeapi.LinuxContainerResources{CpuQuota: 1000, CpuPeriod: 100000})
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/start", c.pid(t)), nil, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pace.Scale(2 * time.Second)) // it uses up its quota
		wantGone(t, c)
	})

	n.run(t, "frozen", func(t *testing.T) {
		c := n.pod(t).start(t, sh("sleep 2005 & wait"))
		c.freeze(t)
		wantGone(t, c)
	})

	n.run(t, "pod with a frozen container", func(t *testing.T) {
		c := n.pod(t).start(t, sh("sleep 2005 & wait"))
		c.freeze(t)
		began := time.Now()
		call(t, n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: c.p.id})
		if took := time.Since(began); took > pace.Scale(5*time.Second) {
			t.Errorf("to stop the pod took %v", took)
		}
	})
	n.run(t, "groups of its own", func(t *testing.T) { testOwnGroups(t, n) })
}

// wantGone stops and removes a container in time.
func wantGone(t *testing.T, c *container) {
	t.Helper()
	began := time.Now()
	c.stop(t, 0)
	stopped := time.Since(began)
	c.remove(t)
	took := time.Since(began)
	t.Logf("stopped in %v, removed after %v", stopped, took)
	if took > pace.Scale(5*time.Second) {
		t.Errorf("it took %v", took)
	}
}

// cgroups are the cgroups of the container's first process, by controllers.
func (c *container) cgroups(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.pid(t)))
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string]string{}
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		groups[f[1]] = f[2]
	}
	return groups
}

func (c *container) freeze(t *testing.T) {
	t.Helper()
	file, value := "/sys/fs/cgroup/freezer"+c.cgroups(t)["freezer"]+"/freezer.state", "FROZEN"
	if cgroupV2() {
		file, value = "/sys/fs/cgroup"+c.cgroups(t)[""]+"/cgroup.freeze", "1"
	}
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// testReleaseAgent inspects all hierarchies with CAP_SYS_ADMIN, from the
// container and from a command that is executed in it.
func testReleaseAgent(t *testing.T, n *node) {
	before := releaseAgents(t)
	c := n.pod(t).start(t, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	})

	for controllers, path := range c.cgroups(t) {
		if !strings.Contains(path, c.id) {
			t.Errorf("in the hierarchy of %q the container is in %s", controllers, path)
		}
	}

	const look = `grep -v ':/$' /proc/self/cgroup
mkdir -p /mnt/look
while IFS=: read -r id controllers path; do
	case $controllers in
	"") mount -t cgroup2 none /mnt/look ;;
	name=*) mount -t cgroup -o none,$controllers none /mnt/look ;;
	*) mount -t cgroup -o $controllers none /mnt/look ;;
	esac || { echo "not mounted: $controllers" >> /mnt/refused; continue; }
	echo /evil 2>/dev/null > /mnt/look/release_agent && echo "set agent of $controllers"
	mount -o remount,release_agent=/evil /mnt/look 2>/dev/null && [ -n "$controllers" ] && echo "remounted $controllers"
	ls -d /mnt/look/*/ 2>/dev/null
	umount /mnt/look
done < /proc/self/cgroup
for d in /sys/fs/cgroup $(find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d); do mkdir $d/x; done 2>&1 | grep -v 'Read-only'
echo done`

	if got := c.sh(t, look); got != "done" {
		t.Errorf("a command in the container finds\n%s", got)
	}

	// AppArmor's profile forbids mounts; without it, all hierarchies are
	// inspected.
	refused := c.sh(t, "mkdir -p /mnt && cat /mnt/refused 2>/dev/null || true")
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil && refused != "" {
		t.Errorf("a command in the container looks in vain:\n%s", refused)
	}

	if after := releaseAgents(t); after != before {
		t.Errorf("release agents were\n%s\nand are\n%s", before, after)
	}
	shown := strings.Fields(c.sh(t, "ls /sys/fs/cgroup"))
	for _, name := range shown {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", name)); err != nil && !cgroupV2() {
			t.Errorf("the container sees the hierarchy %s", name)
		}
	}
}

func releaseAgents(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, root := range inventory.Hierarchies() {
		fmt.Fprintf(&all, "%s: %s\n", root, strings.TrimSpace(slurp(filepath.Join(root, "release_agent"))))
	}
	return all.String()
}

// testOwnGroups has a privileged container create cgroups below its own, move
// processes there and freeze itself.
func testOwnGroups(t *testing.T, n *node) {
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.start(t, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Privileged = true
	}, sh(`while IFS=: read -r id controllers path; do
	top=/sys/fs/cgroup/${controllers#name=}$path
	[ -n "$controllers" ] || top=/sys/fs/cgroup/unified$path
	[ -d $top ] || top=/sys/fs/cgroup$path
	cd $top || continue
	i=0; while [ $i -lt 200 ]; do mkdir "n$i"; i=$((i+1)); done
	mkdir "$(printf '\377\376')" 'a b'
	i=0; while [ $i -lt 20 ]; do mkdir d; cd d; i=$((i+1)); done
	sleep 2006 & echo $! > cgroup.procs
done < /proc/self/cgroup
echo made; wait`))

	eventually(t, "the container has made its groups", func() bool { return strings.Contains(c.logged(t), "made") })
	call(t, n.Runtime.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
	c.freeze(t)
	wantGone(t, c)

	if got := n.processes(t, "sleep\x002006"); len(got) != 0 {
		t.Errorf("processes %v outlive their container", got)
	}
}
