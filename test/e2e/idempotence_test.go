package e2e

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

func TestIdempotence(t *testing.T) {
	cni := newPlugin(t)
	n := newNode(t, lab.Options{PluginDir: cni.dir})
	n.run(t, "parallel pods", func(t *testing.T) { testParallelPods(t, n, cni) })
	n.run(t, "parallel containers", func(t *testing.T) { testParallelContainers(t, n) })
	n.run(t, "cancelled run", func(t *testing.T) { testCancelledRun(t, n, cni) })
	n.run(t, "failed run", func(t *testing.T) { testFailedRun(t, n, cni) })
	n.run(t, "failed stop", func(t *testing.T) { testFailedStop(t, n, cni) })
	n.run(t, "other configuration", func(t *testing.T) {
		p := n.pod(t)
		p.cfg.Hostname = "other"
		wantCode(t, failure(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: p.cfg}), codes.AlreadyExists, p.id)
	})

	n.run(t, "twice", func(t *testing.T) {
		p := n.pod(t)
		c := p.start(t)
		for range 2 {
			c.stop(t, 0)
		}

		c.wantEnd(t, 137, "Error")
		for range 2 {
			c.remove(t)
		}

		p.start(t) // running
		for range 2 {
			p.remove(t)
		}
	})
	n.run(t, "shorter grace", func(t *testing.T) { testShorterGrace(t, n) })
}

// together makes n concurrent calls and returns the distinct responses.
func together(t *testing.T, n int, call func() (string, error)) []string {
	t.Helper()
	answers := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var err error
			if answers[i], err = call(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(answers)

	return slices.Compact(answers)
}

func testParallelPods(t *testing.T, n *node, cni plugin) {
	pins, leases, adds := len(names(n.path("state", "netns"))), len(n.Leases()), cni.calls("ADD")
	cfg := n.podConfig(t)
	ids := together(t, 4, func() (string, error) {
		r, err := try(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg})
		return r.GetPodSandboxId(), err
	})

	if len(ids) != 1 {
		t.Errorf("parallel calls made pods %q, want one", ids)
	}
	pins, leases, adds = len(names(n.path("state", "netns")))-pins, len(n.Leases())-leases, cni.calls("ADD")-adds
	if pins != 1 || leases != 1 || adds != 1 {
		t.Errorf("one pod has %d network namespaces and %d addresses of %d ADDs", pins, leases, adds)
	}

	if again := n.podOf(t, cfg).id; again != ids[0] {
		t.Errorf("a later call made another pod, %s", again)
	}
}

func testParallelContainers(t *testing.T, n *node) {
	p := n.pod(t)
	request := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(), SandboxConfig: p.cfg}
	ids := together(t, 4, func() (string, error) {
		r, err := try(t, n.Runtime.CreateContainer, request)
		return r.GetContainerId(), err
	})

	if len(ids) != 1 {
		t.Errorf("parallel calls made containers %q, want one", ids)
	}
	if list := call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{}).Containers; len(list) != 1 {
		t.Errorf("%d containers are listed, want one", len(list))
	}

	if again := p.create(t); again.id != ids[0] {
		t.Errorf("a later call made another container, %s", again.id)
	}
	if other := p.create(t, func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt = 1 }); other.id == ids[0] {
		t.Error("another attempt got the same container")
	}
}

// testCancelledRun cancels a call while the network plugin runs, and retries
// it: it joins the running operation.
func testCancelledRun(t *testing.T, n *node, cni plugin) {
	adds := cni.calls("ADD")
	cni.set(t, "hold-ADD")
	cfg := n.podConfig(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := n.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
		ended <- err
	}()

	eventually(t, "the plugin is called", func() bool { return cni.calls("ADD") > adds })
	cancel()
	wantCode(t, <-ended, codes.Canceled)
	if list := call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items; len(list) != 0 {
		t.Errorf("a pod that is not yet there is listed: %v", list)
	}

	time.AfterFunc(100*time.Millisecond, func() { cni.clear("hold-ADD") })
	p := n.podOf(t, cfg)
	if got := cni.calls("ADD") - adds; got != 1 {
		t.Errorf("the plugin was asked %d times for one pod", got)
	}

	if st := p.status(t); st.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Network.Ip == "" {
		t.Errorf("the pod is %v with address %q", st.State, st.Network.Ip)
	}
}

func testFailedRun(t *testing.T, n *node, cni plugin) {
	cni.set(t, "fail-ADD")
	cfg := n.podConfig(t)
	err := failure(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	wantCode(t, err, codes.Internal, "attach network", "the plugin fails on request")
	if list := call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items; len(list) != 0 {
		t.Errorf("a pod that never was is listed: %v", list)
	}
	cni.clear("fail-ADD")
	n.podOf(t, cfg)
}

// testFailedStop has a plugin that fails to release the network: the stop fails
// until it succeeds.
func testFailedStop(t *testing.T, n *node, cni plugin) {
	p := n.pod(t)
	c := p.start(t)
	cni.set(t, "fail-DEL")
	stop := &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}
	wantCode(t, failure(t, n.Runtime.StopPodSandbox, stop), codes.Internal, "the plugin fails on request")

	if st := p.status(t); st.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod is %v", st.State)
	}
	c.wantEnd(t, 137, "Error")
	cni.clear("fail-DEL")
	call(t, n.Runtime.StopPodSandbox, stop)

	if got := n.Leases(); len(got) != 0 {
		t.Errorf("addresses %q are still leased", got)
	}
}

func testShorterGrace(t *testing.T, n *node) {
	c := n.pod(t).start(t) // sleep, which as the first process ignores SIGTERM
	patient := make(chan error, 1)
	go func() {
		patient <- failure(t, n.Runtime.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 60})
	}()

	began := time.Now()
	c.stop(t, 1)
	if took := time.Since(began); took < 900*time.Millisecond || took > pace.Scale(20*time.Second) {
		t.Errorf("the stop took %v, want about a second", took)
	}

	select {
	case err := <-patient:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(pace.Scale(20 * time.Second)):
		t.Error("the stop with the longer grace still waits")
	}
	c.wantEnd(t, 137, "Error")
}
