package stats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/network/netns"
	"crisp/runtime/cgroup"
	"crisp/runtime/untrusted"
	"crisp/test/testkit"
)

type pods []Pod

func (p pods) Pods() []Pod { return p }

// group is a fake control group with its own stats.
type group struct {
	path  string
	stats *cgroup.Stats
	pids  []int
	err   error
}

func (g *group) Relative() string { return g.path }

func (g *group) Stats() (*cgroup.Stats, error) {
	if g.err != nil {
		return nil, g.err
	}
	s := *g.stats
	return &s, nil
}

func (g *group) Usage() (*cgroup.Stats, error) { return g.Stats() }

func (g *group) Pids() ([]int, error) { return g.pids, g.err }

var testTime = time.Unix(1700000000, 5)

// fullStats has a different value in every field.
func fullStats() *cgroup.Stats {
	p := func(n uint64) *cgroup.Pressure {
		return &cgroup.Pressure{Some: cgroup.Stall{Total: n * 1e9, Avg10: 1, Avg60: 2, Avg300: 3}, Full: cgroup.Stall{Total: (n + 1) * 1e9, Avg10: 4}}
	}
	return &cgroup.Stats{
		Time: testTime,
		CPU:  cgroup.CPUStats{Usage: 7_600_000_000, User: 4_400_000_000, System: 3_500_000_000, Periods: 11, ThrottledPeriods: 12, ThrottledTime: 13e9, Pressure: p(20)},
		Memory: cgroup.MemoryStats{
			Usage: 1000, MaxUsage: 1100, Limit: 2000, WorkingSet: 800, RSS: 500, Cache: 450, MappedFile: 60, Kernel: 70,
			SwapAccounted: true, Swap: 80, SwapLimit: 100, Faults: 31, MajorFaults: 32, OwnFaults: 33, OwnMajorFaults: 34,
			LimitHits: 35, OOMKills: 36, Pressure: p(40),
		},
		Pids:    cgroup.PidsStats{Current: 5, Limit: 99},
		IO:      cgroup.IOStats{Devices: []cgroup.DeviceIO{{Major: 4000, Minor: 1, ReadBytes: 51, WriteBytes: 52, Reads: 53, Writes: 54}}, Pressure: p(60)},
		Hugetlb: []cgroup.HugetlbStats{{PageSize: "2MB", Usage: 71, MaxUsage: 72}},
	}
}

func interfaces() ([]netns.InterfaceStats, error) {
	return []netns.InterfaceStats{
		{Name: untrusted.Of("lo"), Rx: netns.Traffic{Bytes: 999}},
		{Name: untrusted.Of("net1"), Rx: netns.Traffic{Bytes: 5}},
		{Name: untrusted.Of("eth0"), Rx: netns.Traffic{Bytes: 1, Packets: 2, Errors: 3, Dropped: 4}, Tx: netns.Traffic{Bytes: 6, Packets: 7, Errors: 8, Dropped: 9}},
	}, nil
}

func testPod(t testing.TB, id string) Pod {
	layer := t.TempDir()
	if err := os.WriteFile(filepath.Join(layer, "f"), make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	return Pod{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: "pod-" + id, Metadata: &runtimeapi.PodSandboxMetadata{Name: "web-" + id, Namespace: "shop"}, Labels: map[string]string{"app": id}},
		Ready:      true, StartedAt: testTime, Network: interfaces,
		Group: &group{path: "/kubepods/" + id, stats: fullStats(), pids: []int{os.Getpid(), os.Getppid()}},
		Containers: []Container{{
			Attributes: &runtimeapi.ContainerAttributes{Id: "ctr-" + id, Metadata: &runtimeapi.ContainerMetadata{Name: id}, Labels: map[string]string{"app": id}},
			Image:      "registry/image", Running: true, StartedAt: testTime, Pid: os.Getpid(), Layer: layer,
			Group: &group{path: "/kubepods/" + id + "/ctr", stats: fullStats(), pids: []int{os.Getpid()}},
			Resources: &runtimeapi.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 2000, MemorySwapLimitInBytes: 2100,
				Unified: map[string]string{"memory.min": "300"},
			},
		}},
	}
}

