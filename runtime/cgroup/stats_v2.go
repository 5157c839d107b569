package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"

	"golang.org/x/sys/unix"
)

func (g *Group) usageV2(r *reader, s *Stats) error {
	dir := g.dirs[0]
	// cpu.stat exists in every group, so its absence means that the group is gone.
	err := cpuStatsV2(r, dir, &s.CPU)
	if err != nil {
		return err
	}

	if err := g.memoryUsageV2(r, dir, &s.Memory); err != nil {
		return err
	}
	for _, p := range []struct {
		name string
		to   **Pressure
	}{
		{"cpu.pressure", &s.CPU.Pressure},
		{"memory.pressure", &s.Memory.Pressure},
		{"io.pressure", &s.IO.Pressure},
	} {
		if *p.to, err = pressure(r, dir, p.name); err != nil {
			return err
		}
	}

	return nil
}

func (g *Group) detailsV2(r *reader, s *Stats) error {
	dir := g.dirs[0]
	if err := memoryDetailsV2(r, dir, &s.Memory); err != nil {
		return err
	}

	var err error
	if s.Pids.Current, err = r.optional(dir, "pids.current", 0); err != nil {
		return err
	}
	if s.Pids.Limit, err = r.optional(dir, "pids.max", 0); err != nil {
		return err
	}
	if err := ioStatsV2(r, dir, &s.IO); err != nil {
		return err
	}

	for _, size := range g.node.pageSizes {
		usage, err := r.optional(dir, "hugetlb."+size+".current", 0)
		if err != nil {
			return err
		}
		// Version 2 does not record the maximum usage.
		s.Hugetlb = append(s.Hugetlb, HugetlbStats{PageSize: size, Usage: usage, MaxUsage: usage})
	}

	return nil
}

func cpuStatsV2(r *reader, dir string, c *CPUStats) error {
	return r.table(dir, "cpu.stat", func(key string, v uint64) {
		switch key {
		case "usage_usec":
			c.Usage = v * 1000
		case "user_usec":
			c.User = v * 1000
		case "system_usec":
			c.System = v * 1000
		case "nr_periods":
			c.Periods = v
		case "nr_throttled":
			c.ThrottledPeriods = v
		case "throttled_usec":
			c.ThrottledTime = v * 1000
		}
	})
}

func (g *Group) memoryUsageV2(r *reader, dir string, m *MemoryStats) error {
	err := r.table(dir, "memory.stat", func(key string, v uint64) {
		switch key {
		case "anon":
			m.RSS = v
		case "file":
			m.Cache = v
		case "kernel":
			m.Kernel = v
		case "file_mapped":
			m.MappedFile = v
		case "inactive_file":
			m.InactiveFile = v
		case "active_file":
			m.ActiveFile = v
		case "pgfault":
			m.Faults, m.OwnFaults = v, v
		case "pgmajfault":
			m.MajorFaults, m.OwnMajorFaults = v, v
		}
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no memory controller
	}
	if err != nil {
		return err
	}

	if m.Usage, err = r.optional(dir, "memory.current", 0); err != nil {
		return err
	}
	if m.Limit, err = r.optional(dir, "memory.max", 0); err != nil {
		return err
	}

	m.setWorkingSet()
	if m.Swap, err = r.number(dir, "memory.swap.current", 0); err == nil {
		m.SwapAccounted = true
		if m.SwapLimit, err = r.number(dir, "memory.swap.max", math.MaxUint64); err != nil {
			return err
		}
		if m.SwapUnlimited = m.SwapLimit == math.MaxUint64; m.SwapUnlimited {
			m.SwapLimit = 0
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	return nil
}

func memoryDetailsV2(r *reader, dir string, m *MemoryStats) error {
	var err error
	if m.MaxUsage, err = r.optional(dir, "memory.peak", 0); err != nil { // Linux 5.19
		return err
	}
	return ignoreMissing(r.table(dir, "memory.events", func(key string, v uint64) {
		switch key {
		case "high":
			m.HighHits = v
		case "max":
			m.LimitHits = v
		case "oom_kill":
			m.OOMKills = v
		}
	}))
}

// ioStatsV2 reads lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4".
func ioStatsV2(r *reader, dir string, s *IOStats) error {
	data, err := r.read(dir, "io.stat")
	if err != nil {
		return ignoreMissing(err)
	}

	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}

		d := s.device(fields[0])
		if d == nil {
			continue
		}

		for _, f := range fields[1:] {
			key, value, _ := bytes.Cut(f, []byte{'='})
			v, err := strconv.ParseUint(string(value), 10, 64)
			if err != nil {
				continue
			}

			switch string(key) {
			case "rbytes":
				d.ReadBytes = v
			case "wbytes":
				d.WriteBytes = v
			case "rios":
				d.Reads = v
			case "wios":
				d.Writes = v
			}
		}
	}

	return nil
}

// pressure reads a pressure file; where pressure is not measured the file is
// missing or unreadable.
func pressure(r *reader, dir, name string) (*Pressure, error) {
	data, err := r.read(dir, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}

	p := &Pressure{}
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}

		switch string(fields[0]) {
		case "some":
			err = p.Some.parse(fields[1:])
		case "full":
			err = p.Full.parse(fields[1:])
		}
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", name, err)
		}
	}

	return p, nil
}

func (s *Stall) parse(fields [][]byte) (err error) {
	for _, f := range fields {
		key, value, _ := bytes.Cut(f, []byte{'='})
		switch string(key) {
		case "avg10":
			s.Avg10, err = strconv.ParseFloat(string(value), 64)
		case "avg60":
			s.Avg60, err = strconv.ParseFloat(string(value), 64)
		case "avg300":
			s.Avg300, err = strconv.ParseFloat(string(value), 64)
		case "total":
			s.Total, err = strconv.ParseUint(string(value), 10, 64)
			s.Total *= 1000 // the kernel counts microseconds
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
