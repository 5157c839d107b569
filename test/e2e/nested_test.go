package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// innerEnv is set for the part of TestNested that runs in a container.
const innerEnv = "CRISP_TEST_INNER"

// TestNested runs a node in a privileged container of a node, and pods on it. The
// container has what such nodes have elsewhere: a volume for the daemon's data, no
// systemd, a cgroup of its own, and the network of its pod.
func TestNested(t *testing.T) {
	testkit.Root(t)
	if os.Getenv(innerEnv) != "" {
		testInnerNode(t)
		return
	}

	n := newNode(t, lab.Options{})
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.start(t, nodeInContainer(t, p))
	st := c.wait(t)
	out := c.logged(t)
	if st.ExitCode != 0 || !strings.Contains(out, "--- PASS: TestNested") {
		t.Errorf("the node in the container ended with code %d:\n%s", st.ExitCode, out)
	}

	// What is left of the inner pods below the container's cgroup goes with it.
	c.remove(t)
	p.remove(t)
}

// nodeInContainer makes a container run this test in it, with the programs of this
// machine.
func nodeInContainer(t *testing.T, p *pod) change {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	checkout := filepath.Dir(filepath.Dir(here))

	return func(c *runtimeapi.ContainerConfig) {
		for at, from := range map[string]string{
			"/usr": "/usr", "/lib": "/usr/lib", "/lib64": "/usr/lib64", "/etc/alternatives": "/etc/alternatives", checkout: checkout, "/test": filepath.Dir(program),
		} {
			// Not every architecture has /usr/lib64.
			if _, err := os.Stat(from); err == nil {
				c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: from, ContainerPath: at, Readonly: true})
			}
		}
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: "/tmp"})
		c.WorkingDir = here
		c.Command = []string{"/test/" + filepath.Base(program), "-test.run", "^TestNested$", "-test.v"}
		c.Envs = []*runtimeapi.KeyValue{
			{Key: innerEnv, Value: []byte("1")},
			{Key: "PATH", Value: []byte("/usr/sbin:/usr/bin:/bin")},
			{Key: "CRISP_STRICT", Value: []byte(os.Getenv("CRISP_STRICT"))},
		}
		c.Linux.SecurityContext.Privileged = true
	}
}

// testInnerNode is the part in the container.
func testInnerNode(t *testing.T) {
	n := newNode(t, lab.Options{})
	p := n.pod(t)
	c := p.start(t, func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, CpuShares: 100}
	})
	if got := c.sh(t, "echo $$; hostname"); got == "" {
		t.Error("a command says nothing")
	}

	st := call(t, n.Runtime.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: c.id}).Stats
	if st.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("the container's memory is not measured: %v", st)
	}
	if ip := p.status(t).GetNetwork().GetIp(); ip == "" {
		t.Error("the pod has no address")
	}

	n.Kill()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := p.output(t, "echo inside", func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "second" }); !strings.Contains(out, "inside") {
		t.Errorf("a container after a restart says %q", out)
	}
	c.sh(t, "true")
}
