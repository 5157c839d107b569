package pod

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/stats"
	"crisp/network/netns"
)

// StatsSource provides a manager's pods to package stats.
type StatsSource struct {
	Manager *Manager
	// UpperDir is the directory of a container's writable layer.
	UpperDir func(containerID string) string
}

// Pods describes all pods as they are now.
func (s StatsSource) Pods() []stats.Pod {
	records := s.Manager.Sandboxes()
	out := make([]stats.Pod, 0, len(records))
	for _, r := range records {
		p, err := s.Manager.pod(r.ID)
		if err != nil {
			continue // removed meanwhile
		}
		out = append(out, s.pod(p, r))
	}
	withoutShared(out)
	return out
}

// withoutShared takes away the cgroups that several pods have. kubelet gives each pod
// one of its own; a shared one has the sum of their usage, which is no single pod's.
func withoutShared(pods []stats.Pod) {
	users := map[string]int{}
	for _, p := range pods {
		if p.Ready && p.Group != nil {
			users[p.Group.Relative()]++
		}
	}
	for i := range pods {
		if g := pods[i].Group; g != nil && users[g.Relative()] > 1 {
			pods[i].Group = nil
		}
	}
}

func (s StatsSource) pod(p *pod, r *Record) stats.Pod {
	cfg := r.Config.Msg
	out := stats.Pod{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: r.ID, Metadata: cfg.GetMetadata(), Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(),
		},
		Ready: r.Ready(), StartedAt: time.Unix(0, r.CreatedAt),
	}

	if parent := cfg.GetLinux().GetCgroupParent(); parent != "" {
		// A cgroup without a valid name has no stats; its containers have.
		if g, err := s.Manager.Cgroups.Parent(parent); err == nil && g.Exists() {
			out.Group = g
		}
	}

	if path := r.NetNS; path != "" {
		out.Network = func() ([]netns.InterfaceStats, error) { return interfaces(path) }
	}
	for _, c := range r.Containers {
		if c.Listed() {
			out.Containers = append(out.Containers, s.container(p, c))
		}
	}

	return out
}

func interfaces(path string) ([]netns.InterfaceStats, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netns.Interfaces(ns)
}

func (s StatsSource) container(p *pod, c *Container) stats.Container {
	cfg := c.Config.Msg
	out := stats.Container{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.ID, Metadata: cfg.GetMetadata(), Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(),
		},
		Image: c.ImageRef, StartedAt: time.Unix(0, c.StartedAt), Layer: s.UpperDir(c.ID),
		Running: c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING,
	}

	if c.Resources != nil {
		out.Resources = c.Resources.Msg
	}
	if c.Process != nil && out.Running {
		out.Pid = c.Process.Pid
	}

	if g := p.groupOfProcess(c.ID); g != nil {
		out.Group = g
	}
	return out
}
