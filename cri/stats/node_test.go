package stats_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

const image = "docker.io/library/busybox:latest"

// runPod runs a pod of one container that uses CPU time.
func runPod(t *testing.T, l *lab.Lab) (podID, containerID string) {
	t.Helper()
	ctx := t.Context()
	if _, err := l.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		t.Fatal(err)
	}

	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    "/" + l.Name + "/pod1",
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}

	pod, err := l.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatal(err)
	}

	ctr, err := l.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, SandboxConfig: sandbox,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "busy"},
			Image:    &runtimeapi.ImageSpec{Image: image},
			Command:  []string{"sh", "-c", "echo 12345 > /file; while :; do :; done"},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{
					CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 1024, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
				},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces},
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}

	if _, err := l.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: ctr.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return pod.PodSandboxId, ctr.ContainerId
}

// A pod of a daemon has all stats that the machine supports.
func TestRealPod(t *testing.T) {
	testkit.Root(t)
	l := testkit.Daemon(t, lab.Options{})
	podID, containerID := runPod(t, l)
	t.Run("stats", func(t *testing.T) { testStats(t, l.Runtime, podID, containerID) })
	t.Run("metrics", func(t *testing.T) { testMetrics(t, l.Runtime, podID) })
}

func testStats(t *testing.T, r runtimeapi.RuntimeServiceClient, podID, containerID string) {
	read := func() *runtimeapi.ContainerStats {
		t.Helper()
		got, err := r.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: containerID})
		if err != nil {
			t.Fatal(err)
		}
		return got.Stats
	}

	first := read()
	if first.GetAttributes().GetMetadata().GetName() != "busy" || first.GetCpu().GetUsageNanoCores() != nil {
		t.Errorf("first reading: %v", first)
	}
	if first.GetMemory().GetWorkingSetBytes().GetValue() == 0 || first.GetMemory().GetAvailableBytes().GetValue() == 0 {
		t.Errorf("first reading: %v", first)
	}

	waitFor(t, "the file that it writes to be counted", func() bool { return read().GetWritableLayer().GetInodesUsed().GetValue() >= 2 })
	// The quota allows a fifth of a CPU.
	var rate uint64
	waitFor(t, "a rate", func() bool {
		rate = read().GetCpu().GetUsageNanoCores().GetValue()
		return rate > 0
	})

	if rate < 20e6 || rate > 300e6 {
		t.Errorf("rate is %d nanoseconds a second with a quota of 200000000", rate)
	}
	pod, err := r.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: podID})
	if err != nil {
		t.Fatal(err)
	}

	linux := pod.GetStats().GetLinux()
	if len(linux.GetContainers()) != 1 || linux.GetProcess().GetProcessCount().GetValue() < 1 || linux.GetNetwork().GetDefaultInterface().GetName() != "eth0" ||
		linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() < linux.Containers[0].GetCpu().GetUsageCoreNanoSeconds().GetValue() {
		t.Errorf("pod: %v", pod.Stats)
	}

	list, err := r.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{Id: containerID}})
	if err != nil || len(list.Stats) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
}

func testMetrics(t *testing.T, r runtimeapi.RuntimeServiceClient, podID string) {
	descriptors, err := r.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}

	answer, err := r.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}

	labels := map[string]int{}
	for _, p := range answer.PodMetrics {
		if p.PodSandboxId != podID || len(p.ContainerMetrics) != 1 {
			t.Errorf("metrics of pod %s with %d containers", p.PodSandboxId, len(p.ContainerMetrics))
			continue
		}
		for _, m := range append(p.Metrics, p.ContainerMetrics[0].Metrics...) {
			labels[m.Name] = len(m.LabelValues)
		}
	}

	for _, d := range descriptors.Descriptors {
		n, ok := labels[d.Name]
		if !ok && !optional(d.Name) {
			t.Errorf("%s has no value", d.Name)
		}
		if ok && n != len(d.LabelKeys) {
			t.Errorf("%s has %d labels of %d", d.Name, n, len(d.LabelKeys))
		}
	}
}

// optional are the metrics that depend on the machine: on its disks, huge
// pages and whether the kernel measures pressure.
func optional(name string) bool {
	for _, part := range []string{"_blkio_", "_fs_reads_", "_fs_writes_", "_hugetlb_", "_pressure_"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("timed out waiting for %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
