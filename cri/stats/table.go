package stats

import (
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/network/netns"
	"crisp/runtime/cgroup"
)

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// baseLabels are the labels that every metric has: the path of the control
// group, the ID of the container or pod, the image, and the names in
// Kubernetes; a pod as a whole has no image and no container. The names and
// meanings are cAdvisor's, so that dashboards keep working: kubelet exposes
// them unchanged.
func baseLabels() []string { return []string{"id", "name", "image", "pod", "namespace", "container"} }

// emit receives one value with the values of the metric's own labels.
type emit func(v uint64, labels ...string)

// metric is a descriptor and the function that finds its values.
type metric struct {
	name, help string
	kind       runtimeapi.MetricType
	// labels follow baseLabels.
	labels []string
	values func(*sample, emit)
}

// metricTable is every metric, by name: the set that cAdvisor gave kubelet.
func metricTable() []metric {
	table := slices.Concat(cpuMetrics(), memoryMetrics(), diskMetrics(), networkMetrics(), pressureMetrics(), processMetrics(), specMetrics())
	slices.SortFunc(table, func(a, b metric) int { return strings.Compare(a.name, b.name) })
	return table
}

// seconds rounds, since CRI's values are whole numbers. Rounding never makes
// a counter go back.
func seconds(nanoseconds uint64) uint64 { return nanoseconds/1e9 + (nanoseconds%1e9)/5e8 }

// ofGroup returns values from a control group's stats.
func ofGroup(f func(*cgroup.Stats) uint64) func(*sample, emit) {
	return func(s *sample, emit emit) {
		if s.stats != nil {
			emit(f(s.stats))
		}
	}
}

func cpuMetrics() []metric {
	return []metric{
		{"container_cpu_cfs_periods_total", "Number of elapsed enforcement periods.", counter, nil,
			ofGroup(func(s *cgroup.Stats) uint64 { return s.CPU.Periods })},
		{"container_cpu_cfs_throttled_periods_total", "Number of enforcement periods in which the quota was used up.", counter, nil,
			ofGroup(func(s *cgroup.Stats) uint64 { return s.CPU.ThrottledPeriods })},
		{"container_cpu_cfs_throttled_seconds_total", "Time spent throttled, in seconds.", counter, nil,
			ofGroup(func(s *cgroup.Stats) uint64 { return seconds(s.CPU.ThrottledTime) })},
		{"container_cpu_system_seconds_total", "Processor time used in the kernel, in seconds.", counter, nil,
			ofGroup(func(s *cgroup.Stats) uint64 { return seconds(s.CPU.System) })},
		{"container_cpu_usage_seconds_total", "Processor time used, in seconds.", counter, []string{"cpu"},
			func(s *sample, emit emit) {
				if s.stats != nil {
					emit(seconds(s.stats.CPU.Usage), "total")
				}
			}},
		{"container_cpu_user_seconds_total", "Processor time used outside the kernel, in seconds.", counter, nil,
			ofGroup(func(s *cgroup.Stats) uint64 { return seconds(s.CPU.User) })},
	}
}

