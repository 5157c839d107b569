//go:build node

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"crisp/test/testkit/lab"
)

// query is what a dashboard of kube-prometheus, or one of its recording rules,
// selects from kubelet's /metrics/cadvisor for a pod.
type query struct {
	metric string
	// with are labels that the dashboard requires to have a value.
	with []string
	// device is for metrics per disk or network device.
	device bool
	// positive means that the test's pod makes the value greater than 0.
	positive bool
	// perPod means that it is the pod's, not a container's.
	perPod bool
}

// queries are those of the boards "Compute Resources" and "Networking" and of
// the rules of kubernetes-mixin.
func queries() []query {
	ofContainer, ofPod := []string{"container", "image"}, []string(nil)
	all := []query{
		{metric: "container_cpu_usage_seconds_total", with: ofContainer, positive: true},
		{metric: "container_cpu_cfs_periods_total", with: []string{"container"}, positive: true},
		{metric: "container_cpu_cfs_throttled_periods_total", with: []string{"container"}, positive: true},
		{metric: "container_memory_working_set_bytes", with: ofContainer, positive: true},
		{metric: "container_memory_rss", with: ofContainer, positive: true},
		{metric: "container_memory_cache", with: ofContainer, positive: true},
		{metric: "container_memory_swap", with: ofContainer},
		{metric: "container_spec_memory_limit_bytes", with: []string{"container"}, positive: true},
	}

	for _, direction := range []string{"receive", "transmit"} {
		for _, what := range []string{"bytes", "packets"} {
			all = append(all, query{metric: "container_network_" + direction + "_" + what + "_total", with: ofPod, device: true, positive: true, perPod: true})
		}
		all = append(all, query{metric: "container_network_" + direction + "_packets_dropped_total", with: ofPod, device: true, perPod: true})
	}

	for _, direction := range []string{"reads", "writes"} {
		all = append(all,
			query{metric: "container_fs_" + direction + "_total", with: []string{"container"}, device: true, positive: direction == "writes"},
			query{metric: "container_fs_" + direction + "_bytes_total", with: []string{"container"}, device: true, positive: direction == "writes"})
	}

	return all
}

// sample is a line of a metrics page.
type sample struct {
	labels map[string]string
	value  float64
}

var label = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)

// samples reads a metrics page, by the names of metrics.
func samples(page string) (map[string][]sample, error) {
	all := map[string][]sample{}
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}

		name, rest, ok := strings.Cut(line, "{")
		end := strings.LastIndex(rest, "}")
		if !ok || end < 0 {
			continue // of the machine
		}

		s := sample{labels: map[string]string{}}
		for _, m := range label.FindAllStringSubmatch(rest[:end], -1) {
			s.labels[m[1]] = m[2]
		}

		value, err := strconv.ParseFloat(strings.Fields(rest[end+1:])[0], 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		s.value = value
		all[name] = append(all[name], s)
	}

	return all, nil
}

// busyPod writes to a disk, is throttled and uses the network.
const busyPod = `
apiVersion: v1
kind: Pod
metadata: {name: busy}
spec:
	terminationGracePeriodSeconds: 1
	volumes: [{name: memory, emptyDir: {medium: Memory}}]
	containers:
	- name: main
		image: BUSYBOX
		command: [sh, -c, "dd if=/dev/zero of=/memory/big bs=1M count=100; dd if=/dev/zero of=/root/big bs=1M count=10 conv=fsync; while :; do nslookup kubernetes.default >/dev/null 2>&1; n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done; done"]
		resources: {limits: {cpu: 100m, memory: 200Mi}}
		volumeMounts: [{name: memory, mountPath: /memory}]
`

// dashboards returns an error for queries without data of the pod named busy.
func (s *space) dashboards() error {
	page := s.cluster("get", "--raw", "/api/v1/nodes/"+s.node.Name+"/proxy/metrics/cadvisor")
	all, err := samples(page)
	if err != nil {
		return err
	}

	var missing []string
	for _, q := range queries() {
		// Since Linux 6.10 cgroup version 1 counts disk I/O only with a limit
		// or BFQ: without, there are no stats.
		if strings.HasPrefix(q.metric, "container_fs_") && !countsDisks() {
			s.Logf("%s is not asked for: the kernel counts no disk by cgroup", q.metric)
			continue
		}
		if why := s.answer(q, all[q.metric]); why != "" {
			missing = append(missing, q.metric+": "+why)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("queries without data:\n%s\nin:\n%s", strings.Join(missing, "\n"), page)
	}

	return nil
}

// countsDisks reports whether the kernel has any disk stats per cgroup.
func countsDisks() bool {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return true
	}
	for _, file := range []string{"blkio.throttle.io_serviced_recursive", "blkio.bfq.io_serviced_recursive"} {
		if text, err := os.ReadFile("/sys/fs/cgroup/blkio/" + file); err == nil && strings.Contains(string(text), "Write") {
			return true
		}
	}
	return false
}

// answer is why a query has no data among the samples of its metric.
func (s *space) answer(q query, list []sample) string {
	found, most := 0, 0.0
	for _, m := range list {
		ok := m.labels["namespace"] == s.name && m.labels["pod"] == "busy"
		for _, name := range q.with {
			ok = ok && m.labels[name] != ""
		}

		if q.device {
			ok = ok && m.labels["device"]+m.labels["interface"] != ""
		}
		if ok {
			found++
			most = max(most, m.value)
		}
	}

	switch {
	case found == 0:
		return fmt.Sprintf("none of %d samples is of the pod", len(list))
	case q.positive && most == 0:
		return "0"
	case found > 1 && !q.device && q.metric != "container_memory_swap":
		return fmt.Sprintf("%d samples would be added up", found)
	}

	return ""
}

// TestCAdvisor has kubelet use its cAdvisor, as without the feature gate, and
// crisp serve that: the metrics are those of pods, and the summary has their
// networks.
func TestCAdvisor(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "containerd.sock")
	w := newWorldOn(t, lab.Options{Config: fmt.Sprintf("cadvisor_socket = %q\n", socket), Routed: true}, []string{"--containerd=" + socket}, nil)
	s := w.space(t)
	s.apply(busyPod)
	s.waitReady("busy")

	id := strings.TrimPrefix(s.get("pod/busy", "{.status.containerStatuses[0].containerID}"), "crisp://")
	s.eventually("data for each query", s.dashboards)
	s.eventually("stats within 5 % of the cgroup's", func() error { return s.compareUsage(id) })

	// A later daemon and kubelet know existing pods.
	s.node.Lab.Kill()
	if err := s.node.Lab.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	w.restartKubelet(t, nil)
	s.eventually("data for each query after restarts", s.dashboards)
}
