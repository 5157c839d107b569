package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// TestCAdvisor makes cAdvisor's calls, across a restart of the daemon, and
// checks that what it reads afterwards exists: a cgroup of that name and a
// process in the pod's network.
func TestCAdvisor(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "containerd.sock")
	n := newNode(t, lab.Options{Config: fmt.Sprintf("cadvisor_socket = %q\n", socket)})
	labels := map[string]string{"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "default"}
	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Labels = labels })
	c := p.create(t, func(c *runtimeapi.ContainerConfig) {
		c.Labels = map[string]string{"io.kubernetes.container.name": "main"}
	})

	onNode := n.pod(t, attempt(1), func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})

	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	a := asker{containersapi.NewContainersClient(conn), tasksapi.NewTasksClient(conn)}

	if _, err := a.pid(t, c.id); status.Code(err) != codes.NotFound {
		t.Errorf("the process of a container that was not started: %v", err)
	}
	c.start(t)

	for range 2 {
		a.wantContainer(t, c)
		a.wantSandbox(t, p, labels)
		if _, err := a.container(t, onNode.id); status.Code(err) != codes.NotFound {
			t.Errorf("a pod with the node's network: %v", err)
		}
		n.Kill()
		n.begin(t)
	}

	// The container does not see the pod's process.
	if first, all := c.sh(t, "cat /proc/1/comm"), c.sh(t, "echo /proc/[0-9]*"); first != "sleep" || strings.Count(all, "/proc/") > 2 {
		t.Errorf("the container's first process is %s, and all are %s", first, all)
	}

	// A daemon does not replace a socket that another process serves.
	second := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "../../bin/crisp", "serve", "--root", second+"/root", "--state", second+"/state", "--config", n.path("config.toml")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), socket) {
		t.Errorf("a second daemon: %v: %s", err, out)
	}

	p.remove(t)
	for _, id := range []string{p.id, c.id} {
		if _, err := a.container(t, id); status.Code(err) != codes.NotFound {
			t.Errorf("%s after its removal: %v", id, err)
		}
	}
	onNode.remove(t)
}

// asker makes the same calls as cAdvisor.
type asker struct {
	containers containersapi.ContainersClient
	tasks      tasksapi.TasksClient
}

func (a asker) container(t *testing.T, id string) (*containersapi.Container, error) {
	t.Helper()
	r, err := a.containers.Get(t.Context(), &containersapi.GetContainerRequest{ID: id}, grpc.WaitForReady(true))
	return r.GetContainer(), err
}

func (a asker) pid(t *testing.T, id string) (int, error) {
	t.Helper()
	r, err := a.tasks.Get(t.Context(), &tasksapi.GetRequest{ContainerID: id}, grpc.WaitForReady(true))
	return int(r.GetProcess().GetPid()), err
}

func (a asker) wantContainer(t *testing.T, c *container) {
	t.Helper()
	got, err := a.container(t, c.id)
	if err != nil {
		t.Fatal(err)
	}
	if got.Labels["io.cri-containerd.kind"] != "container" || got.Labels["io.kubernetes.container.name"] != "main" || got.Image != busybox || got.CreatedAt.AsTime().Year() < 2026 {
		t.Errorf("container %v", got)
	}
	if pid, err := a.pid(t, c.id); err != nil || pid != c.pid(t) {
		t.Errorf("process %d, %v, want %d", pid, err, c.pid(t))
	}
}

func (a asker) wantSandbox(t *testing.T, p *pod, labels map[string]string) {
	t.Helper()
	got, err := a.container(t, p.id)
	if err != nil {
		t.Fatal(err)
	}

	if got.Labels["io.cri-containerd.kind"] != "sandbox" || got.Labels["io.kubernetes.pod.name"] != labels["io.kubernetes.pod.name"] || got.Image == "" {
		t.Errorf("sandbox %v", got)
	}
	pid, err := a.pid(t, p.id)
	if err != nil {
		t.Fatal(err)
	}

	devices, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil || !strings.Contains(string(devices), "eth0:") {
		t.Errorf("the network of the pod's process: %s, %v", devices, err)
	}
	if groups := inventory.Cgroups(p.id); len(groups) == 0 {
		t.Error("the pod has no cgroup of its name")
	}
}
