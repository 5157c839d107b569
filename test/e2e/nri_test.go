package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// nriPlugin is a plugin of the Node Resource Interface that records what it is told.
// Its fields decide what it answers; they are set before it is asked.
type nriPlugin struct {
	mu     sync.Mutex
	events []string
	synced []string
	// answers
	run    func(*api.PodSandbox) error
	create func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	start  func(*api.Container) error
	update func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error)

	stub stub.Stub
}

func (p *nriPlugin) note(event, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, event+" "+name)
}

// told returns the events so far.
func (p *nriPlugin) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func (p *nriPlugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced = []string{}
	for _, s := range pods {
		p.synced = append(p.synced, "pod "+s.GetName())
	}
	for _, c := range containers {
		p.synced = append(p.synced, fmt.Sprintf("container %s %s", c.GetName(), c.GetState()))
	}
	return nil, nil
}

func (p *nriPlugin) RunPodSandbox(_ context.Context, s *api.PodSandbox) error {
	p.note("run", s.GetName())
	if p.run != nil {
		return p.run(s)
	}
	return nil
}

func (p *nriPlugin) StopPodSandbox(_ context.Context, s *api.PodSandbox) error {
	p.note("stop pod", s.GetName())
	return nil
}

func (p *nriPlugin) RemovePodSandbox(_ context.Context, s *api.PodSandbox) error {
	p.note("remove pod", s.GetName())
	return nil
}

func (p *nriPlugin) UpdatePodSandbox(_ context.Context, s *api.PodSandbox, _, r *api.LinuxResources) error {
	p.note(fmt.Sprintf("update pod to %d", r.GetCpu().GetShares().GetValue()), s.GetName())
	return nil
}

func (p *nriPlugin) PostUpdatePodSandbox(_ context.Context, s *api.PodSandbox) error {
	p.note("updated pod", s.GetName())
	return nil
}

func (p *nriPlugin) CreateContainer(_ context.Context, s *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create", c.GetName())
	if p.create != nil {
		return p.create(s, c)
	}
	return nil, nil, nil
}

func (p *nriPlugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("created", c.GetName())
	return nil
}

func (p *nriPlugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("start", c.GetName())
	if p.start != nil {
		return p.start(c)
	}
	return nil
}

func (p *nriPlugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("started", c.GetName())
	return nil
}

func (p *nriPlugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.note("update", c.GetName())
	if p.update != nil {
		return p.update(c, r)
	}
	return nil, nil
}

func (p *nriPlugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("updated", c.GetName())
	return nil
}

func (p *nriPlugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note(fmt.Sprintf("stopped with %d", c.GetExitCode()), c.GetName())
	return nil, nil
}

func (p *nriPlugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("remove", c.GetName())
	return nil
}

// connect connects a plugin under a name until the test ends, and waits until it
// is synchronised.
func (n *node) connect(t *testing.T, p *nriPlugin, name string) *nriPlugin {
	t.Helper()
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName(name), stub.WithPluginIdx("10"), stub.WithSocketPath(n.path("nri.sock")), stub.WithOnClose(func() {}))
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	if err := p.stub.Start(ctx); err != nil {
		t.Fatalf("connect plugin %s: %v", name, err)
	}
	t.Cleanup(p.stub.Stop)
	eventually(t, "the plugin is synchronised", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.synced != nil
	})
	return p
}

// TestPlugins connects plugins of the Node Resource Interface.
func TestPlugins(t *testing.T) {
	n := newNode(t, lab.Options{Config: "nri_request_timeout = \"1s\"\n"})
	n.run(t, "events", func(t *testing.T) { testPluginEvents(t, n) })
	n.run(t, "adjustments", func(t *testing.T) { testPluginAdjusts(t, n) })
	n.run(t, "limits", func(t *testing.T) { testPluginLimits(t, n) })
	n.run(t, "updates", func(t *testing.T) { testPluginUpdates(t, n) })
	n.run(t, "refusals", func(t *testing.T) { testPluginRefuses(t, n) })
	n.run(t, "unsupported", func(t *testing.T) { testPluginAsksTooMuch(t, n) })
	n.run(t, "hangs", func(t *testing.T) { testPluginHangs(t, n) })
	n.run(t, "leaves", func(t *testing.T) { testPluginLeaves(t, n) })
	n.run(t, "restart", func(t *testing.T) { testPluginRestart(t, n) })
}