func memoryMetrics() []metric {
	of := func(f func(*cgroup.MemoryStats) uint64) func(*sample, emit) {
		return ofGroup(func(s *cgroup.Stats) uint64 { return f(&s.Memory) })
	}
	hugetlb := func(f func(cgroup.HugetlbStats) uint64) func(*sample, emit) {
		return func(s *sample, emit emit) {
			if s.stats == nil {
				return
			}
			for _, h := range s.stats.Hugetlb {
				emit(f(h), h.PageSize)
			}
		}
	}

	return []metric{
		{"container_hugetlb_max_usage_bytes", "Most memory in huge pages so far, in bytes.", gauge, []string{"pagesize"},
			hugetlb(func(h cgroup.HugetlbStats) uint64 { return h.MaxUsage })},
		{"container_hugetlb_usage_bytes", "Memory in huge pages, in bytes.", gauge, []string{"pagesize"},
			hugetlb(func(h cgroup.HugetlbStats) uint64 { return h.Usage })},
		{"container_memory_cache", "Page cache, in bytes.", gauge, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.Cache })},
		{"container_memory_events_high_total", "Number of times that allocations were slowed down, above memory.high.", counter, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.HighHits })},
		{"container_memory_events_max_total", "Number of times that the memory limit was about to be exceeded.", counter, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.LimitHits })},
		{"container_memory_failcnt", "Number of times that the memory limit was hit.", counter, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.LimitHits })},
		{"container_memory_failures_total", "Number of page faults.", counter, []string{"failure_type", "scope"},
			func(s *sample, emit emit) {
				if s.stats == nil {
					return
				}
				m := &s.stats.Memory
				emit(m.OwnFaults, "pgfault", "container")
				emit(m.Faults, "pgfault", "hierarchy")
				emit(m.OwnMajorFaults, "pgmajfault", "container")
				emit(m.MajorFaults, "pgmajfault", "hierarchy")
			}},
		{"container_memory_kernel_usage", "Kernel memory, in bytes.", gauge, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.Kernel })},
		{"container_memory_mapped_file", "Files mapped into memory, in bytes.", gauge, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.MappedFile })},
		{"container_memory_max_usage_bytes", "Most memory in use so far, in bytes.", gauge, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.MaxUsage })},
		{"container_memory_rss", "Anonymous memory, in bytes.", gauge, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.RSS })},
		{"container_memory_swap", "Memory in swap, in bytes.", gauge, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.Swap })},
		{"container_memory_total_active_file_bytes", "Page cache that was used of late, in bytes.", gauge, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.ActiveFile })},
		{"container_memory_total_inactive_file_bytes", "Page cache that was not used of late, in bytes.", gauge, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.InactiveFile })},
		{"container_memory_usage_bytes", "Memory in use, however long ago it was used, in bytes.", gauge, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.Usage })},
		{"container_memory_working_set_bytes", "Memory in use without inactive page cache, in bytes.", gauge, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.WorkingSet })},
		{"container_oom_events_total", "Number of processes killed because memory ran out.", counter, nil,
			of(func(m *cgroup.MemoryStats) uint64 { return m.OOMKills })},
	}
}

func diskMetrics() []metric {
	device := []string{"device"}
	perDevice := func(f func(cgroup.DeviceIO) uint64) func(*sample, emit) {
		return func(s *sample, emit emit) {
			if s.stats == nil {
				return
			}
			for i, d := range s.stats.IO.Devices {
				emit(f(d), deviceLabel(s.devices[i], d))
			}
		}
	}

	ofFiles := func(f func(*fileSystem) uint64) func(*sample, emit) {
		return func(s *sample, emit emit) {
			if s.files != nil {
				emit(f(s.files), s.files.device)
			}
		}
	}

	return []metric{
		{"container_blkio_device_usage_total", "Bytes transferred to and from a block device.", counter, []string{"device", "major", "minor", "operation"},
			func(s *sample, emit emit) {
				if s.stats == nil {
					return
				}
				for i, d := range s.stats.IO.Devices {
					major, minor := strconv.FormatUint(uint64(d.Major), 10), strconv.FormatUint(uint64(d.Minor), 10)
					emit(d.ReadBytes, s.devices[i], major, minor, "Read")
					emit(d.WriteBytes, s.devices[i], major, minor, "Write")
				}
			}},
		{"container_fs_inodes_free", "Inodes left on the file system of the writable layer.", gauge, device,
			ofFiles(func(f *fileSystem) uint64 { return f.inodesFree })},
		{"container_fs_inodes_total", "Inodes of the file system of the writable layer.", gauge, device,
			ofFiles(func(f *fileSystem) uint64 { return f.inodesTotal })},
		{"container_fs_limit_bytes", "Size of the file system of the writable layer, in bytes.", gauge, device,
			ofFiles(func(f *fileSystem) uint64 { return f.size })},
		{"container_fs_reads_bytes_total", "Bytes read.", counter, device,
			perDevice(func(d cgroup.DeviceIO) uint64 { return d.ReadBytes })},
		{"container_fs_reads_total", "Number of reads completed.", counter, device,
			perDevice(func(d cgroup.DeviceIO) uint64 { return d.Reads })},
		{"container_fs_usage_bytes", "Size of the writable layer, in bytes.", gauge, device,
			func(s *sample, emit emit) {
				if s.layer == nil {
					return
				}
				name := ""
				if s.files != nil {
					name = s.files.device
				}
				emit(s.layer.bytes, name)
			}},
		{"container_fs_writes_bytes_total", "Bytes written.", counter, device,
			perDevice(func(d cgroup.DeviceIO) uint64 { return d.WriteBytes })},
		{"container_fs_writes_total", "Number of writes completed.", counter, device,
			perDevice(func(d cgroup.DeviceIO) uint64 { return d.Writes })},
	}
}