// start runs a collector until the end of the test.
func start(t testing.TB, src Source, o Options) *Collector {
	t.Helper()
	c := New(src, o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return c
}

// Conformance tests and dashboards rely on the names.
func TestDescriptors(t *testing.T) {
	want := strings.Fields(`
		container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
		container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total
		container_cpu_user_seconds_total container_file_descriptors container_fs_inodes_free container_fs_inodes_total
		container_fs_limit_bytes container_fs_reads_bytes_total container_fs_reads_total container_fs_usage_bytes
		container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes
		container_hugetlb_usage_bytes container_last_seen container_memory_cache container_memory_events_high_total container_memory_events_max_total container_memory_failcnt
		container_memory_failures_total container_memory_kernel_usage container_memory_mapped_file
		container_memory_max_usage_bytes container_memory_rss container_memory_swap container_memory_total_active_file_bytes container_memory_total_inactive_file_bytes container_memory_usage_bytes
		container_memory_working_set_bytes container_network_receive_bytes_total container_network_receive_errors_total
		container_network_receive_packets_dropped_total container_network_receive_packets_total
		container_network_transmit_bytes_total container_network_transmit_errors_total
		container_network_transmit_packets_dropped_total container_network_transmit_packets_total
		container_oom_events_total container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total
		container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total
		container_pressure_memory_stalled_seconds_total container_pressure_memory_waiting_seconds_total
		container_processes container_sockets container_spec_cpu_period container_spec_cpu_quota container_spec_cpu_shares
		container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes
		container_spec_memory_swap_limit_bytes container_start_time_seconds container_threads container_threads_max
		container_ulimits_soft`)
	if len(want) != 60 {
		t.Fatalf("the test knows %d names", len(want))
	}

	var got []string
	for _, d := range New(pods{}, Options{}).Descriptors() {
		got = append(got, d.Name)
		if d.Help == "" {
			t.Errorf("%s has no help", d.Name)
		}
		if len(d.LabelKeys) < 6 || !slices.Equal(d.LabelKeys[:6], []string{"id", "name", "image", "pod", "namespace", "container"}) {
			t.Errorf("%s has labels %v", d.Name, d.LabelKeys)
		}
	}

	if !slices.Equal(got, want) {
		t.Errorf("descriptors are\n%v\nwant\n%v", got, want)
	}
}

// Every metric has a value, values fit their descriptors, and no series
// appears twice.
func TestPodMetrics(t *testing.T) {
	c := start(t, pods{testPod(t, "a"), testPod(t, "b")}, Options{})
	list, err := c.PodMetrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	if len(list) != 2 || list[0].PodSandboxId != "pod-a" || len(list[0].ContainerMetrics) != 1 || list[1].ContainerMetrics[0].ContainerId != "ctr-b" {
		t.Fatalf("got %v", list)
	}
	labels := map[string]int{}
	for _, d := range c.Descriptors() {
		labels[d.Name] = len(d.LabelKeys)
	}

	series := map[string]uint64{}
	has := map[string]bool{}
	for _, p := range list {
		for _, m := range slices.Concat(p.Metrics, p.ContainerMetrics[0].Metrics) {
			key := m.Name + strings.Join(m.LabelValues, "|")
			if _, ok := series[key]; ok {
				t.Errorf("%s appears twice", key)
			}

			series[key] = m.GetValue().GetValue()
			has[m.Name] = true
			if time.Since(time.Unix(0, m.Timestamp)).Abs() > time.Minute {
				t.Errorf("%s is of %v", m.Name, time.Unix(0, m.Timestamp))
			}
			if len(m.LabelValues) != labels[m.Name] {
				t.Errorf("%s has %d label values, want %d", m.Name, len(m.LabelValues), labels[m.Name])
			}

			if wantCounter := strings.HasSuffix(m.Name, "_total") && m.Name != "container_fs_inodes_total" || m.Name == "container_memory_failcnt"; (m.MetricType == runtimeapi.MetricType_COUNTER) != wantCounter {
				t.Errorf("%s is a %v", m.Name, m.MetricType)
			}
		}
	}

	for name := range labels {
		if !has[name] {
			t.Errorf("%s has no value", name)
		}
	}

	const ctr = "/kubepods/a/ctr|ctr-a|registry/image|web-a|shop|a"
	for key, want := range map[string]uint64{
		"container_cpu_usage_seconds_total" + ctr + "|total":                                  8,
		"container_cpu_user_seconds_total" + ctr:                                              4,
		"container_cpu_system_seconds_total" + ctr:                                            4,
		"container_cpu_usage_seconds_total/kubepods/a|pod-a||web-a|shop||total":               8,
		"container_memory_failures_total" + ctr + "|pgfault|hierarchy":                        31,
		"container_memory_failures_total" + ctr + "|pgmajfault|container":                     34,
		"container_pressure_cpu_waiting_seconds_total" + ctr:                                  20,
		"container_pressure_io_stalled_seconds_total" + ctr:                                   61,
		"container_network_transmit_packets_dropped_total/kubepods/a|pod-a||web-a|shop||eth0": 9,
		"container_network_receive_bytes_total/kubepods/a|pod-a||web-a|shop||net1":            5,
		"container_blkio_device_usage_total" + ctr + "||4000|1|Write":                         52,
		"container_fs_reads_total" + ctr + "|4000:1":                                          53,
		"container_hugetlb_usage_bytes" + ctr + "|2MB":                                        71,
		"container_spec_memory_reservation_limit_bytes" + ctr:                                 300,
		"container_spec_memory_swap_limit_bytes" + ctr:                                        2100,
		"container_threads_max" + ctr:                                                         99,
		"container_processes" + ctr:                                                           1,
		"container_start_time_seconds" + ctr:                                                  1700000000,
		"container_oom_events_total" + ctr:                                                    36,
		"container_network_receive_packets_dropped_total/kubepods/a|pod-a||web-a|shop||eth0":  4,
		"container_memory_working_set_bytes/kubepods/a|pod-a||web-a|shop|":                    800,
		"container_spec_cpu_quota" + ctr:                                                      20000,
		"container_network_receive_packets_total/kubepods/a|pod-a||web-a|shop||eth0":          2,
		"container_network_transmit_errors_total/kubepods/a|pod-a||web-a|shop||eth0":          8,
	} {
		if got, ok := series[key]; !ok || got != want {
			t.Errorf("%s is %d (there: %v), want %d", key, got, ok, want)
		}
	}

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}

	if got := series["container_ulimits_soft"+ctr+"|max_open_files"]; got != limit.Cur {
		t.Errorf("soft limit on open files is %d, want %d", got, limit.Cur)
	}
	if series["container_file_descriptors"+ctr] < 3 {
		t.Errorf("this process has %d descriptors open", series["container_file_descriptors"+ctr])
	}
}

