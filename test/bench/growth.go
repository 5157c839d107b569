package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// starters is how many pods are started at the same time to get to many.
const starters = 8

// sizes are the numbers of pods at which the growth is measured.
var sizes = [...]int{0, 1, 10, 100}

// growth measures what a runtime needs with more and more pods: memory, the
// time of questions, the time of a restart.
func (b *bench) growth(ctx context.Context, t *target, round int) (err error) {
	c := b.client(t, func(string, time.Duration) {})
	var pods []*pod
	defer func() {
		ctx := context.WithoutCancel(ctx)
		err = errors.Join(err, together(starters, len(pods), func(i int) error {
			if pods[i] == nil {
				return nil
			}
			return c.remove(ctx, pods[i])
		}))
	}()
	for _, size := range sizes {
		names, from := b.names(size-len(pods)), len(pods)
		pods = append(pods, make([]*pod, len(names))...)
		err := together(starters, len(names), func(i int) (err error) {
			if pods[from+i], err = c.start(ctx, names[i]); err == nil {
				err = c.settle(ctx, pods[from+i])
			}
			return err
		})
		if err == nil {
			err = b.burden(ctx, t, round, pods)
		}
		if err != nil {
			return fmt.Errorf("%d pods: %w", size, err)
		}
	}
	return nil
}

// burden measures with pods running.
func (b *bench) burden(ctx context.Context, t *target, round int, pods []*pod) error {
	if len(pods) == 0 { // from a fresh start on
		if err := b.restart(ctx, t, round, pods); err != nil {
			return err
		}
	}
	if err := b.weigh(t, round, len(pods)); err != nil {
		return err
	}
	if len(pods) > 1 {
		if err := b.questions(ctx, t, round, pods); err != nil {
			return err
		}
	}
	if len(pods) == sizes[len(sizes)-1] {
		return b.restart(ctx, t, round, pods)
	}
	return nil
}

// weigh measures the memory of the runtime's processes.
func (b *bench) weigh(t *target, round, pods int) error {
	pss, err := t.memory()
	if err != nil {
		return err
	}
	sum := 0
	for _, name := range slices.Sorted(maps.Keys(pss)) {
		sum += pss[name]
		b.samples.add(Sample{"growth", t.name, round, pods, "PSS " + name, float64(pss[name]), "KiB"})
	}
	if sum > 0 {
		b.samples.add(Sample{"growth", t.name, round, pods, "PSS", float64(sum), "KiB"})
	}
	return nil
}

// questions measures the calls that change nothing.
func (b *bench) questions(ctx context.Context, t *target, round int, pods []*pod) error {
	c := b.client(t, b.recorder("growth", t.name, round, len(pods)))
	for i := range 30 {
		p := pods[i%len(pods)]
		err := errors.Join(
			c.timed(ctx, "ListPodSandbox", func(ctx context.Context) error {
				r, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
				return wantCount(len(r.GetItems()), len(pods), err)
			}),
			c.timed(ctx, "ListContainers", func(ctx context.Context) error {
				r, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
				return wantCount(len(r.GetContainers()), len(pods), err)
			}),
			c.timed(ctx, "PodSandboxStatus", func(ctx context.Context) error {
				_, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
				return err
			}),
			c.timed(ctx, "ContainerStatus", func(ctx context.Context) error {
				_, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.container})
				return err
			}),
			c.timed(ctx, "ListContainerStats", func(ctx context.Context) error {
				r, err := c.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
				return wantCount(len(r.GetStats()), len(pods), err)
			}),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

func wantCount(got, want int, err error) error {
	if err == nil && got != want {
		err = fmt.Errorf("listed %d, want %d", got, want)
	}
	return err
}

// restart measures how long a daemon that was stopped takes until it lists
// its pods.
func (b *bench) restart(ctx context.Context, t *target, round int, pods []*pod) error {
	if t.daemon == nil {
		return nil
	}
	if err := t.daemon.Stop(); err != nil {
		return err
	}
	c := b.client(t, b.recorder("growth", t.name, round, len(pods)))
	return c.timed(ctx, "restart", func(ctx context.Context) error {
		if err := t.daemon.Start(ctx); err != nil {
			return err
		}
		r, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
			Filter: &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}},
		})
		return wantCount(len(r.GetItems()), len(pods), err)
	})
}
