package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// TestPluginChurn has pods come and go while plugins do: each is told of a pod once,
// and none can block another.
func TestPluginChurn(t *testing.T) {
	n := newNode(t, lab.Options{Config: "nri_request_timeout = \"2s\"\n"})
	n.run(t, "updates in handlers", func(t *testing.T) { testPluginUpdatesInHandlers(t, n) })
	n.run(t, "connections", func(t *testing.T) { testPluginsComeAndGo(t, n) })
	n.run(t, "daemon killed", func(t *testing.T) { testKilledWhileAsking(t, n) })
	n.warm(t) // the last of several daemons
	n.run(t, "user namespace", func(t *testing.T) { testPluginDevice(t, n) })
}

// testPluginUpdatesInHandlers has two plugins change limits from inside their
// handlers: of the container that they are asked about, and of each other's.
func testPluginUpdatesInHandlers(t *testing.T, n *node) {
	var mu sync.Mutex
	var ids []string
	for _, name := range []string{"one", "two"} {
		pl := &nriPlugin{}
		change := func(id string) {
			mu.Lock()
			ids = append(ids, id)
			all := slices.Clone(ids[max(0, len(ids)-2):])
			mu.Unlock()

			var updates []*api.ContainerUpdate
			for _, id := range all {
				u := &api.ContainerUpdate{ContainerId: id}
				u.SetLinuxCPUShares(300)
				updates = append(updates, u)
			}
			_, _ = pl.stub.UpdateContainers(updates[:1]) // it fails if the container is busy
		}
		pl.create = func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			change(c.GetId())
			return nil, nil, nil
		}
		pl.start = func(c *api.Container) error { change(c.GetId()); return nil }
		n.connect(t, pl, name)
	}

	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() { n.cycle(t, fmt.Sprintf("handlers-%d", i)) })
	}
	wg.Wait()
}

// cycle runs a pod with a container and removes both.
func (n *node) cycle(t *testing.T, name string) {
	cfg := n.podConfig(t)
	cfg.Metadata.Name, cfg.Metadata.Uid = name, name
	r, err := try(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		t.Errorf("run %s: %v", name, err)
		return
	}

	p := &pod{n: n, id: r.PodSandboxId, cfg: cfg}
	c, err := try(t, n.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(), SandboxConfig: cfg})
	if err == nil {
		_, err = try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
	}
	if err != nil {
		t.Errorf("container of %s: %v", name, err)
	}
	if _, err := try(t, n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("stop %s: %v", name, err)
	}
	if _, err := try(t, n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Errorf("remove %s: %v", name, err)
	}
}

// testPluginsComeAndGo connects and disconnects plugins while pods come and go.
func testPluginsComeAndGo(t *testing.T, n *node) {
	const clients, rounds = 6, 3
	steady := n.connect(t, &nriPlugin{}, "steady")
	ctx, cancel := context.WithCancel(t.Context())
	var visits sync.WaitGroup
	visits.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			n.visit(t, time.Duration(i%5)*20*time.Millisecond)
		}
	})

	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for k := range rounds {
				n.cycle(t, fmt.Sprintf("churn-%d-%d", i, k))
			}
		})
	}
	wg.Wait()
	cancel()
	visits.Wait()

	seen := map[string]int{}
	for _, e := range steady.told() {
		if strings.Contains(e, " churn-") {
			seen[e]++
		}
	}
	for e, times := range seen {
		if times != 1 {
			t.Errorf("%q was told %d times", e, times)
		}
	}
	if want := clients * rounds * 3; len(seen) != want {
		t.Errorf("the plugin that stayed was told of %d events of sandboxes, want %d", len(seen), want)
	}
}

// visit connects a plugin for a while and checks that no pod reached it twice.
func (n *node) visit(t *testing.T, stay time.Duration) {
	p := &nriPlugin{}
	s, err := stub.New(p, stub.WithPluginName("visitor"), stub.WithPluginIdx("20"), stub.WithSocketPath(n.path("nri.sock")), stub.WithOnClose(func() {}))
	if err != nil {
		t.Error(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if err := s.Start(ctx); err != nil {
		t.Logf("connect: %v", err)
		return
	}

	time.Sleep(stay)
	s.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, known := range p.synced {
		name, isPod := strings.CutPrefix(known, "pod ")
		if isPod && slices.Contains(p.events, "run "+name) {
			t.Errorf("pod %s reached a plugin twice", name)
		}
	}
}

// testKilledWhileAsking kills the daemon while a plugin is asked, in each request
// that precedes an effect: the next daemon has the pod complete or not at all.
func testKilledWhileAsking(t *testing.T, n *node) {
	for _, at := range []string{"run", "create", "start"} {
		t.Run(at, func(t *testing.T) {
			asked, release := make(chan struct{}, 9), make(chan struct{})
			hang := func(event string) {
				if event == at {
					asked <- struct{}{}
					<-release
				}
			}
			n.connect(t, &nriPlugin{
				run: func(*api.PodSandbox) error { hang("run"); return nil },
				create: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
					hang("create")
					return nil, nil, nil
				},
				start: func(*api.Container) error { hang("start"); return nil },
			}, "hangs")

			done := make(chan struct{})
			go func() {
				defer close(done)
				cfg := n.podConfig(t)
				cfg.Metadata.Name, cfg.Metadata.Uid = "killed-"+at, "killed-"+at
				r, err := try(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg})
				if err != nil {
					return
				}
				p := &pod{n: n, id: r.PodSandboxId, cfg: cfg}
				c, err := try(t, n.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(), SandboxConfig: cfg})
				if err == nil {
					_, _ = try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
				}
			}()
			<-asked
			n.Kill()
			close(release)
			<-done

			if err := n.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, s := range call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items {
				if at == "run" && s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
					t.Errorf("sandbox %s is ready, though plugins had not agreed", s.Metadata.Name)
				}
				call(t, n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id})
				call(t, n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
			}
		})
	}
}

// testPluginDevice adds a device that the node has at no path to a container with a
// user namespace.
func testPluginDevice(t *testing.T, n *node) {
	n.adjusted(t, "device", func(a *api.ContainerAdjustment) {
		a.AddDevice(&api.LinuxDevice{Path: "/dev/plugged", Type: "c", Major: 1, Minor: 5, FileMode: api.FileMode(os.FileMode(0o640))})
	})
	c := n.pod(t, podKinds()["user namespace"]).start(t)
	if got := c.sh(t, "stat -c '%t %T %a %u' /dev/plugged && head -c1 /dev/plugged | wc -c"); got != "1 5 640 0\n1" {
		t.Errorf("the device is %q", got)
	}
}