// testPluginEvents follows a pod through its life.
func testPluginEvents(t *testing.T, n *node) {
	before := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "before" })
	before.start(t)
	ended := before.start(t, sh("exit 3"), func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "ended" })
	ended.wait(t)

	pl := n.connect(t, &nriPlugin{}, "events")
	if want := []string{"pod before", "container main CONTAINER_RUNNING", "container ended CONTAINER_STOPPED"}; !slices.Equal(pl.synced, want) {
		t.Errorf("synchronised with %q, want %q", pl.synced, want)
	}

	p := n.pod(t)
	c := p.create(t)
	c.start(t)
	c.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 300})
	call(t, n.Runtime.UpdatePodSandboxResources, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 400},
	})
	c.exec(t, "true")
	c.stop(t, 0)
	c.remove(t)
	other := p.start(t, sh("sleep 1; exit 5"), func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "other" })
	other.wait(t)
	eventually(t, "the exit is told", func() bool { return slices.Contains(pl.told(), "stopped with 5 other") })
	p.remove(t)
	p.remove(t)

	want := []string{
		"run events", "create main", "created main", "start main", "started main", "update main", "updated main",
		"update pod to 400 events", "updated pod events", "stopped with 137 main", "remove main",
		"create other", "created other", "start other", "started other", "stopped with 5 other",
		"stop pod events", "remove other", "remove pod events",
	}
	if got := pl.told(); !slices.Equal(got, want) {
		t.Errorf("told\n%q, want\n%q", got, want)
	}
}

// adjusted connects a plugin that adjusts every container.
func (n *node) adjusted(t *testing.T, name string, change func(*api.ContainerAdjustment)) *nriPlugin {
	t.Helper()
	return n.connect(t, &nriPlugin{create: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		change(a)
		return a, nil, nil
	}}, name)
}

// testPluginAdjusts looks at adjustments from inside the container.
func testPluginAdjusts(t *testing.T, n *node) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from a plugin"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.adjusted(t, "adjusts", func(a *api.ContainerAdjustment) {
		a.AddEnv("ADDED", "a value")
		a.RemoveEnv("REMOVED")
		a.AddMount(&api.Mount{Destination: "/plugin", Source: dir, Type: "bind", Options: []string{"rbind", "ro"}})
		a.RemoveMount("/removed")
		a.RemoveDevice("/dev/removed")
		a.AddRlimit("RLIMIT_NOFILE", 777, 555)
		a.AddDevice(&api.LinuxDevice{Path: "/dev/added", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(os.FileMode(0o640))})
		a.AddAnnotation("plugin.io/was", "here")
		a.SetLinuxScheduler(&api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH, Nice: 4})
		a.AddHooks(&api.Hooks{
			CreateRuntime: []*api.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo hooked > " + dir + "/created"}}},
			Poststop:      []*api.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo hooked > " + dir + "/gone"}}},
		})
		score := 321
		a.SetLinuxOomScoreAdj(&score)
	})

	c := n.pod(t).start(t, func(c *runtimeapi.ContainerConfig) {
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: "REMOVED", Value: []byte("x")}, &runtimeapi.KeyValue{Key: "BYTES", Value: []byte("\xff")})
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: dir, ContainerPath: "/removed"})
		c.Devices = append(c.Devices, &runtimeapi.Device{HostPath: "/dev/zero", ContainerPath: "/dev/removed", Permissions: "rwm"})
	})
	for script, want := range map[string]string{
		"cat /plugin/created": "hooked",
		"ls -d /removed /dev/removed 2>/dev/null || echo none":           "none",
		"tr '\\0' '\\n' < /proc/1/environ | grep -c '^BYTES='":           "1",
		"cat /proc/1/environ | tr '\\0' '\\n' | grep -E 'ADDED|REMOVED'": "ADDED=a value",
		"cat /plugin/file": "from a plugin",
		"touch /plugin/x 2>/dev/null || echo read-only":                "read-only",
		"grep 'open files' /proc/1/limits | awk '{print $4,$5}'":       "555 777",
		"stat -c '%t %T %a' /dev/added && head -c1 /dev/added | wc -c": "1 5 640\n1",
		"cat /proc/1/oom_score_adj":                                    "321",
		"awk '{print $19}' /proc/1/stat":                               "4",
	} {
		if got := c.sh(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}

	r := call(t, n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	for _, want := range []string{"10-adjusts: ", "plugin.io/was"} {
		if !strings.Contains(r.Info["info"], want) {
			t.Errorf("the verbose status does not contain %q: %s", want, r.Info["info"])
		}
	}
	if _, ok := r.Status.Annotations["plugin.io/was"]; ok {
		t.Error("the status has an annotation that kubelet did not set")
	}
	c.stop(t, 0)
	c.remove(t)
	if got := slurp(filepath.Join(dir, "gone")); got != "hooked\n" {
		t.Errorf("a plugin's poststop hook wrote %q", got)
	}
}

// testPluginLimits expects limits of a plugin to be in force, to survive an update
// of others, and a restart of the daemon before the start.
func testPluginLimits(t *testing.T, n *node) {
	n.adjusted(t, "limits", func(a *api.ContainerAdjustment) {
		a.SetLinuxMemoryLimit(96 << 20)
		a.SetLinuxCPUShares(777)
		a.SetLinuxPidLimits(55)
	})
	p := n.pod(t)
	c := p.create(t, func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 64 << 20 })
	want := func(when, memory, shares, pids string) {
		t.Helper()
		limit := c.sh(t, "cat /sys/fs/cgroup/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max")
		if got := c.limits(t)["memory"]; got != memory || c.shares(t) != shares || limit != pids {
			t.Errorf("%s: memory %s, shares %s, pids %s, want %s, %s, %s", when, got, c.shares(t), limit, memory, shares, pids)
		}
	}

	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	want("after the start", "100663296", "777", "55")
	c.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 300})
	want("after an update of others", "100663296", "300", "55")
}

