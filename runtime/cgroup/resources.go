package cgroup

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The range of cpu.shares.
const (
	minShares = 2
	maxShares = 262144
)

// CPUSharesToWeight converts version 1's cpu.shares to version 2's cpu.weight
// by the quadratic formula that runc (1.3.2) and crun (1.23) use: the defaults
// 1024 and 100 are the same share. 0 stays "not set".
func CPUSharesToWeight(shares uint64) uint64 {
	return cgroups.ConvertCPUSharesToCgroupV2Value(shares)
}

// convert turns OCI resources into the library's.
func (n *Node) convert(r *specs.LinuxResources) (*cgroups.Resources, error) {
	out := &cgroups.Resources{}
	if r == nil {
		r = &specs.LinuxResources{}
	}

	convertCPU(out, r.CPU)
	if err := n.convertMemory(out, r.Memory); err != nil {
		return nil, err
	}

	if r.Pids != nil && r.Pids.Limit != nil {
		limit := *r.Pids.Limit
		out.PidsLimit = &limit
	}
	if r.BlockIO != nil {
		convertBlockIO(out, r.BlockIO)
	}

	if err := n.convertHugepages(out, r.HugepageLimits); err != nil {
		return nil, err
	}
	if err := n.convertUnified(out, r.Unified); err != nil {
		return nil, err
	}

	rules, err := convertDevices(r.Devices)
	if err != nil {
		return nil, err
	}
	out.Devices = rules
	return out, nil
}

func convertCPU(out *cgroups.Resources, c *specs.LinuxCPU) {
	if c == nil {
		return
	}
	if c.Shares != nil && *c.Shares != 0 {
		// The kernel clamps too, which the library would call an error.
		out.CpuShares = min(max(*c.Shares, minShares), maxShares)
		out.CpuWeight = CPUSharesToWeight(out.CpuShares)
	}
	if c.Quota != nil {
		out.CpuQuota = *c.Quota
	}
	if c.Period != nil {
		out.CpuPeriod = *c.Period
	}

	out.CpuBurst = c.Burst
	if c.RealtimeRuntime != nil {
		out.CpuRtRuntime = *c.RealtimeRuntime
	}
	if c.RealtimePeriod != nil {
		out.CpuRtPeriod = *c.RealtimePeriod
	}

	out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	out.CPUIdle = c.Idle
}

func (n *Node) convertMemory(out *cgroups.Resources, m *specs.LinuxMemory) error {
	if m == nil {
		return nil
	}
	if m.Limit != nil {
		out.Memory = *m.Limit
	}
	if m.Reservation != nil {
		out.MemoryReservation = *m.Reservation
	}
	if m.Swap != nil {
		out.MemorySwap = *m.Swap
	}

	if out.Memory > 0 && out.MemorySwap == 0 {
		out.MemorySwap = out.Memory // a limit without a swap limit means no swap
	}
	if out.MemorySwap > 0 && out.Memory > 0 && out.MemorySwap < out.Memory {
		return fmt.Errorf("memory and swap limit %d is below memory limit %d: %w", out.MemorySwap, out.Memory, ErrResources)
	}

	if !n.swap {
		out.MemorySwap = 0
	}
	out.MemorySwappiness = m.Swappiness
	out.OomKillDisable = m.DisableOOMKiller != nil && *m.DisableOOMKiller
	out.MemoryCheckBeforeUpdate = m.CheckBeforeUpdate != nil && *m.CheckBeforeUpdate
	return nil
}

