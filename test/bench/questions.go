package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// asked is how often each read is measured, and askedLong how often one that takes
// some runtimes seconds with many pods.
const asked, askedLong = 30, 3

// metrics is a read that is asked of crisp only, since runtimes differ in what
// they answer it with. With a thousand pods a list of metrics exceeds the 16 MiB
// that kubelet accepts in one message.
const metrics = "StreamPodSandboxMetrics"

// whileStuck is appended to the names of reads while another pod is stuck.
const whileStuck = ", one pod stuck"

// ask measures the read-only calls, and again while the network plugin of one more
// pod hangs.
func (g *grown) ask(ctx context.Context) (err error) {
	if err := g.questions(ctx, "", 0); err != nil {
		return err
	}
	if g.stuck == nil {
		g.note(g.phase, "No pod can be made to hang in a runtime that the benchmark did not start.")
		return nil
	}
	release, err := g.stickPod(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	return g.questions(ctx, whileStuck, 1)
}

// stickPod starts a pod that hangs in CNI ADD until release, which removes it.
func (g *grown) stickPod(ctx context.Context) (release func() error, err error) {
	c := g.quiet()
	if err := g.stuck.hold(); err != nil {
		return nil, err
	}

	name, started := g.name(), make(chan error, 1)
	var p *pod
	go func() {
		var err error
		p, err = c.start(ctx, name)
		started <- err
	}()

	release = func() error {
		err := errors.Join(g.stuck.release(), <-started, g.stuck.clear())
		return errors.Join(err, c.removePod(context.WithoutCancel(ctx), p))
	}

	if err := g.stuck.waitUntilHeld(ctx, started); err != nil {
		return nil, errors.Join(err, release())
	}
	return release, nil
}

// questions measures all reads alternately. Stuck pods may be listed or not.
func (g *grown) questions(ctx context.Context, when string, stuck int) error {
	c := g.recording()
	n := len(g.pods)
	listed := func(got int, err error) error {
		if got > n && got <= n+stuck {
			got = n
		}
		return wantCount(got, n, err)
	}

	for i := range asked {
		p := g.pods[i%n]
		for _, q := range []struct {
			name string
			long bool
			put  func(ctx context.Context) error
		}{
			{"Status", false, func(ctx context.Context) error {
				_, err := c.runtime.Status(ctx, &runtimeapi.StatusRequest{})
				return err
			}},
			{"ListPodSandbox", false, func(ctx context.Context) error {
				r, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
				return listed(len(r.GetItems()), err)
			}},
			{"ListContainers", false, func(ctx context.Context) error {
				r, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
				return listed(len(r.GetContainers()), err)
			}},
			{"PodSandboxStatus", false, func(ctx context.Context) error {
				_, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
				return err
			}},
			{"ContainerStatus", false, func(ctx context.Context) error {
				_, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.container})
				return err
			}},
			{"ListContainerStats", true, func(ctx context.Context) error {
				r, err := c.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
				return listed(len(r.GetStats()), err)
			}},
			{"ListPodSandboxStats", true, func(ctx context.Context) error {
				r, err := c.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
				return listed(len(r.GetStats()), err)
			}},
			{metrics, true, func(ctx context.Context) error {
				return listed(countMetrics(ctx, c.runtime))
			}},
		} {
			if g.t.name != ours && (q.name == metrics || q.long && i >= askedLong && n > networked) {
				continue
			}
			if err := c.timed(ctx, q.name+when, q.put); err != nil {
				return err
			}
		}
	}

	return nil
}

// countMetrics receives the metrics of all pods and returns of how many.
func countMetrics(ctx context.Context, runtime runtimeapi.RuntimeServiceClient) (pods int, err error) {
	batches, err := runtime.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	if err != nil {
		return 0, err
	}

	for {
		r, err := batches.Recv()
		if errors.Is(err, io.EOF) {
			return pods, nil
		}
		if err != nil {
			return pods, err
		}
		pods += len(r.GetPodSandboxMetrics())
	}
}

func wantCount(got, want int, err error) error {
	if err == nil && got != want {
		err = fmt.Errorf("listed %d, want %d", got, want)
	}
	return err
}