func TestContainer(t *testing.T) {
	c := start(t, pods{testPod(t, "a")}, Options{Mountpoint: "/var/lib/crisp"})
	got, err := c.Container(t.Context(), "ctr-a")
	if err != nil {
		t.Fatal(err)
	}

	if got.GetAttributes().GetMetadata().GetName() != "a" {
		t.Errorf("attributes are %v", got.Attributes)
	}
	if l := got.WritableLayer; l.GetUsedBytes().GetValue() < 8192 || l.GetInodesUsed().GetValue() != 2 || l.GetFsId().GetMountpoint() != "/var/lib/crisp" || l.GetTimestamp() == 0 {
		t.Errorf("writable layer is %v", l)
	}

	at := testTime.UnixNano()
	pressure := func(n uint64) *runtimeapi.PsiStats {
		return &runtimeapi.PsiStats{Some: &runtimeapi.PsiData{Total: n * 1e9, Avg10: 1, Avg60: 2, Avg300: 3}, Full: &runtimeapi.PsiData{Total: (n + 1) * 1e9, Avg10: 4}}
	}

	for _, c := range []struct{ got, want proto.Message }{
		{got.Cpu, &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: value(7_600_000_000), Psi: pressure(20)}},
		{got.Memory, &runtimeapi.MemoryUsage{Timestamp: at, WorkingSetBytes: value(800), AvailableBytes: value(1200), UsageBytes: value(1000), RssBytes: value(500), PageFaults: value(31), MajorPageFaults: value(32), Psi: pressure(40)}},
		{got.Swap, &runtimeapi.SwapUsage{Timestamp: at, SwapAvailableBytes: value(20), SwapUsageBytes: value(80)}},
		{got.Io, &runtimeapi.IoUsage{Timestamp: at, Psi: pressure(60)}},
	} {
		if !proto.Equal(c.got, c.want) {
			t.Errorf("got  %v\nwant %v", c.got, c.want)
		}
	}

	if _, err := c.Container(t.Context(), "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown container: %v", err)
	}
}