func convertBlockIO(out *cgroups.Resources, b *specs.LinuxBlockIO) {
	if b.Weight != nil {
		out.BlkioWeight = *b.Weight
	}
	if b.LeafWeight != nil {
		out.BlkioLeafWeight = *b.LeafWeight
	}

	for _, d := range b.WeightDevice {
		var weight, leaf uint16
		if d.Weight != nil {
			weight = *d.Weight
		}
		if d.LeafWeight != nil {
			leaf = *d.LeafWeight
		}
		out.BlkioWeightDevice = append(out.BlkioWeightDevice, cgroups.NewWeightDevice(d.Major, d.Minor, weight, leaf))
	}

	throttles := func(in []specs.LinuxThrottleDevice) (list []*cgroups.ThrottleDevice) {
		for _, d := range in {
			list = append(list, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
		}
		return list
	}

	out.BlkioThrottleReadBpsDevice = throttles(b.ThrottleReadBpsDevice)
	out.BlkioThrottleWriteBpsDevice = throttles(b.ThrottleWriteBpsDevice)
	out.BlkioThrottleReadIOPSDevice = throttles(b.ThrottleReadIOPSDevice)
	out.BlkioThrottleWriteIOPSDevice = throttles(b.ThrottleWriteIOPSDevice)
}

// convertHugepages drops zero limits that the machine cannot set, since kubelet
// sends a zero for every page size, and all limits if there is no controller.
func (n *Node) convertHugepages(out *cgroups.Resources, limits []specs.LinuxHugepageLimit) error {
	if len(n.pageSizes) == 0 {
		return nil
	}
	for _, l := range limits {
		if !slices.Contains(n.pageSizes, l.Pagesize) {
			if l.Limit == 0 {
				continue
			}
			return fmt.Errorf("limit huge pages of %q, supported sizes are %s: %w", l.Pagesize, strings.Join(n.pageSizes, " "), ErrUnsupported)
		}

		i := slices.IndexFunc(out.HugetlbLimit, func(h *cgroups.HugepageLimit) bool { return h.Pagesize == l.Pagesize })
		if i >= 0 {
			out.HugetlbLimit[i].Limit = l.Limit
			continue
		}
		out.HugetlbLimit = append(out.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: l.Pagesize, Limit: l.Limit})
	}

	return nil
}

func (n *Node) convertUnified(out *cgroups.Resources, unified map[string]string) error {
	if len(unified) == 0 {
		return nil
	}
	if !n.v2 {
		return fmt.Errorf("set unified resources: cgroup version 1: %w", ErrUnsupported)
	}

	out.Unified = make(map[string]string, len(unified))
	for key, value := range unified {
		controller, parameter, ok := strings.Cut(key, ".")
		if !ok || controller == "" || parameter == "" || strings.ContainsAny(key, "/\x00") || strings.Contains(key, "..") {
			return fmt.Errorf("unified resource %q: want CONTROLLER.PARAMETER: %w", key, ErrResources)
		}
		if controller == "cgroup" {
			// cgroup.procs, cgroup.kill and the like are actions, not limits.
			switch parameter {
			case "max.depth", "max.descendants", "pressure":
			default:
				return fmt.Errorf("unified resource %q: not a limit: %w", key, ErrResources)
			}
		}
		out.Unified[key] = value
	}

	return nil
}

func convertDevices(in []specs.LinuxDeviceCgroup) ([]*devices.Rule, error) {
	rules := make([]*devices.Rule, 0, len(in)+1)
	if len(in) == 0 || !isWildcard(in[0]) {
		// Deny by default.
		rules = append(rules, &devices.Rule{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "rwm"})
	}

	for _, d := range in {
		rule := &devices.Rule{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Allow: d.Allow}
		switch d.Type {
		case "", "a":
		case "b":
			rule.Type = devices.BlockDevice
		case "c", "u":
			rule.Type = devices.CharDevice
		default:
			return nil, fmt.Errorf("device rule of type %q: %w", d.Type, ErrResources)
		}

		if d.Major != nil {
			rule.Major = *d.Major
		}
		if d.Minor != nil {
			rule.Minor = *d.Minor
		}
		if strings.Trim(d.Access, "rwm") != "" {
			return nil, fmt.Errorf("device rule with access %q: %w", d.Access, ErrResources)
		}
		if d.Access == "" {
			d.Access = "rwm"
		}

		rule.Permissions = devices.Permissions(d.Access).Union("") // in the kernel's order
		rules = append(rules, rule)
	}

	return rules, nil
}

// isWildcard reports whether a rule applies to all devices.
func isWildcard(d specs.LinuxDeviceCgroup) bool { return d.Type == "" || d.Type == "a" }
