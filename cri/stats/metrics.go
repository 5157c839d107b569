package stats

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/network/netns"
	"crisp/runtime/cgroup"
)

// sample is the input of the metrics of one container or pod. What could not be
// read is nil or zero, and has no metrics.
type sample struct {
	// labels are the values of baseLabels.
	labels  []string
	now     time.Time
	started time.Time
	stats   *cgroup.Stats
	// devices are the names of stats.IO.Devices.
	devices []string
	network []netns.InterfaceStats

	// The rest is for containers only.
	processes *int
	open      counts
	openFiles *uint64 // the soft limit on them
	resources *runtimeapi.LinuxContainerResources
	layer     *usage
	files     *fileSystem
}

// Descriptors lists the metrics that PodMetrics can return, by name.
func (c *Collector) Descriptors() []*runtimeapi.MetricDescriptor {
	list := make([]*runtimeapi.MetricDescriptor, 0, len(c.metrics))
	for _, m := range c.metrics {
		list = append(list, &runtimeapi.MetricDescriptor{
			Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels(), m.labels),
		})
	}
	return list
}

// PodMetrics returns the metrics of all ready pods.
func (c *Collector) PodMetrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	return c.podMetrics(ctx, c.readyPods(), time.Now().Add(firstWalk))
}

// metricsBatch is how many pods' metrics [Collector.StreamPodMetrics] has in
// memory twice: those being sent, and those being read.
const metricsBatch = 50

// StreamPodMetrics calls send with the metrics of all ready pods, some at a
// time, while it reads the next ones; without any, once with none. It returns the
// first error.
func (c *Collector) StreamPodMetrics(ctx context.Context, send func([]*runtimeapi.PodSandboxMetrics) error) error {
	type batch struct {
		list []*runtimeapi.PodSandboxMetrics
		err  error
	}

	ctx, cancel := context.WithCancel(ctx)
	batches := make(chan batch)
	var reader sync.WaitGroup
	defer func() { cancel(); reader.Wait() }()
	reader.Go(func() {
		defer close(batches)
		pods, deadline := c.readyPods(), time.Now().Add(firstWalk)
		for more := true; more; more = len(pods) > 0 {
			n := min(metricsBatch, len(pods))
			list, err := c.podMetrics(ctx, pods[:n], deadline)
			select {
			case batches <- batch{list, err}:
			case <-ctx.Done():
				return
			}
			pods = pods[n:]
		}
	})

	for b := range batches {
		if b.err != nil {
			return b.err
		}
		if err := send(b.list); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("read statistics: %w", err)
	}
	return nil
}

func (c *Collector) readyPods() []*Pod {
	var list []*Pod
	for _, p := range c.source.Pods() {
		if p.Ready {
			list = append(list, &p)
		}
	}
	return list
}

func (c *Collector) podMetrics(ctx context.Context, pods []*Pod, deadline time.Time) ([]*runtimeapi.PodSandboxMetrics, error) {
	return gather(ctx, pods, func(p *Pod) *runtimeapi.PodSandboxMetrics {
		out := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.Attributes.GetId(), Metrics: c.render(c.podSample(p))}
		for i := range p.Containers {
			if ctr := &p.Containers[i]; ctr.Running && ctr.Group != nil {
				out.ContainerMetrics = append(out.ContainerMetrics, &runtimeapi.ContainerMetrics{
					ContainerId: ctr.Attributes.GetId(), Metrics: c.render(c.containerSample(ctx, p, ctr, deadline)),
				})
			}
		}

		return out
	})
}

func (c *Collector) podSample(p *Pod) *sample {
	s := &sample{now: time.Now(), started: p.StartedAt}
	path := ""
	if s.stats = podGroup(p); s.stats != nil {
		path = p.Group.Relative()
		s.devices = c.deviceNames(s.stats)
	}
	pod := p.Attributes.GetMetadata()
	s.labels = []string{path, p.Attributes.GetId(), "", pod.GetName(), pod.GetNamespace(), ""}
	if p.Network != nil {
		s.network, _ = p.Network()
	}
	return s
}

func (c *Collector) containerSample(ctx context.Context, p *Pod, ctr *Container, deadline time.Time) *sample {
	pod := p.Attributes.GetMetadata()
	s := &sample{
		labels:  []string{ctr.Group.Relative(), ctr.Attributes.GetId(), ctr.Image, pod.GetName(), pod.GetNamespace(), ctr.Attributes.GetMetadata().GetName()},
		started: ctr.StartedAt, resources: ctr.Resources,
	}

	if s.resources == nil {
		s.resources = &runtimeapi.LinuxContainerResources{}
	}
	if u, ok := c.layers.usage(ctx, ctr.Attributes.GetId(), ctr.Layer, deadline); ok {
		s.layer = &u
	}

	if fs, ok := c.devices.fileSystem(ctr.Layer); ok {
		s.files = &fs
	}
	s.now = time.Now()

	if stats, err := ctr.Group.Stats(); err == nil {
		s.stats, s.devices = stats, c.deviceNames(stats)
	}
	if pids, err := ctr.Group.Pids(); err == nil {
		n := len(pids)
		s.processes = &n
		s.open = countOpen(pids)
	}

	if limit, ok := maxOpenFiles(ctr.Pid); ok {
		s.openFiles = &limit
	}
	return s
}

func (c *Collector) deviceNames(s *cgroup.Stats) []string {
	names := make([]string, len(s.IO.Devices))
	for i, d := range s.IO.Devices {
		names[i] = c.devices.name(d.Major, d.Minor)
	}
	return names
}

// room is memory for metrics, made for many at once.
type room struct {
	metric runtimeapi.Metric
	value  runtimeapi.UInt64Value
}

// render returns the metrics of a sample, with the time at which it was taken.
func (c *Collector) render(s *sample) []*runtimeapi.Metric {
	const together = 32
	var rooms []room
	at := s.now.UnixNano()
	list := make([]*runtimeapi.Metric, 0, len(c.metrics))
	for _, m := range c.metrics {
		m.values(s, func(v uint64, labels ...string) {
			values := s.labels
			if len(labels) > 0 {
				values = slices.Concat(values, labels)
			}

			if len(rooms) == 0 {
				rooms = make([]room, together)
			}
			r := &rooms[0]
			rooms = rooms[1:]
			r.value.Value = v
			r.metric.Name, r.metric.Timestamp, r.metric.MetricType = m.name, at, m.kind
			r.metric.LabelValues, r.metric.Value = values, &r.value
			list = append(list, &r.metric)
		})
	}
	return list
}
