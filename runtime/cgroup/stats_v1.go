package cgroup

import (
	"bytes"
	"strconv"
)

// unlimitedV1 is the smallest value that means "no limit" in version 1's memory
// files: the largest int64, rounded down to whole pages of up to 64 KiB.
const unlimitedV1 = 1<<63 - 1<<16

func (g *Group) usageV1(r *reader, s *Stats) error {
	var err error
	if s.CPU.Usage, err = r.number(g.dir("cpuacct"), "cpuacct.usage", 0); err != nil {
		return err
	}
	return g.memoryUsageV1(r, &s.Memory)
}

func (g *Group) detailsV1(r *reader, s *Stats) error {
	if err := g.cpuDetailsV1(r, &s.CPU); err != nil {
		return err
	}
	if err := g.memoryDetailsV1(r, &s.Memory); err != nil {
		return err
	}

	if dir := g.dir("pids"); dir != "" {
		var err error
		if s.Pids.Current, err = r.optional(dir, "pids.current", 0); err != nil {
			return err
		}
		if s.Pids.Limit, err = r.optional(dir, "pids.max", 0); err != nil {
			return err
		}
	}

	if dir := g.dir("blkio"); dir != "" {
		if err := ioStatsV1(r, dir, &s.IO); err != nil {
			return err
		}
	}

	if dir := g.dir("hugetlb"); dir != "" {
		for _, size := range g.node.pageSizes {
			usage, err := r.optional(dir, "hugetlb."+size+".usage_in_bytes", 0)
			if err != nil {
				return err
			}

			most, err := r.optional(dir, "hugetlb."+size+".max_usage_in_bytes", 0)
			if err != nil {
				return err
			}
			s.Hugetlb = append(s.Hugetlb, HugetlbStats{PageSize: size, Usage: usage, MaxUsage: most})
		}
	}

	return nil
}

func (g *Group) cpuDetailsV1(r *reader, c *CPUStats) error {
	dir := g.dir("cpuacct")
	var err error
	// These two are exact, where cpuacct.stat counts in clock ticks.
	if c.User, err = r.optional(dir, "cpuacct.usage_user", 0); err != nil {
		return err
	}
	if c.System, err = r.optional(dir, "cpuacct.usage_sys", 0); err != nil {
		return err
	}

	return r.table(g.dir("cpu"), "cpu.stat", func(key string, v uint64) {
		switch key {
		case "nr_periods":
			c.Periods = v
		case "nr_throttled":
			c.ThrottledPeriods = v
		case "throttled_time":
			c.ThrottledTime = v
		}
	})
}

func (g *Group) memoryUsageV1(r *reader, m *MemoryStats) error {
	dir := g.dir("memory")
	err := r.table(dir, "memory.stat", func(key string, v uint64) {
		switch key {
		case "pgfault":
			m.OwnFaults = v
		case "pgmajfault":
			m.OwnMajorFaults = v
		case "total_cache":
			m.Cache = v
		case "total_rss":
			m.RSS = v
		case "total_mapped_file":
			m.MappedFile = v
		case "total_inactive_file":
			m.InactiveFile = v
		case "total_active_file":
			m.ActiveFile = v
		case "total_pgfault":
			m.Faults = v
		case "total_pgmajfault":
			m.MajorFaults = v
		}
	})
	if err != nil {
		return err
	}

	if m.Usage, err = r.optional(dir, "memory.usage_in_bytes", 0); err != nil {
		return err
	}
	if m.Limit, err = r.optional(dir, "memory.limit_in_bytes", 0); err != nil {
		return err
	}

	m.setWorkingSet()
	if err := g.swapStatsV1(r, dir, m); err != nil {
		return err
	}

	if m.Limit >= unlimitedV1 {
		m.Limit = 0
	}
	return nil
}

func (g *Group) memoryDetailsV1(r *reader, m *MemoryStats) error {
	var err error
	for _, f := range []struct {
		name string
		to   *uint64
	}{
		{"memory.max_usage_in_bytes", &m.MaxUsage},
		{"memory.failcnt", &m.LimitHits},
		{"memory.kmem.usage_in_bytes", &m.Kernel},
	} {
		if *f.to, err = r.optional(g.dir("memory"), f.name, 0); err != nil {
			return err
		}
	}

	m.OOMKills, err = g.oomKills(r)
	return err
}

// swapStatsV1 subtracts memory from version 1's sums of memory and swap.
func (g *Group) swapStatsV1(r *reader, dir string, m *MemoryStats) error {
	if !g.node.swap {
		return nil
	}
	both, err := r.number(dir, "memory.memsw.usage_in_bytes", 0)
	if err != nil {
		return err
	}

	limit, err := r.number(dir, "memory.memsw.limit_in_bytes", 0)
	if err != nil {
		return err
	}

	m.SwapAccounted = true
	m.Swap = monus(both, m.Usage)
	if m.SwapUnlimited = limit >= unlimitedV1; !m.SwapUnlimited {
		m.SwapLimit = monus(limit, m.Limit)
	}

	return nil
}

// monus is subtraction that stops at 0.
func monus(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

// ioStatsV1 reads the throttling layer's counters, which do not depend on the
// I/O scheduler.
func ioStatsV1(r *reader, dir string, s *IOStats) error {
	for _, f := range []struct {
		name        string
		read, write func(*DeviceIO) *uint64
	}{
		{"blkio.throttle.io_service_bytes_recursive", func(d *DeviceIO) *uint64 { return &d.ReadBytes }, func(d *DeviceIO) *uint64 { return &d.WriteBytes }},
		{"blkio.throttle.io_serviced_recursive", func(d *DeviceIO) *uint64 { return &d.Reads }, func(d *DeviceIO) *uint64 { return &d.Writes }},
	} {
		data, err := r.read(dir, f.name)
		if err != nil {
			return err
		}

		for line := range bytes.Lines(data) {
			// "8:0 Read 4096"; the last line is a total without a device.
			fields := bytes.Fields(line)
			if len(fields) != 3 {
				continue
			}

			var to func(*DeviceIO) *uint64
			switch string(fields[1]) {
			case "Read":
				to = f.read
			case "Write":
				to = f.write
			default:
				continue
			}

			v, err := strconv.ParseUint(string(fields[2]), 10, 64)
			if err != nil {
				continue
			}
			if d := s.device(fields[0]); d != nil {
				*to(d) = v
			}
		}
	}
	return nil
}

// device finds or adds the entry of "major:minor".
func (s *IOStats) device(number []byte) *DeviceIO {
	a, b, ok := bytes.Cut(number, []byte{':'})
	if !ok {
		return nil
	}

	major, err1 := strconv.ParseUint(string(a), 10, 32)
	minor, err2 := strconv.ParseUint(string(b), 10, 32)
	if err1 != nil || err2 != nil {
		return nil
	}

	for i := range s.Devices {
		if d := &s.Devices[i]; d.Major == uint32(major) && d.Minor == uint32(minor) {
			return d
		}
	}

	s.Devices = append(s.Devices, DeviceIO{Major: uint32(major), Minor: uint32(minor)})
	return &s.Devices[len(s.Devices)-1]
}
