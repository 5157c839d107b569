package cgroup

import "time"

// Stats are a group's statistics. Times are in nanoseconds, sizes in bytes. A
// limit of 0 is no limit.
type Stats struct {
	// Time is when the files were read.
	Time   time.Time
	CPU    CPUStats
	Memory MemoryStats
	Pids   PidsStats
	IO     IOStats
	// Hugetlb has an entry for each huge page size that can be limited.
	Hugetlb []HugetlbStats
}

// CPUStats are the CPU statistics.
type CPUStats struct {
	Usage, User, System uint64
	// Periods are the enforcement periods that have passed, ThrottledPeriods
	// those in which the quota was exhausted, ThrottledTime the time throttled.
	Periods, ThrottledPeriods, ThrottledTime uint64
	// Pressure is nil where the kernel does not measure it.
	Pressure *Pressure
}

// MemoryStats are the memory statistics.
type MemoryStats struct {
	Usage, MaxUsage, Limit uint64
	// WorkingSet is the usage without the inactive page cache, which can be
	// reclaimed under pressure.
	WorkingSet uint64
	// RSS is anonymous memory.
	RSS, Cache, MappedFile, Kernel uint64
	// ActiveFile is recently used page cache, InactiveFile the rest.
	ActiveFile, InactiveFile uint64
	// SwapAccounted: the swap statistics are valid.
	SwapAccounted bool
	// Swap is the swap usage; SwapLimit bounds it, not the sum with memory.
	// SwapUnlimited distinguishes no limit from a limit of 0.
	Swap, SwapLimit uint64
	SwapUnlimited   bool
	// Faults and MajorFaults are those of the group and the groups below it,
	// OwnFaults and OwnMajorFaults those of the group alone, where the kernel
	// distinguishes them.
	Faults, MajorFaults, OwnFaults, OwnMajorFaults uint64
	// LimitHits is how often an allocation hit the limit.
	LimitHits, OOMKills uint64
	// HighHits is how often allocations were throttled by memory.high, in version 2.
	HighHits uint64
	Pressure *Pressure
}

// PidsStats count tasks, that is threads.
type PidsStats struct{ Current, Limit uint64 }

// IOStats are the statistics of block devices.
type IOStats struct {
	Devices  []DeviceIO
	Pressure *Pressure
}

// DeviceIO is the I/O of one block device.
type DeviceIO struct {
	Major, Minor          uint32
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
}

// HugetlbStats are the statistics of huge pages of one size.
type HugetlbStats struct {
	// PageSize is as in "2MB".
	PageSize        string
	Usage, MaxUsage uint64
}

// Pressure is how long tasks waited for a resource: some of them, or all.
type Pressure struct{ Some, Full Stall }

// Stall is one line of a pressure file: the time in nanoseconds, and averages
// in percent over 10, 60 and 300 seconds.
type Stall struct {
	Total                uint64
	Avg10, Avg60, Avg300 float64
}

// Stats reads the group's statistics.
func (g *Group) Stats() (*Stats, error) {
	if g.node.v2 {
		return g.stats(g.usageV2, g.detailsV2)
	}
	return g.stats(g.usageV1, g.detailsV1)
}

// Usage reads the statistics that are needed often, from a third of the files:
// CPU time, memory and swap with their limits, page faults, and pressure.
func (g *Group) Usage() (*Stats, error) {
	if g.node.v2 {
		return g.stats(g.usageV2)
	}
	return g.stats(g.usageV1)
}

func (g *Group) stats(parts ...func(*reader, *Stats) error) (*Stats, error) {
	r := reader{many: true}
	defer r.close()
	s := &Stats{Time: time.Now()}
	for _, read := range parts {
		if err := read(&r, s); err != nil {
			return nil, g.fail("read statistics of", err)
		}
	}
	return s, nil
}

// setWorkingSet subtracts the inactive page cache from the usage. The two are
// read at different times, so the difference may be below 0.
func (m *MemoryStats) setWorkingSet() {
	if m.Usage > m.InactiveFile {
		m.WorkingSet = m.Usage - m.InactiveFile
	}
}
