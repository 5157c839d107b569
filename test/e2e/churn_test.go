package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// TestChurn creates and removes many pods concurrently. Meanwhile states only
// move forward, and reading them does not block.
func TestChurn(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "pods", func(t *testing.T) {
		const workers, rounds = 8, 3
		ctx, stop := context.WithCancel(t.Context())
		var watch sync.WaitGroup
		watch.Go(func() { watchStates(ctx, t, n) })
		var wg sync.WaitGroup
		for worker := range workers {
			wg.Go(func() {
				for round := range rounds {
					if err := n.lifetime(t, uint32(worker*rounds+round)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		stop()
		watch.Wait()

		if left := call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items; len(left) != 0 {
			t.Errorf("%d pods are left", len(left))
		}
	})
}

// lifetime runs a pod of two containers from its creation to its removal.
func (n *node) lifetime(t *testing.T, attempt uint32) error {
	cfg := n.podConfig(t)
	cfg.Metadata.Attempt = attempt
	if attempt%2 == 0 {
		sharedPID(cfg)
	}

	r, err := try(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return err
	}

	p := &pod{n, r.PodSandboxId, cfg}
	for i, change := range []change{sh("sleep 1000"), sh("exit 3")} {
		request := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(named(fmt.Sprintf("%d-%d", attempt, i)), change), SandboxConfig: cfg}
		c, err := try(t, n.Runtime.CreateContainer, request)
		if err == nil {
			_, err = try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
		}
		if err == nil && i == 0 {
			_, err = try(t, n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"true"}})
		}
		if err != nil {
			return err
		}
	}

	if attempt%3 > 0 { // else it is stopped by being removed
		if _, err := try(t, n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			return err
		}
	}

	_, err = try(t, n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
	return err
}

// watchStates lists containers until ctx ends, and compares their states with
// the previous ones.
func watchStates(ctx context.Context, t *testing.T, n *node) {
	const patience = 5 * time.Second // it is a few milliseconds on an idle machine
	last := map[string]*runtimeapi.ContainerStatus{}
	lists := 0
	for ; ctx.Err() == nil; lists++ {
		began := time.Now()
		list, err := try(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Error(err)
			return
		}

		if took := time.Since(began); took > pace.Scale(patience) {
			t.Errorf("a list took %v", took)
		}
		for _, c := range list.Containers {
			r, err := try(t, n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
			if err != nil {
				continue // removed meanwhile
			}

			now, before := r.Status, last[c.Id]
			if now.State < c.State || before != nil && now.State < before.State {
				t.Errorf("container %s was %v and is %v", c.Metadata.Name, before.GetState(), now.State)
			}
			if before != nil && before.FinishedAt != 0 && (now.FinishedAt != before.FinishedAt || now.ExitCode != before.ExitCode) {
				t.Errorf("container %s ended at %d with %d and now at %d with %d", c.Metadata.Name, before.FinishedAt, before.ExitCode, now.FinishedAt, now.ExitCode)
			}
			last[c.Id] = now
		}
	}

	if len(last) == 0 {
		t.Errorf("%d lists saw no container", lists)
	}
}