// deviceLabel distinguishes unnamed devices by their numbers: two series with
// the same labels would invalidate the whole response.
func deviceLabel(name string, d cgroup.DeviceIO) string {
	if name == "" {
		return strconv.FormatUint(uint64(d.Major), 10) + ":" + strconv.FormatUint(uint64(d.Minor), 10)
	}
	return name
}

func networkMetrics() []metric {
	of := func(name, help string, f func(*netns.InterfaceStats) uint64) metric {
		return metric{"container_network_" + name, help, counter, []string{"interface"}, func(s *sample, emit emit) {
			for i := range s.network {
				if name := s.network[i].Name; !name.Is("lo") {
					emit(f(&s.network[i]), name.Name(maxInterfaceName))
				}
			}
		}}
	}
	return []metric{
		of("receive_bytes_total", "Bytes received.", func(i *netns.InterfaceStats) uint64 { return i.Rx.Bytes }),
		of("receive_errors_total", "Errors while receiving.", func(i *netns.InterfaceStats) uint64 { return i.Rx.Errors }),
		of("receive_packets_dropped_total", "Packets dropped while receiving.", func(i *netns.InterfaceStats) uint64 { return i.Rx.Dropped }),
		of("receive_packets_total", "Packets received.", func(i *netns.InterfaceStats) uint64 { return i.Rx.Packets }),
		of("transmit_bytes_total", "Bytes sent.", func(i *netns.InterfaceStats) uint64 { return i.Tx.Bytes }),
		of("transmit_errors_total", "Errors while sending.", func(i *netns.InterfaceStats) uint64 { return i.Tx.Errors }),
		of("transmit_packets_dropped_total", "Packets dropped while sending.", func(i *netns.InterfaceStats) uint64 { return i.Tx.Dropped }),
		of("transmit_packets_total", "Packets sent.", func(i *netns.InterfaceStats) uint64 { return i.Tx.Packets }),
	}
}

func pressureMetrics() []metric {
	of := func(name, help string, which func(*cgroup.Stats) *cgroup.Pressure, stall func(*cgroup.Pressure) uint64) metric {
		return metric{"container_pressure_" + name, help, counter, nil, func(s *sample, emit emit) {
			if s.stats == nil {
				return
			}
			if p := which(s.stats); p != nil {
				emit(seconds(stall(p)))
			}
		}}
	}

	cpu := func(s *cgroup.Stats) *cgroup.Pressure { return s.CPU.Pressure }
	memory := func(s *cgroup.Stats) *cgroup.Pressure { return s.Memory.Pressure }
	io := func(s *cgroup.Stats) *cgroup.Pressure { return s.IO.Pressure }
	some := func(p *cgroup.Pressure) uint64 { return p.Some.Total }
	full := func(p *cgroup.Pressure) uint64 { return p.Full.Total }
	return []metric{
		of("cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU, in seconds.", cpu, full),
		of("cpu_waiting_seconds_total", "Time in which some task waited for a CPU, in seconds.", cpu, some),
		of("io_stalled_seconds_total", "Time in which all tasks waited for I/O, in seconds.", io, full),
		of("io_waiting_seconds_total", "Time in which some task waited for I/O, in seconds.", io, some),
		of("memory_stalled_seconds_total", "Time in which all tasks waited for memory, in seconds.", memory, full),
		of("memory_waiting_seconds_total", "Time in which some task waited for memory, in seconds.", memory, some),
	}
}

