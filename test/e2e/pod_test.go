package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pod is a sandbox on a node. It is removed at the end of the test.
type pod struct {
	n   *node
	id  string
	cfg *runtimeapi.PodSandboxConfig
}

// podConfig is that of an ordinary pod, as from kubelet.
func (n *node) podConfig(t *testing.T) *runtimeapi.PodSandboxConfig {
	t.Helper()
	name := strings.ToLower(filepath.Base(t.Name()))
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "e2e", Uid: fmt.Sprintf("%s-%d", name, time.Now().UnixNano())},
		Hostname:     "e2e",
		LogDirectory: n.path("logs", name),
		Labels:       map[string]string{"test": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

// pod runs a pod, changed from the ordinary one.
func (n *node) pod(t *testing.T, change ...func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	cfg := n.podConfig(t)
	for _, c := range change {
		c(cfg)
	}
	return n.podOf(t, cfg)
}

func (n *node) podOf(t *testing.T, cfg *runtimeapi.PodSandboxConfig) *pod {
	t.Helper()
	p := &pod{n, call(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg}).PodSandboxId, cfg}
	t.Cleanup(func() { p.remove(t) })
	return p
}

// remove removes the pod as kubelet does; doing so twice is fine.
func (p *pod) remove(t *testing.T) {
	t.Helper()
	if _, err := try(t, p.n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("stop pod: %v", err)
	}
	if _, err := try(t, p.n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("remove pod: %v", err)
	}
}

func (p *pod) status(t *testing.T) *runtimeapi.PodSandboxStatus {
	t.Helper()
	return call(t, p.n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id}).Status
}

// container is a container of a pod, removed together with it.
type container struct {
	p   *pod
	id  string
	cfg *runtimeapi.ContainerConfig
}

// change modifies the configuration of an ordinary container.
type change = func(*runtimeapi.ContainerConfig)

// sh makes the container run a script.
func sh(script string) change {
	return func(c *runtimeapi.ContainerConfig) { c.Command = []string{"sh", "-c", script} }
}

// config is that of a container that sleeps, in the pod's namespaces.
func (p *pod) config(changes ...change) *runtimeapi.ContainerConfig {
	options := p.cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	cfg := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
		Image:    &runtimeapi.ImageSpec{Image: busybox},
		Command:  []string{"sleep", "1000"},
		LogPath:  "main.log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: options},
		},
	}

	for _, c := range changes {
		c(cfg)
	}
	return cfg
}

// create creates a container, changed from the ordinary one.
func (p *pod) create(t *testing.T, changes ...change) *container {
	t.Helper()
	cfg := p.config(changes...)
	request := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.cfg}
	return &container{p, call(t, p.n.Runtime.CreateContainer, request).ContainerId, cfg}
}

// start creates and starts a container.
func (p *pod) start(t *testing.T, changes ...change) *container {
	t.Helper()
	c := p.create(t, changes...)
	c.start(t)
	return c
}

// output runs a script in a container of its own and returns what it logged.
func (p *pod) output(t *testing.T, script string, changes ...change) string {
	t.Helper()
	c := p.start(t, append([]change{sh(script)}, changes...)...)
	if st := c.wait(t); st.ExitCode != 0 {
		t.Errorf("%q ended with code %d", script, st.ExitCode)
	}
	out := c.logged(t)
	c.remove(t)
	return out
}

func (c *container) start(t *testing.T) {
	t.Helper()
	call(t, c.p.n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id})
}

func (c *container) stop(t *testing.T, seconds int64) {
	t.Helper()
	call(t, c.p.n.Runtime.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: seconds})
}

func (c *container) remove(t *testing.T) {
	t.Helper()
	call(t, c.p.n.Runtime.RemoveContainer, &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
}

func (c *container) update(t *testing.T, r *runtimeapi.LinuxContainerResources) {
	t.Helper()
	call(t, c.p.n.Runtime.UpdateContainerResources, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r})
}

func (c *container) status(t *testing.T) *runtimeapi.ContainerStatus {
	t.Helper()
	return call(t, c.p.n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.id}).Status
}

// wait waits for the container's exit.
func (c *container) wait(t *testing.T) *runtimeapi.ContainerStatus {
	t.Helper()
	var st *runtimeapi.ContainerStatus
	eventually(t, "the container ends", func() bool {
		st = c.status(t)
		return st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return st
}

// wantEnd checks how a container exited.
func (c *container) wantEnd(t *testing.T, code int32, reason string) {
	t.Helper()
	if st := c.wait(t); st.ExitCode != code || st.Reason != reason {
		t.Errorf("the container ended with code %d, reason %q (%s), want %d, %q", st.ExitCode, st.Reason, st.Message, code, reason)
	}
}

// exec runs a command in the container.
func (c *container) exec(t *testing.T, cmd ...string) *runtimeapi.ExecSyncResponse {
	t.Helper()
	return call(t, c.p.n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: cmd})
}

// sh runs a script in the container and returns its output.
func (c *container) sh(t *testing.T, script string) string {
	t.Helper()
	r := c.exec(t, "sh", "-c", script)
	if r.ExitCode != 0 {
		t.Errorf("%q ended with code %d: %s", script, r.ExitCode, r.Stderr)
	}
	return strings.TrimSuffix(string(r.Stdout), "\n")
}

// pid is the container's first process in the node's PID namespace.
func (c *container) pid(t *testing.T) int {
	t.Helper()
	r := call(t, c.p.n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.Pid == 0 {
		t.Fatalf("the status of container %s has no process: %v", c.id, err)
	}
	return info.Pid
}

func (c *container) logFile() string {
	return filepath.Join(c.p.cfg.GetLogDirectory(), c.cfg.GetLogPath())
}

// logged is the container's output, joined from its log.
func (c *container) logged(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(c.logFile())
	if err != nil {
		t.Fatal(err)
	}
	return text(parse(t, data), "")
}

// Changes to containers and pods.

func named(name string) change {
	return func(c *runtimeapi.ContainerConfig) {
		c.Metadata.Name, c.LogPath = name, name+".log"
	}
}

func image(ref string) change {
	return func(c *runtimeapi.ContainerConfig) { c.Image = &runtimeapi.ImageSpec{Image: ref} }
}

func mount(host, path string) change {
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: host, ContainerPath: path})
	}
}

// attempt distinguishes a second pod of a test from its first.
func attempt(n uint32) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Attempt = n }
}

func memory(limit int64) change {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = limit }
}

// sharedPID gives a pod's containers one PID namespace.
func sharedPID(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
}
