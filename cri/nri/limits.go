package nri

import (
	"maps"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/pod"
)

// fromCRI translates limits of the CRI, nil to nil. Fields that are zero are not
// set.
func fromCRI(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}

	out := &api.LinuxResources{
		Memory:  &api.LinuxMemory{},
		Cpu:     &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()},
		Unified: maps.Clone(r.GetUnified()),
	}
	if v := r.GetMemoryLimitInBytes(); v != 0 {
		out.Memory.Limit = api.Int64(v)
	}
	if v := r.GetMemorySwapLimitInBytes(); v != 0 {
		out.Memory.Swap = api.Int64(v)
	}
	if v := r.GetCpuShares(); v != 0 {
		out.Cpu.Shares = api.UInt64(uint64(v))
	}
	if v := r.GetCpuQuota(); v != 0 {
		out.Cpu.Quota = api.Int64(v)
	}
	if v := r.GetCpuPeriod(); v != 0 {
		out.Cpu.Period = api.UInt64(uint64(v))
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}

// limits translates limits of a plugin to those of the CRI and the others.
func limits(r *api.LinuxResources) pod.Limits {
	if r == nil {
		return pod.Limits{}
	}

	cri := &runtimeapi.LinuxContainerResources{
		CpuPeriod: int64(r.GetCpu().GetPeriod().GetValue()), CpuQuota: r.GetCpu().GetQuota().GetValue(),
		CpuShares:  int64(r.GetCpu().GetShares().GetValue()),
		CpusetCpus: r.GetCpu().GetCpus(), CpusetMems: r.GetCpu().GetMems(),
		MemoryLimitInBytes: r.GetMemory().GetLimit().GetValue(), MemorySwapLimitInBytes: r.GetMemory().GetSwap().GetValue(),
		Unified: maps.Clone(r.GetUnified()),
	}
	for _, h := range r.GetHugepageLimits() {
		cri.HugepageLimits = append(cri.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return pod.Limits{Resources: cri, Other: others(r)}
}

// others are the limits that the CRI has no fields for, nil without any.
func others(r *api.LinuxResources) *specs.LinuxResources {
	out := &specs.LinuxResources{}

	if m := r.GetMemory(); m != nil {
		memory := &specs.LinuxMemory{
			Reservation: m.GetReservation().Get(), Swappiness: m.GetSwappiness().Get(), DisableOOMKiller: m.GetDisableOomKiller().Get(),
		}
		if *memory != (specs.LinuxMemory{}) {
			out.Memory = memory
		}
	}
	if c := r.GetCpu(); c.GetRealtimeRuntime() != nil || c.GetRealtimePeriod() != nil {
		out.CPU = &specs.LinuxCPU{RealtimeRuntime: c.GetRealtimeRuntime().Get(), RealtimePeriod: c.GetRealtimePeriod().Get()}
	}
	if p := r.GetPids(); p != nil {
		limit := p.GetLimit()
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}

	if out.Memory == nil && out.CPU == nil && out.Pids == nil {
		return nil
	}
	return out
}

func orEmpty(r *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if r == nil {
		return &runtimeapi.LinuxContainerResources{}
	}
	return r
}

// updatesOf translates changes of containers' limits.
func updatesOf(list []*api.ContainerUpdate) []pod.Update {
	var out []pod.Update
	for _, u := range list {
		r := u.GetLinux().GetResources()
		out = append(out, pod.Update{
			Container: u.GetContainerId(), Limits: limits(r), Refused: supportedUpdate(r), IgnoreFailure: u.GetIgnoreFailure(),
		})
	}
	return out
}

// supportedUpdate refuses limits that would have no effect on a container that exists.
func supportedUpdate(r *api.LinuxResources) error {
	if err := supportedLimits(r); err != nil {
		return err
	}
	return refuse([]refusal{{len(r.GetDevices()) > 0, "rules for devices, which are a container's for its life"}})
}
