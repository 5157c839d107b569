package systemd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/procstat"
	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

const (
	socket  = "unix:///run/crisp/crisp.sock"
	busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	// patience is for what takes a second or less; callTime bounds a call.
	patience = 30 * time.Second
	callTime = 30 * time.Second
)

// machine is one with the package installed.
type machine struct {
	t       *testing.T
	deb     string
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
}

// install installs the package, with a registry and a network for it.
func install(t *testing.T) *machine {
	t.Helper()
	testkit.Root(t)
	if os.Getenv("CRISP_VM") == "" {
		testkit.Skip(t, "vm", "the test installs a package")
	}

	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}

	m := &machine{t: t}
	if m.deb, err = cache.Package(); err != nil {
		t.Fatal(err)
	}

	m.provide(cache)
	m.run("dpkg", "--install", m.deb)
	retry := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, MaxDelay: 50 * time.Millisecond, Multiplier: 1}, MinConnectTimeout: pace.Scale(callTime)}
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(retry))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m.runtime, m.images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	m.answers()

	return m
}

// provide starts a registry that the package's configuration refers to.
func (m *machine) provide(cache lab.Cache) {
	m.t.Helper()
	binary, err := cache.Tool("registry")
	if err != nil {
		m.t.Fatal(err)
	}

	storage, err := cache.Images()
	if err != nil {
		m.t.Fatal(err)
	}

	registry, err := lab.StartRegistry(m.t.Context(), lab.RegistryOptions{Binary: binary, Storage: storage, Work: m.t.TempDir()})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { registry.Close() })
	if err := registry.WriteHosts("/etc/crisp/certs.d"); err != nil {
		m.t.Fatal(err)
	}
}

// run runs a command that must succeed and returns what it printed.
func (m *machine) run(name string, args ...string) string {
	m.t.Helper()
	out, err := exec.CommandContext(m.t.Context(), name, args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// property is a property of a unit, as reported by systemd.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "--property="+name, unit)
}

func (m *machine) pid(unit string) int {
	m.t.Helper()
	pid, err := strconv.Atoi(m.property(unit, "MainPID"))
	if err != nil {
		m.t.Fatal(err)
	}
	return pid
}

// running is the main process of a unit, which must exist: killing 0 would kill
// this process's group.
func (m *machine) running(unit string) int {
	m.t.Helper()
	pid := m.pid(unit)
	if pid == 0 {
		m.t.Fatalf("%s does not run", unit)
	}
	return pid
}

func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(pace.Scale(patience)); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("waited in vain for: %s\n%s", what, m.run("journalctl", "--no-pager", "-n", "40", "-u", "crisp*"))
		}
	}
}

// answers waits until the daemon responds.
func (m *machine) answers() {
	m.t.Helper()
	m.eventually("an answer of the daemon", func() bool {
		_, err := call(m, m.runtime.Version, &runtimeapi.VersionRequest{})
		return err == nil
	})
}

func call[Q, A any](m *machine, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.t.Context()), pace.Scale(callTime))
	defer cancel()
	return f(ctx, request)
}

// must is call for one that must succeed.
func must[Q, A any](m *machine, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) A {
	m.t.Helper()
	answer, err := call(m, f, request)
	if err != nil {
		m.t.Fatal(err)
	}
	return answer
}

// counter is a container that counts into its log.
type counter struct {
	m       *machine
	pod, id string
	log     string
	process string // its pid and start time
	read    int64  // how much of the log was checked
	next    int    // the next expected number
}

// startCounter runs one in a pod in the machine's network, which needs no
// plugin. After each number it does what pause says.
func (m *machine) startCounter(name, pause string) *counter {
	m.t.Helper()
	dir := m.t.TempDir()
	security := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}
	pod := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "test", Uid: name},
		LogDirectory: dir,
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: security}},
	}

	c := &counter{m: m, log: filepath.Join(dir, "counter.log")}
	must(m, m.images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}})
	c.pod = must(m, m.runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: pod}).PodSandboxId
	c.id = must(m, m.runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: c.pod, SandboxConfig: pod, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "counter"},
		Image:    &runtimeapi.ImageSpec{Image: busybox},
		Command:  []string{"sh", "-c", "i=0; while :; do echo $i; i=$((i + 1)); " + pause + "; done"},
		LogPath:  "counter.log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: security},
		},
	}}).ContainerId

	must(m, m.runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id})
	c.process = c.identity()
	return c
}

// remove stops and removes the pod.
func (c *counter) remove() {
	c.m.t.Helper()
	must(c.m, c.m.runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: c.pod})
	must(c.m, c.m.runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: c.pod})
}

// pid is the container's first process, as reported by the daemon.
func (c *counter) pid() int {
	c.m.t.Helper()
	s := must(c.m, c.m.runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if s.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		c.m.t.Fatalf("the container is %v: %s %s", s.Status.State, s.Status.Reason, s.Status.Message)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(s.Info["info"]), &info); err != nil || info.Pid == 0 {
		c.m.t.Fatalf("no pid in %q: %v", s.Info["info"], err)
	}
	return info.Pid
}

// identity distinguishes a process from another with the same pid.
func (c *counter) identity() string {
	c.m.t.Helper()
	pid := c.pid()
	stat, err := procstat.Read(pid)
	if err != nil {
		c.m.t.Fatal(err)
	}
	return fmt.Sprint(pid, " started at ", stat.StartTicks)
}

// numbers returns how far the container has counted. Every line must be there
// once; those of earlier calls were checked then.
func (c *counter) numbers() int {
	c.m.t.Helper()
	f, err := os.Open(c.log)
	if err != nil {
		c.m.t.Fatal(err)
	}
	defer f.Close()

	lines := bufio.NewReader(io.NewSectionReader(f, c.read, math.MaxInt64-c.read))
	for {
		line, err := lines.ReadString('\n')
		if err != nil { // the last one is still being written
			return c.next
		}

		fields := strings.Fields(line)
		if len(fields) != 4 || fields[3] != strconv.Itoa(c.next) {
			c.m.t.Fatalf("line %d of the log is %q", c.next, line)
		}
		c.next++
		c.read += int64(len(line))
	}
}

// runsOn checks that the container is the same process and keeps counting.
func (c *counter) runsOn() {
	c.m.t.Helper()
	c.m.answers()
	if now := c.identity(); now != c.process {
		c.m.t.Errorf("the container's process is %s and was %s", now, c.process)
	}
	before := c.numbers()
	c.m.eventually("more lines in the log", func() bool { return c.numbers() > before })
}

// cgroup is the cgroup of a process.
func (m *machine) cgroup(pid int) string {
	m.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimPrefix(strings.TrimSpace(string(data)), "0::")
}