// shares are the CPU shares of the container's status.
func (c *container) shares(t *testing.T) string {
	t.Helper()
	return strconv.FormatInt(c.status(t).GetResources().GetLinux().GetCpuShares(), 10)
}

// testPluginUpdates has plugins change a request of kubelet's, another container,
// and one at any time.
func testPluginUpdates(t *testing.T, n *node) {
	p := n.pod(t)
	first := p.start(t)
	shares := func(id string, value uint64) *api.ContainerUpdate {
		u := &api.ContainerUpdate{ContainerId: id}
		u.SetLinuxCPUShares(value)
		return u
	}

	pl := n.connect(t, &nriPlugin{
		update: func(c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
			return []*api.ContainerUpdate{shares(c.GetId(), r.GetCpu().GetShares().GetValue()+1)}, nil
		},
		create: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			return nil, []*api.ContainerUpdate{shares(first.id, 444)}, nil
		},
	}, "updates")

	first.update(t, &runtimeapi.LinuxContainerResources{CpuShares: 300})
	if got := first.shares(t); got != "301" {
		t.Errorf("after a changed update: %s shares, want 301", got)
	}
	second := p.create(t, func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "second" })
	if got := first.shares(t); got != "444" {
		t.Errorf("after the creation of another container: %s shares, want 444", got)
	}

	failed, err := pl.stub.UpdateContainers([]*api.ContainerUpdate{shares(first.id, 555), shares(strings.Repeat("0", 64), 5), shares(second.id, 666)})
	if err != nil || len(failed) != 1 || failed[0].GetContainerId() != strings.Repeat("0", 64) {
		t.Errorf("updates failed: %v, %v, want that of the missing container", failed, err)
	}
	if got := first.shares(t); got != "555" {
		t.Errorf("after a plugin's own update: %s shares, want 555", got)
	}

	class := shares(first.id, 777)
	class.SetLinuxRDTClass("gold")
	if failed, err := pl.stub.UpdateContainers([]*api.ContainerUpdate{class}); err != nil || len(failed) != 1 {
		t.Errorf("an update with an RDT class failed: %v, %v, want it back", failed, err)
	}
	pl.update = func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		u := shares(first.id, 888)
		u.SetLinuxBlockIOClass("fast")
		return []*api.ContainerUpdate{u}, nil
	}
	_, err = try(t, n.Runtime.UpdateContainerResources, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: first.id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 300},
	})
	wantRefusal(t, "update with a class", err, "block I/O class")
	if got := first.shares(t); got != "555" {
		t.Errorf("after refused updates: %s shares, want 555", got)
	}
}

