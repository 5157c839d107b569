package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

func TestStatistics(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "container", func(t *testing.T) { testContainerStats(t, n) })
	n.run(t, "pod", func(t *testing.T) { testPodStats(t, n) })
	n.run(t, "dead containers", func(t *testing.T) {
		p := n.pod(t)
		alive := p.start(t, named("alive"))
		p.start(t, named("dead"), sh("exit 0")).wait(t)
		p.create(t, named("unborn"))
		stats := call(t, n.Runtime.ListContainerStats, &runtimeapi.ListContainerStatsRequest{}).Stats
		if got := keys(stats, func(s *runtimeapi.ContainerStats) string { return s.Attributes.Id }); got != alive.id {
			t.Errorf("there are statistics of\n%s\nwant\n%s", got, alive.id)
		}
	})

	n.run(t, "pods that share a parent", func(t *testing.T) { testSharedParent(t, n) })
	n.run(t, "metrics", func(t *testing.T) { testMetrics(t, n) })
	n.run(t, "images", func(t *testing.T) { testImageFs(t, n) })
}

func testContainerStats(t *testing.T, n *node) {
	c := n.pod(t).start(t, memory(64<<20), func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"l": "v"} })
	read := func() *runtimeapi.ContainerStats {
		return call(t, n.Runtime.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: c.id}).Stats
	}

	c.sh(t, "head -c 1048576 /dev/urandom > /ballast")
	first := read()
	if a := first.Attributes; a.GetId() != c.id || a.GetMetadata().GetName() != "main" || a.GetLabels()["l"] != "v" {
		t.Errorf("the attributes are %v", a)
	}

	if m := first.Memory; m.GetTimestamp() == 0 || m.GetUsageBytes().GetValue() == 0 || m.GetWorkingSetBytes().GetValue() == 0 || m.GetAvailableBytes().GetValue() == 0 {
		t.Errorf("the memory is %v", m)
	}
	if cgroupV2() && (first.Cpu.Psi == nil || first.Memory.Psi == nil || first.Io.GetPsi() == nil) {
		t.Errorf("pressure is not reported: %v", first)
	}

	if w := first.WritableLayer; w.GetFsId().GetMountpoint() == "" || w.GetTimestamp() == 0 {
		t.Errorf("the writable layer is %v", w)
	}
	eventually(t, "the writable layer is measured", func() bool { return read().WritableLayer.GetUsedBytes().GetValue() >= 1<<20 })
	c.sh(t, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")

	if now := read().Cpu.GetUsageCoreNanoSeconds().GetValue(); now <= first.Cpu.GetUsageCoreNanoSeconds().GetValue() {
		t.Errorf("the CPU time stays at %d", now)
	}
}

func testPodStats(t *testing.T, n *node) {
	n.pull(t, nginx)
	p := n.pod(t)
	c := p.start(t, func(c *runtimeapi.ContainerConfig) { c.Image.Image, c.Command = nginx, nil })
	read := func() *runtimeapi.PodSandboxStats {
		return call(t, n.Runtime.PodSandboxStats, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id}).Stats
	}

	before := read()
	if before.Attributes.GetId() != p.id || before.Attributes.GetMetadata().GetUid() != p.cfg.Metadata.Uid || before.Linux == nil {
		t.Fatalf("the statistics are %v", before)
	}

	eth0 := before.Linux.GetNetwork().GetDefaultInterface()
	if eth0.GetName() != "eth0" {
		t.Errorf("the default interface is %q", eth0.GetName())
	}

	eventually(t, "the server answers", func() bool {
		r, err := http.Get("http://" + p.status(t).Network.Ip + "/")
		if err == nil {
			r.Body.Close()
		}
		return err == nil
	})

	after := read().Linux
	if now := after.Network.DefaultInterface; now.RxBytes.GetValue() <= eth0.RxBytes.GetValue() || now.TxBytes.GetValue() <= eth0.TxBytes.GetValue() {
		t.Errorf("a request made no traffic: %v, then %v", eth0, now)
	}

	if got := after.GetProcess().GetProcessCount().GetValue(); got < 2 {
		t.Errorf("%d processes, want nginx and its worker", got)
	}
	if len(after.Containers) != 1 || after.Containers[0].Attributes.GetId() != c.id {
		t.Errorf("the containers are %v", after.Containers)
	}
}