func TestNoLimitNoAvailable(t *testing.T) {
	s := fullStats()
	s.Memory.Limit, s.Memory.SwapLimit, s.Memory.SwapUnlimited = 0, 0, true
	if m := memory(s); m.AvailableBytes != nil {
		t.Errorf("available without a limit: %v", m.AvailableBytes)
	}
	if sw := swap(s); sw.SwapAvailableBytes != nil {
		t.Errorf("available swap without a limit: %v", sw.SwapAvailableBytes)
	}
	s.Memory.SwapUnlimited = false
	if sw := swap(s); sw.SwapAvailableBytes == nil || sw.SwapAvailableBytes.Value != 0 {
		t.Errorf("no swap allowed: available is %v, want 0", sw.SwapAvailableBytes)
	}
}

func TestPodSandbox(t *testing.T) {
	pod := testPod(t, "a")
	c := start(t, pods{pod}, Options{})
	got, err := c.PodSandbox(t.Context(), "pod-a")
	if err != nil {
		t.Fatal(err)
	}

	l := got.Linux
	if got.GetAttributes().GetMetadata().GetName() != "web-a" || len(l.Containers) != 1 || l.Cpu.GetUsageCoreNanoSeconds().GetValue() != 7_600_000_000 ||
		l.Process.GetProcessCount().GetValue() != 2 || l.Process.GetTimestamp() == 0 || l.Io == nil {
		t.Errorf("got %v", got)
	}

	n := l.Network
	if n.GetDefaultInterface().GetName() != "eth0" || n.DefaultInterface.TxErrors.GetValue() != 8 || len(n.Interfaces) != 1 || n.Interfaces[0].Name != "net1" {
		t.Errorf("network is %v", n)
	}
	if _, err := c.PodSandbox(t.Context(), "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown pod: %v", err)
	}
}

// The stats of a pod without a control group of its own are the sum of its
// containers'.
func TestPodSum(t *testing.T) {
	a, b := testPod(t, "a"), testPod(t, "b")
	a.Group, a.Network = nil, nil
	a.Containers = append(a.Containers, b.Containers[0])
	l := start(t, pods{a}, Options{}).pod(t.Context(), &a, time.Now()).Linux
	if l.Cpu.GetUsageCoreNanoSeconds().GetValue() != 2*7_600_000_000 || l.Memory.GetWorkingSetBytes().GetValue() != 1600 || l.Process.GetProcessCount().GetValue() != 2 || l.Network != nil {
		t.Errorf("got %v", l)
	}
}

