package e2e

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
)

// save writes a checkpoint of a pod's containers into a new directory.
func (p *pod) save(t *testing.T, containers ...*container) string {
	t.Helper()
	r := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: t.TempDir()}
	for _, c := range containers {
		r.ContainerIds = append(r.ContainerIds, c.id)
	}
	call(t, p.n.Runtime.CheckpointPod, r)
	return r.OutputPath
}

// again is the request that restores a pod under another UID, with logs of its own.
func (p *pod) again(t *testing.T, dir string, containers ...*container) *runtimeapi.RestorePodRequest {
	t.Helper()
	cfg := proto.Clone(p.cfg).(*runtimeapi.PodSandboxConfig)
	cfg.Metadata.Uid += "-again"
	cfg.LogDirectory += "-again"
	if err := os.MkdirAll(cfg.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	r := &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: cfg}
	for _, c := range containers {
		r.ContainerConfigs = append(r.ContainerConfigs, c.cfg)
	}
	return r
}

// restore restores a pod, and returns its containers, which are not started.
func (n *node) restore(t *testing.T, r *runtimeapi.RestorePodRequest) (*pod, []*container) {
	t.Helper()
	out := call(t, n.Runtime.RestorePod, r)
	p := &pod{n, out.PodSandboxId, r.Config}
	t.Cleanup(func() { p.remove(t) })
	var list []*container
	for i, c := range out.RestoredContainers {
		if want := r.ContainerConfigs[i].Metadata.Name; c.Name != want {
			t.Fatalf("container %d is %q, want %q", i, c.Name, want)
		}
		list = append(list, &container{p, c.ContainerId, r.ContainerConfigs[i]})
	}
	return p, list
}

// countFrom is the first number that was logged, and checks that none is missing after it.
func (c *container) countFrom(t *testing.T) (first, last int) {
	t.Helper()
	lines := strings.Fields(c.logged(t))
	if len(lines) == 0 {
		return -1, -1
	}
	first, err := strconv.Atoi(lines[0])
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range lines {
		if line != strconv.Itoa(first+i) {
			t.Fatalf("line %d of the log is %q, and the first %d", i, line, first)
		}
	}
	return first, first + len(lines) - 1
}

// TestRestore restores containers of every kind, each in a new pod, where it goes on.
func TestRestore(t *testing.T) {
	n := withCRIU(t, "")
	none := func(*runtimeapi.PodSandboxConfig) {}
	for name, test := range map[string]struct {
		pod       func(*runtimeapi.PodSandboxConfig)
		container change
	}{
		"plain": {none, func(*runtimeapi.ContainerConfig) {}},
		"masked, read-only root": {none, func(c *runtimeapi.ContainerConfig) {
			sc := c.Linux.SecurityContext
			sc.ReadonlyRootfs = true
			sc.MaskedPaths = []string{"/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware"}
			sc.ReadonlyPaths = []string{"/proc/bus", "/proc/sys", "/proc/sysrq-trigger"}
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
			sc.NoNewPrivs = true
		}},
		"volumes": {none, func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/data"}, {HostPath: "/etc/passwd", ContainerPath: "/a file:1]", Readonly: true}}
		}},
		"terminal": {none, func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true }},
		"stdin": {none, func(c *runtimeapi.ContainerConfig) { c.Stdin = true }},
		"not root": {none, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		}},
		"node's network": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		}, func(*runtimeapi.ContainerConfig) {}},
		"privileged": {func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }, func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Privileged = true }},
	} {
		n.run(t, name, func(t *testing.T) {
			if name == "not root" && !mayReadLimits(t) {
				testkit.Skip(t, "CAP_SYS_RESOURCE", "CRIU may not read the limits of another user's processes")
			}
			p := n.pod(t, test.pod)
			c := p.start(t, sh("{ echo kept >/tmp/file; } 2>/dev/null; "+counting), test.container)
			eventually(t, "it counts", func() bool { return c.count(t) > 1 })
			dir := p.save(t, c)
			p.remove(t)
			until := c.count(t)

			q, restored := n.restore(t, p.again(t, dir, c))
			d := restored[0]
			if st := d.status(t); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
				t.Fatalf("the restored container is %v", st.State)
			}
			d.start(t)
			eventually(t, "it goes on", func() bool { _, last := d.countFrom(t); return last > until+2 })
			if first, _ := d.countFrom(t); first > until+1 {
				t.Errorf("it goes on with %d, and the last was %d", first, until)
			}
			if st := d.status(t); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the restored container is %v", st.State)
			}
			d.sh(t, "true")
			if !d.cfg.Linux.SecurityContext.ReadonlyRootfs {
				d.sh(t, "grep -q kept /tmp/file")
			}
			q.remove(t)
		})
	}
}