// testPluginRefuses expects a plugin's error to reach the caller, and nothing to be
// left.
func testPluginRefuses(t *testing.T, n *node) {
	no := errors.New("not on this node")
	pl := n.connect(t, &nriPlugin{}, "refuses")
	p := n.pod(t)
	pl.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		return nil, nil, no
	}
	_, err := try(t, n.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(), SandboxConfig: p.cfg})
	wantRefusal(t, "creation", err, no.Error())
	if got := pl.told(); !slices.Contains(got, "remove main") {
		t.Errorf("told %q after a refused creation, want the removal too", got)
	}

	pl.create = nil
	c := p.create(t)
	pl.start = func(*api.Container) error { return no }
	_, err = try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id})
	wantRefusal(t, "start", err, no.Error())
	pl.start = nil

	pl.run = func(*api.PodSandbox) error { return no }
	cfg := n.podConfig(t)
	cfg.Metadata.Name = "refused"
	_, err = try(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	wantRefusal(t, "sandbox", err, no.Error())
	if got := pl.told(); !slices.Equal(got[len(got)-3:], []string{"run refused", "stop pod refused", "remove pod refused"}) {
		t.Errorf("told %q after a refused sandbox", got)
	}
	pl.run = nil
}

func wantRefusal(t *testing.T, what string, err error, text string) {
	t.Helper()
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: error %v, want FailedPrecondition with %q", what, err, text)
	}
}

// testPluginAsksTooMuch expects adjustments that are not possible to be refused by
// name.
func testPluginAsksTooMuch(t *testing.T, n *node) {
	pl := n.connect(t, &nriPlugin{}, "greedy")
	p := n.pod(t)
	for name, c := range map[string]struct {
		change func(*api.ContainerAdjustment)
		text   string
	}{
		"cgroup":    {func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/elsewhere") }, "cgroup"},
		"namespace": {func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "ipc"}) }, "namespaces"},
		"RDT class": {func(a *api.ContainerAdjustment) { a.SetLinuxRDTClass("gold") }, "RDT class"},
		"RDT":       {func(a *api.ContainerAdjustment) { a.SetLinuxRDTClosID("none-of-this-name") }, "Intel RDT"},
		"I/O class": {func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("fast") }, "block I/O class"},
		"listener": {func(a *api.ContainerAdjustment) {
			a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", ListenerMetadata: "of nobody"})
		}, "listenerPath"},
		"sysctl of the node": {func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("kernel.panic", "1") }, "not namespaced"},
		"rlimit":             {func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_FROB", 1, 1) }, "RLIMIT_FROB"},
		"seccomp action": {func(a *api.ContainerAdjustment) {
			a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_FROB"})
		}, "seccomp"},
		"mount over the root": {func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/.", Source: "/tmp", Type: "bind"})
		}, "root of the container"},
		"all devices": {func(a *api.ContainerAdjustment) {
			a.AddDevice(&api.LinuxDevice{Path: "/dev/x", Type: "c", Major: -1, Minor: -1})
		}, "numbers"},
		"CPUs":       {func(a *api.ContainerAdjustment) { a.SetLinuxCPUSetCPUs("9999") }, "10-greedy"},
		"CPU period": {func(a *api.ContainerAdjustment) { a.SetLinuxCPUPeriod(1) }, "10-greedy"},
		"swappiness": {func(a *api.ContainerAdjustment) { a.SetLinuxMemorySwappiness(5000) }, "swappiness"},
		"device":     {func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "vendor.example/none=1"}) }, "vendor.example/none=1"},
	} {
		pl.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			c.change(a)
			return a, nil, nil
		}

		_, err := try(t, n.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(), SandboxConfig: p.cfg})
		if code := status.Code(err); code != codes.FailedPrecondition && code != codes.InvalidArgument || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want a refusal with %q", name, err, c.text)
		}
	}

	for name, change := range map[string]func(*api.ContainerAdjustment){
		"program": func(a *api.ContainerAdjustment) { a.SetArgs([]string{"/nonexistent"}) },
		"source": func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/x", Source: "/nonexistent", Type: "bind"})
		},
	} {
		pl.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			change(a)
			return a, nil, nil
		}
		c := p.create(t, named(name))
		wantRefusal(t, name, failure(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id}), "10-greedy")
	}
	pl.create = nil
}

