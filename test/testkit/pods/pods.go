// Package pods creates pods and containers on a lab's node, configured as by
// kubelet. Everything is removed at the end of the test that created it.
package pods

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// callTime bounds every call; none takes nearly as long.
const callTime = 60 * time.Second

// Call makes a call that must succeed.
func Call[Q, A any](t testing.TB, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) A {
	t.Helper()
	answer, err := Try(t, f, request)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// Try makes a call. It works in cleanups too.
func Try[Q, A any](t testing.TB, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), pace.Scale(callTime))
	defer cancel()
	return f(ctx, request)
}

// Eventually polls until ok is true, for half a minute.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(pace.Scale(30 * time.Second)); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// Pod is a sandbox on a node.
type Pod struct {
	Node   *lab.Lab
	ID     string
	Config *runtimeapi.PodSandboxConfig
}

// PodChange changes the configuration of an ordinary pod.
type PodChange = func(*runtimeapi.PodSandboxConfig)

// Run runs a pod with PID namespaces for its containers, changed from that.
func Run(t testing.TB, node *lab.Lab, name string, changes ...PodChange) *Pod {
	t.Helper()
	p, err := TryRun(t, node, name, changes...)
	if err != nil {
		t.Fatalf("run pod %s: %v", name, err)
	}
	return p
}

// TryRun is Run for a pod that the node may refuse.
func TryRun(t testing.TB, node *lab.Lab, name string, changes ...PodChange) (*Pod, error) {
	t.Helper()
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "test", Uid: fmt.Sprintf("%s-%d", name, time.Now().UnixNano())},
		Hostname:     "pod",
		LogDirectory: filepath.Join(node.Dir, "logs", fmt.Sprintf("%s-%d", name, time.Now().UnixNano())),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		}},
	}

	for _, change := range changes {
		change(cfg)
	}
	answer, err := Try(t, node.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return nil, err
	}

	p := &Pod{node, answer.PodSandboxId, cfg}
	t.Cleanup(func() { p.Remove(t) })
	return p, nil
}

// Remove stops and removes the pod; doing so twice is fine.
func (p *Pod) Remove(t testing.TB) {
	t.Helper()
	if _, err := Try(t, p.Node.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Errorf("stop pod: %v", err)
	}
	if _, err := Try(t, p.Node.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Errorf("remove pod: %v", err)
	}
}

// UserNamespace gives a pod 65,536 users that start at a user of the node.
func UserNamespace(first uint32) PodChange {
	mapping := []*runtimeapi.IDMapping{{HostId: first, ContainerId: 0, Length: 65536}}
	return func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
			Mode: runtimeapi.NamespaceMode_POD, Uids: mapping, Gids: mapping,
		}
	}
}

// SharedPID makes a pod's containers share a PID namespace.
func SharedPID(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
}

// HostNetwork puts a pod into the node's network.
func HostNetwork(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	c.Hostname = ""
}

// Container is a container of a pod, and removed with it.
type Container struct {
	Pod    *Pod
	ID     string
	Config *runtimeapi.ContainerConfig
}

// Change changes the configuration of an ordinary container.
type Change = func(*runtimeapi.ContainerConfig)

// Command is what a container runs.
func Command(args ...string) Change {
	return func(c *runtimeapi.ContainerConfig) { c.Command = args }
}

// Env adds a variable to a container's environment.
func Env(key, value string) Change {
	return func(c *runtimeapi.ContainerConfig) {
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: key, Value: []byte(value)})
	}
}

// Volume mounts a directory or file of the node.
func Volume(from, at string) Change {
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: from, ContainerPath: at})
	}
}

// TryCreate creates a container that the node may refuse. It is configured as
// by kubelet: kernel files masked or read-only, the runtime's own filter.
func (p *Pod) TryCreate(t testing.TB, name, image string, changes ...Change) (*Container, error) {
	t.Helper()
	cfg := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.Config.Linux.SecurityContext.NamespaceOptions,
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				MaskedPaths: []string{
					"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
					"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
				},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}

	for _, change := range changes {
		change(cfg)
	}
	answer, err := Try(t, p.Node.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: cfg, SandboxConfig: p.Config})
	if err != nil {
		return nil, err
	}

	return &Container{p, answer.ContainerId, cfg}, nil
}

// Start creates and starts a container.
func (p *Pod) Start(t testing.TB, name, image string, changes ...Change) *Container {
	t.Helper()
	c, err := p.TryCreate(t, name, image, changes...)
	if err != nil {
		t.Fatalf("create container %s: %v", name, err)
	}
	Call(t, p.Node.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.ID})
	return c
}

// Remove removes the container, running or not.
func (c *Container) Remove(t testing.TB) {
	t.Helper()
	Call(t, c.Pod.Node.Runtime.RemoveContainer, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
}

// Status is the container's status from the node.
func (c *Container) Status(t testing.TB) *runtimeapi.ContainerStatus {
	t.Helper()
	return Call(t, c.Pod.Node.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID}).Status
}

// Wait waits for the container's exit.
func (c *Container) Wait(t testing.TB) *runtimeapi.ContainerStatus {
	t.Helper()
	var st *runtimeapi.ContainerStatus
	Eventually(t, "container "+c.Config.Metadata.Name+" ends", func() bool {
		st = c.Status(t)
		return st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return st
}

// Shell runs a script in the container and returns its output, with an extra
// line if the exit code is not 0.
func (c *Container) Shell(t testing.TB, script string) string {
	t.Helper()
	r := Call(t, c.Pod.Node.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", script}})
	out := string(r.Stdout) + string(r.Stderr)
	if r.ExitCode != 0 {
		out += fmt.Sprintf("exit code %d\n", r.ExitCode)
	}
	return strings.TrimSuffix(out, "\n")
}

// LogFile is the path of the container's log.
func (c *Container) LogFile() string {
	return filepath.Join(c.Pod.Config.LogDirectory, c.Config.LogPath)
}