func TestNotReady(t *testing.T) {
	pod := testPod(t, "a")
	pod.Ready, pod.Group, pod.Network, pod.Containers[0].Group, pod.Containers[0].Running = false, nil, nil, nil, false
	c := start(t, pods{pod}, Options{})
	got, err := c.PodSandbox(t.Context(), "pod-a")
	if err != nil || got.Linux == nil || got.GetAttributes().GetId() != "pod-a" {
		t.Errorf("a stopped pod: %v, %v", got, err)
	}

	ctr, err := c.Container(t.Context(), "ctr-a")
	if err != nil || ctr.GetAttributes().GetId() != "ctr-a" || ctr.Cpu != nil || ctr.WritableLayer == nil {
		t.Errorf("a stopped container: %v, %v", ctr, err)
	}

	if list, err := c.Containers(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("list has the stopped container: %v, %v", list, err)
	}

	// Its group may outlive it for a while.
	outlived := testPod(t, "a")
	outlived.Ready, outlived.Containers[0].Running = false, false
	c = start(t, pods{outlived}, Options{})
	if list, err := c.Containers(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("list has the stopped container: %v, %v", list, err)
	}

	if list, err := c.PodSandboxes(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("list has the stopped pod: %v, %v", list, err)
	}
	if list, err := c.PodMetrics(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("metrics have the stopped pod: %v, %v", list, err)
	}
}