// testSharedParent has two pods in one cgroup: what either uses is not the other's.
func testSharedParent(t *testing.T, n *node) {
	share := func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = n.CgroupParent() }
	big, small := n.pod(t, share), n.pod(t, share)
	big.start(t, sh("for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait"))
	small.start(t)

	counts := func() map[string]uint64 {
		all := map[string]uint64{}
		for _, s := range call(t, n.Runtime.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{}).Stats {
			all[s.Attributes.Id] = s.Linux.GetProcess().GetProcessCount().GetValue()
		}
		return all
	}
	eventually(t, "the processes run", func() bool { return counts()[big.id] == 9 })
	if got := counts()[small.id]; got != 1 {
		t.Errorf("a pod with one process has %d beside one with 9", got)
	}
}

// testMetrics requires a value for each descriptor that the machine supports,
// with as many labels as the descriptor has.
func testMetrics(t *testing.T, n *node) {
	const all = 60
	p := n.pod(t)
	p.start(t)
	labels := map[string]int{}
	at := map[string]int{} // of the labels that every metric has
	for _, d := range call(t, n.Runtime.ListMetricDescriptors, &runtimeapi.ListMetricDescriptorsRequest{}).Descriptors {
		if d.Help == "" {
			t.Errorf("%s has no help", d.Name)
		}
		labels[d.Name] = len(d.LabelKeys)

		for _, key := range []string{"pod", "namespace", "container", "id", "name", "image"} {
			if at[key] = slices.Index(d.LabelKeys, key); at[key] < 0 {
				t.Fatalf("%s has labels %q, and none is %s", d.Name, d.LabelKeys, key)
			}
		}
	}

	if len(labels) != all {
		t.Errorf("there are %d descriptors, want %d", len(labels), all)
	}
	pods := call(t, n.Runtime.ListPodSandboxMetrics, &runtimeapi.ListPodSandboxMetricsRequest{}).PodMetrics
	if len(pods) != 1 || pods[0].PodSandboxId != p.id || len(pods[0].ContainerMetrics) != 1 {
		t.Fatalf("there are metrics of %d pods", len(pods))
	}

	for _, m := range append(pods[0].Metrics, pods[0].ContainerMetrics[0].Metrics...) {
		if want, ok := labels[m.Name]; !ok || len(m.LabelValues) != want {
			t.Errorf("%v does not fit a descriptor", m)
		}
		if md := p.cfg.Metadata; m.LabelValues[at["pod"]] != md.Name || m.LabelValues[at["namespace"]] != md.Namespace || m.Timestamp == 0 {
			t.Errorf("%v is of no pod, or of no time", m)
		}
	}

	for _, m := range pods[0].ContainerMetrics[0].Metrics {
		if m.LabelValues[at["container"]] != "main" || m.LabelValues[at["image"]] == "" {
			t.Errorf("%v is of no container", m)
		}
	}
}

// testImageFs pulls and removes an image and checks the disk usage.
func testImageFs(t *testing.T, n *node) {
	const ref = "registry.k8s.io/e2e-test-images/nonewprivs:1.3"
	used := func() uint64 {
		fs := call(t, n.Images.ImageFsInfo, &runtimeapi.ImageFsInfoRequest{}).ImageFilesystems
		if len(fs) != 1 || !strings.HasPrefix(fs[0].GetFsId().GetMountpoint(), "/") || fs[0].Timestamp == 0 || fs[0].InodesUsed.GetValue() == 0 {
			t.Fatalf("the file systems are %v", fs)
		}
		return fs[0].UsedBytes.GetValue()
	}

	spec := &runtimeapi.ImageSpec{Image: ref}
	before := used()
	n.pull(t, ref)
	size := call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: spec}).Image.Size
	if grown := used() - before; grown < size {
		t.Errorf("an image of %d bytes takes %d", size, grown)
	}

	call(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: spec})
	eventually(t, fmt.Sprintf("%d bytes are in use again", before), func() bool { return used() == before })
}