func processMetrics() []metric {
	ofProcesses := func(f func(*sample) uint64) func(*sample, emit) {
		return func(s *sample, emit emit) {
			if s.processes != nil {
				emit(f(s))
			}
		}
	}
	return []metric{
		{"container_file_descriptors", "Number of open descriptors.", gauge, nil,
			ofProcesses(func(s *sample) uint64 { return s.open.files })},
		{"container_last_seen", "When the container was last seen, in seconds since 1970.", gauge, nil,
			func(s *sample, emit emit) { emit(uint64(s.now.Unix())) }},
		{"container_processes", "Number of processes.", gauge, nil,
			ofProcesses(func(s *sample) uint64 { return uint64(*s.processes) })},
		{"container_sockets", "Number of open sockets.", gauge, nil,
			ofProcesses(func(s *sample) uint64 { return s.open.sockets })},
		{"container_start_time_seconds", "When the container was started, in seconds since 1970.", gauge, nil,
			func(s *sample, emit emit) {
				if !s.started.IsZero() {
					emit(uint64(s.started.Unix()))
				}
			}},
		{"container_threads", "Number of threads.", gauge, nil,
			ofGroup(func(s *cgroup.Stats) uint64 { return s.Pids.Current })},
		{"container_threads_max", "Number of threads allowed, 0 for any number.", gauge, nil,
			ofGroup(func(s *cgroup.Stats) uint64 { return s.Pids.Limit })},
		{"container_ulimits_soft", "Soft resource limit of the first process.", gauge, []string{"ulimit"},
			func(s *sample, emit emit) {
				if s.openFiles != nil {
					emit(*s.openFiles, "max_open_files")
				}
			}},
	}
}

func specMetrics() []metric {
	of := func(f func(*runtimeapi.LinuxContainerResources) uint64) func(*sample, emit) {
		return func(s *sample, emit emit) {
			if s.resources != nil {
				emit(f(s.resources))
			}
		}
	}

	// orElse is the effective value if none was requested.
	orElse := func(asked int64, otherwise uint64) uint64 {
		if asked <= 0 {
			return otherwise
		}
		return uint64(asked)
	}

	return []metric{
		{"container_spec_cpu_period", "Enforcement period of the CPU quota, in microseconds.", gauge, nil,
			of(func(r *runtimeapi.LinuxContainerResources) uint64 { return orElse(r.GetCpuPeriod(), 100000) })},
		{"container_spec_cpu_quota", "Processor time allowed in a period, in microseconds.", gauge, nil,
			func(s *sample, emit emit) {
				if quota := s.resources.GetCpuQuota(); quota > 0 {
					emit(uint64(quota))
				}
			}},
		{"container_spec_cpu_shares", "Processor share relative to other containers.", gauge, nil,
			of(func(r *runtimeapi.LinuxContainerResources) uint64 { return orElse(r.GetCpuShares(), 1024) })},
		{"container_spec_memory_limit_bytes", "Memory limit in bytes, 0 for none.", gauge, nil,
			of(func(r *runtimeapi.LinuxContainerResources) uint64 { return orElse(r.GetMemoryLimitInBytes(), 0) })},
		{"container_spec_memory_reservation_limit_bytes", "Memory that is protected from reclaim, in bytes.", gauge, nil,
			of(func(r *runtimeapi.LinuxContainerResources) uint64 {
				v, err := strconv.ParseUint(strings.TrimSpace(r.GetUnified()["memory.min"]), 10, 64)
				if err != nil {
					return 0
				}
				return v
			})},
		{"container_spec_memory_swap_limit_bytes", "Limit on memory and swap together in bytes, 0 for none.", gauge, nil,
			of(func(r *runtimeapi.LinuxContainerResources) uint64 {
				return orElse(r.GetMemorySwapLimitInBytes(), orElse(r.GetMemoryLimitInBytes(), 0))
			})},
	}
}
