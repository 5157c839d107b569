package stats

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/network/netns"
	"crisp/runtime/cgroup"
)

// defaultInterface is the name of a pod's first interface in CNI.
const defaultInterface = "eth0"

// maxInterfaceName is room for a name with every byte escaped, so that
// different interfaces have different names.
const maxInterfaceName = 64

// container reads one container. Without a group there are only its
// attributes and its layer.
func (c *Collector) container(ctx context.Context, ctr *Container, deadline time.Time) *runtimeapi.ContainerStats {
	out := &runtimeapi.ContainerStats{Attributes: ctr.Attributes}
	if u, ok := c.layers.usage(ctx, ctr.Attributes.GetId(), ctr.Layer, deadline); ok {
		out.WritableLayer = &runtimeapi.FilesystemUsage{
			Timestamp:  u.at.UnixNano(),
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: c.mountpoint},
			UsedBytes:  value(u.bytes),
			InodesUsed: value(u.inodes),
		}
	}

	if ctr.Group == nil {
		return out
	}
	s, err := ctr.Group.Usage()
	if err != nil {
		return out
	}

	out.Cpu = c.cpu(ctr.Attributes.GetId(), s)
	out.Memory = memory(s)
	out.Swap = swap(s)
	out.Io = io(s)
	return out
}

// pod reads a pod and its containers.
func (c *Collector) pod(ctx context.Context, p *Pod, deadline time.Time) *runtimeapi.PodSandboxStats {
	linux := &runtimeapi.LinuxPodSandboxStats{}
	out := &runtimeapi.PodSandboxStats{Attributes: p.Attributes, Linux: linux}
	if !p.Ready {
		return out
	}

	for i := range p.Containers {
		if ctr := &p.Containers[i]; ctr.Running && ctr.Group != nil {
			if s := c.container(ctx, ctr, deadline); s.Cpu != nil {
				linux.Containers = append(linux.Containers, s)
			}
		}
	}

	now := time.Now()
	if s := podGroup(p); s != nil {
		linux.Cpu = c.cpu(p.Attributes.GetId(), s)
		linux.Memory = memory(s)
		linux.Io = io(s)
	} else {
		c.addUp(p.Attributes.GetId(), now, linux)
	}

	linux.Process = &runtimeapi.ProcessUsage{Timestamp: now.UnixNano(), ProcessCount: value(uint64(processes(p)))}
	if p.Network != nil {
		if list, err := p.Network(); err == nil {
			linux.Network = network(now, list)
		}
	}

	return out
}

func podGroup(p *Pod) *cgroup.Stats {
	if p.Group == nil {
		return nil
	}
	s, err := p.Group.Usage()
	if err != nil {
		return nil
	}
	return s
}

// addUp computes a pod's stats from its containers'.
func (c *Collector) addUp(id string, now time.Time, linux *runtimeapi.LinuxPodSandboxStats) {
	var usage uint64
	mem := &runtimeapi.MemoryUsage{
		Timestamp: now.UnixNano(), WorkingSetBytes: value(0), UsageBytes: value(0),
		RssBytes: value(0), PageFaults: value(0), MajorPageFaults: value(0),
	}

	for _, s := range linux.Containers {
		usage += s.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		m := s.GetMemory()
		mem.WorkingSetBytes.Value += m.GetWorkingSetBytes().GetValue()
		mem.UsageBytes.Value += m.GetUsageBytes().GetValue()
		mem.RssBytes.Value += m.GetRssBytes().GetValue()
		mem.PageFaults.Value += m.GetPageFaults().GetValue()
		mem.MajorPageFaults.Value += m.GetMajorPageFaults().GetValue()
	}

	linux.Cpu = c.cpu(id, &cgroup.Stats{Time: now, CPU: cgroup.CPUStats{Usage: usage}})
	linux.Memory = mem
}

// processes counts a pod's processes. Threads, which the pids controller
// counts, are not processes.
func processes(p *Pod) int {
	if p.Group != nil {
		if pids, err := p.Group.Pids(); err == nil {
			return len(pids)
		}
	}

	n := 0
	for _, ctr := range p.Containers {
		if ctr.Group != nil {
			if pids, err := ctr.Group.Pids(); err == nil {
				n += len(pids)
			}
		}
	}

	return n
}

func (c *Collector) cpu(id string, s *cgroup.Stats) *runtimeapi.CpuUsage {
	usage, cores := c.rates.sample(id, s.Time, s.CPU.Usage)
	return &runtimeapi.CpuUsage{
		Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: value(usage), UsageNanoCores: cores, Psi: psi(s.CPU.Pressure),
	}
}

func memory(s *cgroup.Stats) *runtimeapi.MemoryUsage {
	m := &s.Memory
	out := &runtimeapi.MemoryUsage{
		Timestamp:       s.Time.UnixNano(),
		WorkingSetBytes: value(m.WorkingSet),
		UsageBytes:      value(m.Usage),
		RssBytes:        value(m.RSS),
		PageFaults:      value(m.Faults),
		MajorPageFaults: value(m.MajorFaults),
		Psi:             psi(m.Pressure),
	}

	if m.Limit > 0 {
		out.AvailableBytes = value(m.Limit - min(m.WorkingSet, m.Limit))
	}
	return out
}

func swap(s *cgroup.Stats) *runtimeapi.SwapUsage {
	m := &s.Memory
	if !m.SwapAccounted {
		return nil
	}
	out := &runtimeapi.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: value(m.Swap)}
	if !m.SwapUnlimited {
		out.SwapAvailableBytes = value(m.SwapLimit - min(m.Swap, m.SwapLimit))
	}
	return out
}

func io(s *cgroup.Stats) *runtimeapi.IoUsage {
	if s.IO.Pressure == nil {
		return nil // the CRI has no other I/O stats
	}
	return &runtimeapi.IoUsage{Timestamp: s.Time.UnixNano(), Psi: psi(s.IO.Pressure)}
}

func psi(p *cgroup.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	data := func(s cgroup.Stall) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: s.Total, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Full: data(p.Full), Some: data(p.Some)}
}

// network omits loopback and puts the default interface first.
func network(at time.Time, list []netns.InterfaceStats) *runtimeapi.NetworkUsage {
	out := &runtimeapi.NetworkUsage{Timestamp: at.UnixNano()}
	var all []*runtimeapi.NetworkInterfaceUsage
	for _, i := range list {
		if i.Name.Is("lo") {
			continue
		}
		u := &runtimeapi.NetworkInterfaceUsage{
			Name:    i.Name.Name(maxInterfaceName),
			RxBytes: value(i.Rx.Bytes), RxErrors: value(i.Rx.Errors),
			TxBytes: value(i.Tx.Bytes), TxErrors: value(i.Tx.Errors),
		}

		if i.Name.Is(defaultInterface) {
			out.DefaultInterface = u
			continue
		}
		all = append(all, u)
	}

	if out.DefaultInterface == nil && len(all) > 0 {
		out.DefaultInterface, all = all[0], all[1:]
	}
	out.Interfaces = all
	return out
}

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
