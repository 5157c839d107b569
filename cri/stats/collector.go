package stats

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Options configure a collector; zero values mean the defaults.
type Options struct {
	// Mountpoint is the file system of writable layers, as ImageFsInfo
	// reports it.
	Mountpoint string
	// LayerPeriod is the minimum time between two walks of a layer, 10
	// seconds by default. Layers that take long are walked less often.
	LayerPeriod time.Duration
	// RateWindow is the minimum time between the two readings from which a CPU
	// rate is computed, 1 second by default.
	RateWindow time.Duration
}

// Collector serves the stats and metrics calls. It is safe for concurrent use.
type Collector struct {
	source     Source
	mountpoint string
	rates      rates
	layers     layers
	devices    devices
	metrics    []metric
}

// New returns a collector for the pods of a source.
func New(source Source, o Options) *Collector {
	if o.LayerPeriod == 0 {
		o.LayerPeriod = 10 * time.Second
	}
	if o.RateWindow == 0 {
		o.RateWindow = time.Second
	}
	c := &Collector{source: source, mountpoint: o.Mountpoint, metrics: metricTable()}
	c.rates.window = o.RateWindow
	c.layers.init(o.LayerPeriod)
	return c
}

// Run updates the sizes of writable layers until ctx ends.
func (c *Collector) Run(ctx context.Context) {
	c.layers.run(ctx, func() map[string]string {
		dirs := make(map[string]string)
		pods := make(map[string]bool)
		for _, p := range c.source.Pods() {
			pods[p.Attributes.GetId()] = true
			for _, ctr := range p.Containers {
				dirs[ctr.Attributes.GetId()] = ctr.Layer
			}
		}

		c.rates.keep(func(id string) bool {
			_, ok := dirs[id]
			return ok || pods[id]
		})
		return dirs
	})
}

// Container returns the stats of one container.
func (c *Collector) Container(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	for _, p := range c.source.Pods() {
		for i := range p.Containers {
			if p.Containers[i].Attributes.GetId() == id {
				return c.container(ctx, &p.Containers[i], time.Now().Add(firstWalk)), nil
			}
		}
	}
	return nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
}

// Containers returns the stats of the running containers that match the filter.
func (c *Collector) Containers(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	var list []*Container
	for _, p := range c.source.Pods() {
		if !strings.HasPrefix(p.Attributes.GetId(), filter.GetPodSandboxId()) {
			continue
		}
		for i := range p.Containers {
			a := p.Containers[i].Attributes
			if p.Containers[i].Running && p.Containers[i].Group != nil && strings.HasPrefix(a.GetId(), filter.GetId()) && selects(filter.GetLabelSelector(), a.GetLabels()) {
				list = append(list, &p.Containers[i])
			}
		}
	}

	deadline := time.Now().Add(firstWalk)
	return gather(ctx, list, func(ctr *Container) *runtimeapi.ContainerStats {
		s := c.container(ctx, ctr, deadline)
		if s.Cpu == nil {
			return nil // it was just removed
		}
		return s
	})
}

// PodSandbox returns the stats of one pod.
func (c *Collector) PodSandbox(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	for _, p := range c.source.Pods() {
		if p.Attributes.GetId() == id {
			return c.pod(ctx, &p, time.Now().Add(firstWalk)), nil
		}
	}
	return nil, fmt.Errorf("pod %s: %w", id, ErrNotFound)
}

// PodSandboxes returns the stats of the ready pods that match the filter.
func (c *Collector) PodSandboxes(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	var list []*Pod
	for _, p := range c.source.Pods() {
		a := p.Attributes
		if p.Ready && strings.HasPrefix(a.GetId(), filter.GetId()) && selects(filter.GetLabelSelector(), a.GetLabels()) {
			list = append(list, &p)
		}
	}
	deadline := time.Now().Add(firstWalk)
	return gather(ctx, list, func(p *Pod) *runtimeapi.PodSandboxStats { return c.pod(ctx, p, deadline) })
}

// selects reports whether labels match the selector.
func selects(selector, labels map[string]string) bool {
	for k, want := range maps.All(selector) {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return true
}

// gather calls read for each item on as many goroutines as there are CPUs, and
// returns the results that are not nil in the order of the items.
func gather[T any, R any](ctx context.Context, items []*T, read func(*T) *R) ([]*R, error) {
	var (
		results = make([]*R, len(items))
		next    atomic.Int64
		wg      sync.WaitGroup
	)

	for range min(len(items), runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(items) {
					return
				}
				results[i] = read(items[i])
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read statistics: %w", err)
	}

	list := results[:0]
	for _, r := range results {
		if r != nil {
			list = append(list, r)
		}
	}

	return list, nil
}