// testPluginHangs has a plugin not answer: it is disconnected after its time, and
// delays nothing that is not asked of it.
func testPluginHangs(t *testing.T, n *node) {
	block := make(chan struct{})
	pl := n.connect(t, &nriPlugin{}, "hangs")
	pl.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		<-block
		return nil, nil, nil
	}
	p := n.pod(t)
	done := make(chan time.Duration, 1)
	go func() {
		at := time.Now()
		p.create(t)
		done <- time.Since(at)
	}()

	eventually(t, "the plugin is asked", func() bool { return slices.Contains(pl.told(), "create main") })
	at := time.Now()
	call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{})
	call(t, n.Runtime.Status, &runtimeapi.StatusRequest{})
	if took := time.Since(at); took > 500*time.Millisecond {
		t.Errorf("lists and status took %v while a plugin hung", took)
	}

	if took := <-done; took < 500*time.Millisecond {
		t.Errorf("the container did not wait for the plugin: it took %v", took)
	}
	close(block)
	p.start(t, func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "after" })
	if got := pl.told(); slices.Contains(got, "create after") {
		t.Errorf("a plugin that did not answer was asked again: %q", got)
	}
}

// testPluginLeaves has a plugin go between the creation of a container and its start:
// what it has adjusted stays, and nothing waits for it.
func testPluginLeaves(t *testing.T, n *node) {
	pl := n.adjusted(t, "leaves", func(a *api.ContainerAdjustment) { a.AddEnv("LEFT", "behind") })
	p := n.pod(t)
	c := p.create(t)
	pl.stub.Stop()
	begin := time.Now()
	c.start(t)
	if took := time.Since(begin); took > pace.Scale(time.Second) {
		t.Errorf("the start waited %v for a plugin that is gone", took)
	}
	if got := c.sh(t, "tr '\\0' '\\n' </proc/1/environ | grep LEFT"); got != "LEFT=behind" {
		t.Errorf("the container has %q", got)
	}
	if got := p.start(t, named("other")).sh(t, "tr '\\0' '\\n' </proc/1/environ | grep -c LEFT; true"); got != "0" {
		t.Errorf("a later container has %q of it", got)
	}
}

// testPluginRestart expects a plugin that connects after a restart of the daemon to
// be told of what runs, and required plugins to be waited for.
func testPluginRestart(t *testing.T, n *node) {
	p := n.pod(t)
	p.start(t)
	n.Kill()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pl := n.connect(t, &nriPlugin{}, "restart")
	if want := []string{"pod restart", "container main CONTAINER_RUNNING"}; !slices.Equal(pl.synced, want) {
		t.Errorf("synchronised with %q, want %q", pl.synced, want)
	}
}

// TestRequiredPlugin expects no container without a required plugin.
func TestRequiredPlugin(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	n := &node{testkit.Daemon(t, lab.Options{Config: "nri_request_timeout = \"1s\"\nnri_required_plugins = [\"guard\"]\nnri_required_wait = \"3s\"\nnri_reject = [\"hooks\"]\n"})}
	n.pull(t, busybox)
	p := n.pod(t)
	request := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(), SandboxConfig: p.cfg}
	_, err := try(t, n.Runtime.CreateContainer, request)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "guard") {
		t.Errorf("without the plugin: %v, want Unavailable with its name", err)
	}

	created := make(chan error, 1)
	go func() {
		_, err := try(t, n.Runtime.CreateContainer, request)
		created <- err
	}()
	time.Sleep(500 * time.Millisecond)
	pl := n.connect(t, &nriPlugin{}, "guard")
	if err := <-created; err != nil {
		t.Errorf("with the plugin connecting meanwhile: %v", err)
	}

	// One that does not answer is not there.
	block := make(chan struct{})
	defer close(block)
	pl.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		<-block
		return nil, nil, nil
	}
	request.Config = p.config(func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "late" })
	if _, err := try(t, n.Runtime.CreateContainer, request); status.Code(err) != codes.Unavailable {
		t.Errorf("with a plugin that does not answer: %v, want Unavailable", err)
	}

	hooks := n.connect(t, &nriPlugin{}, "guard")
	hooks.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/bin/true"}}})
		return a, nil, nil
	}
	_, err = try(t, n.Runtime.CreateContainer, request)
	wantRefusal(t, "hooks that are rejected", err, "hook")
}