// A container that is removed while it is read is skipped, and does not affect
// others.
func TestGoneMeanwhile(t *testing.T) {
	a, b := testPod(t, "a"), testPod(t, "b")
	a.Containers[0].Group.(*group).err = cgroup.ErrNotFound
	a.Group.(*group).err = cgroup.ErrNotFound
	a.Network = func() ([]netns.InterfaceStats, error) { return nil, os.ErrClosed }

	c := start(t, pods{a, b}, Options{})
	list, err := c.Containers(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Attributes.Id != "ctr-b" {
		t.Errorf("got %v, %v", list, err)
	}

	stats, err := c.PodSandboxes(t.Context(), nil)
	if err != nil || len(stats) != 2 || stats[0].Linux == nil || len(stats[0].Linux.Containers) != 0 {
		t.Errorf("got %v, %v", stats, err)
	}
	if metrics, err := c.PodMetrics(t.Context()); err != nil || len(metrics) != 2 {
		t.Errorf("got %v, %v", metrics, err)
	}
}

func TestFilters(t *testing.T) {
	c := start(t, pods{testPod(t, "a1"), testPod(t, "a2"), testPod(t, "b")}, Options{})
	ctrs := func(f *runtimeapi.ContainerStatsFilter) (ids []string) {
		list, err := c.Containers(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			ids = append(ids, s.Attributes.Id)
		}
		return ids
	}

	for _, tc := range []struct {
		filter *runtimeapi.ContainerStatsFilter
		want   []string
	}{
		{nil, []string{"ctr-a1", "ctr-a2", "ctr-b"}},
		{&runtimeapi.ContainerStatsFilter{Id: "ctr-a2"}, []string{"ctr-a2"}},
		{&runtimeapi.ContainerStatsFilter{Id: "ctr-a"}, []string{"ctr-a1", "ctr-a2"}},
		{&runtimeapi.ContainerStatsFilter{PodSandboxId: "pod-b"}, []string{"ctr-b"}},
		{&runtimeapi.ContainerStatsFilter{PodSandboxId: "pod-b", Id: "ctr-a1"}, nil},
		{&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"app": "b"}}, []string{"ctr-b"}},
		{&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"app": "b", "x": ""}}, nil},
	} {
		if got := ctrs(tc.filter); !slices.Equal(got, tc.want) {
			t.Errorf("filter %v lets %v through, want %v", tc.filter, got, tc.want)
		}
	}

	list, err := c.PodSandboxes(t.Context(), &runtimeapi.PodSandboxStatsFilter{Id: "pod-a", LabelSelector: map[string]string{"app": "a2"}})
	if err != nil || len(list) != 1 || list[0].Attributes.Id != "pod-a2" {
		t.Errorf("got %v, %v", list, err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(pods{testPod(t, "a")}, Options{}).Containers(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRates(t *testing.T) {
	r := rates{window: time.Second}
	at := time.Unix(100, 0)
	for i, c := range []struct {
		after time.Duration
		usage uint64
		want  uint64
		cores *uint64
	}{
		{0, 10e9, 10e9, nil},
		{500 * time.Millisecond, 11e9, 11e9, nil},
		{1500 * time.Millisecond, 12e9, 12e9, ptr(uint64(1e9))}, // since the first
		{100 * time.Millisecond, 13e9, 13e9, ptr(uint64(1e9))},  // too soon for another
		{1900 * time.Millisecond, 12e9, 13e9, ptr(uint64(0))},
		{time.Second, 5e9, 13e9, ptr(uint64(0))}, // fell: reported usage does not
		{time.Second, 6e9, 13e9, ptr(uint64(1e9))},
	} {
		at = at.Add(c.after)
		usage, cores := r.sample("x", at, c.usage)
		if usage != c.want || (cores == nil) != (c.cores == nil) || cores != nil && cores.Value != *c.cores {
			t.Errorf("reading %d: usage %d and rate %v, want %d and %v", i, usage, cores, c.want, c.cores)
		}
	}

	r.keep(func(string) bool { return false })
	if _, cores := r.sample("x", at, 1); cores != nil {
		t.Errorf("a forgotten container has a rate: %v", cores)
	}
}

func ptr[T any](v T) *T { return &v }

func TestDiskUsage(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	write("a/b/c", 1<<20)
	write("a/d", 4096)
	if err := errors.Join(
		os.Link(filepath.Join(dir, "a/d"), filepath.Join(dir, "again")),
		os.Symlink("/usr", filepath.Join(dir, "out")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
	); err != nil {
		t.Fatal(err)
	}

	got, err := diskUsage(t.Context(), dir)
	if err != nil || got.Partial {
		t.Fatal(got, err)
	}

	bytes, inodes := got.Bytes, got.Inodes
	// The directory, a, a/b, a/b/c, a/d once, out, fifo.
	if inodes != 7 {
		t.Errorf("%d inodes, want 7", inodes)
	}

	if bytes < 1<<20+4096 || bytes > 1<<20+4096+7*4096 {
		t.Errorf("%d bytes", bytes)
	}

	// Nesting cannot hide files from eviction.
	const depth = 500
	deep := filepath.Join(dir, strings.Repeat("x/", depth))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}

	write(strings.Repeat("x/", depth)+"hidden", 4<<20)
	deeper, err := diskUsage(t.Context(), dir)
	if err != nil || deeper.Partial || deeper.Inodes != 7+depth+1 || deeper.Bytes < bytes+4<<20 {
		t.Errorf("%+v, %v", deeper, err)
	}

	if err := os.Symlink("/usr", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := diskUsage(t.Context(), filepath.Join(dir, "link")); err == nil {
		t.Error("walked through a link in place of the layer")
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := diskUsage(ctx, dir); !errors.Is(err, context.Canceled) || !got.Partial || got.Inodes == 0 {
		t.Errorf("cancelled walk: %+v, %v", got, err)
	}
}

// Layers are walked again, dropped with their container, and waited for only
// briefly.
func TestLayers(t *testing.T) {
	pod := testPod(t, "a")
	layer := pod.Containers[0].Layer
	c := start(t, pods{pod}, Options{LayerPeriod: 10 * time.Millisecond})
	size := func() uint64 {
		s, err := c.Container(t.Context(), "ctr-a")
		if err != nil {
			t.Fatal(err)
		}
		return s.GetWritableLayer().GetUsedBytes().GetValue()
	}

	// The first call waits only briefly: a busy machine may need more than one
	// attempt.
	for try := 0; size() == 0; try++ {
		if try == 20 {
			t.Fatal("the first response has no size")
		}
		c = start(t, pods{pod}, Options{LayerPeriod: 10 * time.Millisecond})
	}

	if err := os.WriteFile(filepath.Join(layer, "more"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); size() < 1<<20; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the new file was never counted")
		}
	}

	idle := New(pods{pod}, Options{})
	began := time.Now()
	if s, err := idle.Container(t.Context(), "ctr-a"); err != nil || s.WritableLayer != nil {
		t.Errorf("without a walk: %v, %v", s, err)
	}

	if waited := time.Since(began); waited > 100*firstWalk {
		t.Errorf("waited %v", waited)
	}
	if due := idle.layers.dueOf(map[string]string{}, time.Now()); len(due) != 0 || len(idle.layers.known) != 0 {
		t.Errorf("layers without a container are kept: %v %v", due, idle.layers.known)
	}
}

func TestDeviceNames(t *testing.T) {
	entries, err := os.ReadDir("/sys/dev/block")
	if err != nil || len(entries) == 0 {
		testkit.Skip(t, "block devices", "/sys/dev/block is empty")
	}

	var major, minor uint32
	if _, err := fmt.Sscanf(entries[0].Name(), "%d:%d", &major, &minor); err != nil {
		t.Fatal(err)
	}

	var d devices
	if got := d.name(major, minor); !strings.HasPrefix(got, "/dev/") || len(got) < 6 {
		t.Errorf("device %s is called %q", entries[0].Name(), got)
	}

	if got := d.name(4000, 4000); got != "" {
		t.Errorf("a device that is not there is called %q", got)
	}
	if len(d.names) != 2 {
		t.Errorf("names remembered: %v", d.names)
	}
}

// TestStreamPodMetrics has the same pods as the list, in its order, and ends with
// the first error.
func TestStreamPodMetrics(t *testing.T) {
	testkit.Leaks(t)
	var list pods
	for i := range 2*metricsBatch + 7 {
		list = append(list, testPod(t, fmt.Sprint(i)))
	}
	c := start(t, list, Options{})
	want, err := c.PodMetrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	var got []string
	err = c.StreamPodMetrics(t.Context(), func(batch []*runtimeapi.PodSandboxMetrics) error {
		for _, p := range batch {
			got = append(got, p.PodSandboxId)
			if n := len(want[0].Metrics); len(p.Metrics) != n {
				t.Errorf("pod %s has %d metrics, want %d", p.PodSandboxId, len(p.Metrics), n)
			}
		}
		return nil
	})
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d pods, want %d, error %v", len(got), len(want), err)
	}
	for i, p := range want {
		if p.PodSandboxId != got[i] {
			t.Errorf("pod %d is %s, want %s", i, got[i], p.PodSandboxId)
		}
	}

	broken := errors.New("connection lost")
	calls := 0
	if err := c.StreamPodMetrics(t.Context(), func([]*runtimeapi.PodSandboxMetrics) error { calls++; return broken }); !errors.Is(err, broken) || calls != 1 {
		t.Errorf("after a lost connection: %d calls, error %v", calls, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	if err := c.StreamPodMetrics(ctx, func([]*runtimeapi.PodSandboxMetrics) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller left: error %v", err)
	}
}

func BenchmarkListPodSandboxStats250(b *testing.B) {
	var list pods
	for i := range 250 {
		list = append(list, testPod(b, fmt.Sprint(i)))
	}
	c := start(b, list, Options{})
	for b.Loop() {
		if _, err := c.PodSandboxes(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkListPodSandboxMetrics250(b *testing.B) {
	var list pods
	for i := range 250 {
		list = append(list, testPod(b, fmt.Sprint(i)))
	}
	c := start(b, list, Options{})
	for b.Loop() {
		if _, err := c.PodMetrics(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
