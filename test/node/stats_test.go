//go:build node

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/prometheus"
	"crisp/test/testkit/prometheus/prometheustest"
)

// metric is the sum of one of kubelet's metrics, over the given label.
func (s *space) metric(name, label string) float64 {
	s.Helper()
	var sum float64
	for line := range strings.Lines(s.cluster("get", "--raw", "/api/v1/nodes/"+s.node.Name+"/proxy/metrics") + s.cluster("get", "--raw", "/api/v1/nodes/"+s.node.Name+"/proxy/metrics/probes")) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || !strings.ContainsAny(rest[:1], "{ ") || !strings.Contains(rest, label) {
			continue
		}

		f := strings.Fields(rest)
		v, err := strconv.ParseFloat(f[len(f)-1], 64)
		if err != nil {
			s.Fatalf("metric %s: %v", line, err)
		}
		sum += v
	}

	return sum
}

// summary is kubelet's stats summary of its pods.
type summary struct {
	Pods []struct {
		PodRef     struct{ Name, Namespace string }
		Containers []struct {
			Name   string
			CPU    struct{ UsageCoreNanoSeconds uint64 }
			Memory struct{ WorkingSetBytes uint64 }
			Rootfs struct{ UsedBytes uint64 }
		}
		CPU     struct{ UsageCoreNanoSeconds uint64 }
		Memory  struct{ WorkingSetBytes uint64 }
		Network struct{ RxBytes, TxBytes uint64 }
	}
}

// statsFromCRI has kubelet get its stats and its events from crisp, and
// compares the stats with the kernel's.
func (w *world) statsFromCRI(t *testing.T) {
	s := w.space(t)
	w.restartKubelet(t, map[string]any{"featureGates": map[string]bool{"PodAndContainerStatsFromCRI": true, "EventedPLEG": true}})
	s.apply(busyPod)
	s.waitReady("busy")
	time.Sleep(15 * time.Second)

	id := strings.TrimPrefix(s.get("pod/busy", "{.status.containerStatuses[0].containerID}"), "crisp://")
	s.eventually("stats within 5 % of the cgroup's", func() error { return s.compareUsage(id) })
	s.eventually("data for each query", s.dashboards)
	t.Run("Prometheus", func(t *testing.T) { s.scraped(t, id) })
	relists := s.metric("kubelet_pleg_relist_duration_seconds_count", "")
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: short}
spec: {restartPolicy: Never, containers: [{name: main, image: BUSYBOX, command: [sleep, "2"]}]}
`)

	s.wait("jsonpath={.status.phase}=Succeeded", "pod/short")
	time.Sleep(10 * time.Second)
	n := s.metric("kubelet_pleg_relist_duration_seconds_count", "") - relists
	t.Logf("%.0f relists while a pod came and went, in some 15 s", n)

	if n > 10 {
		t.Errorf("kubelet listed all pods %.0f times though it has events", n)
	}
	w.restartKubelet(t, nil)
}

func (s *space) compareUsage(id string) error {
	var all summary
	before, err := usage(id)
	if err != nil {
		return err
	}

	if err := json.Unmarshal([]byte(s.cluster("get", "--raw", "/api/v1/nodes/"+s.node.Name+"/proxy/stats/summary?only_cpu_and_memory=false")), &all); err != nil {
		return err
	}
	after, err := usage(id)
	if err != nil {
		return err
	}

	for _, p := range all.Pods {
		if p.PodRef.Name != "busy" || p.PodRef.Namespace != s.name || len(p.Containers) != 1 {
			continue
		}
		c := p.Containers[0]
		s.Logf("memory %d of %d, CPU %d of %d to %d, layer %d", c.Memory.WorkingSetBytes, before.memory, c.CPU.UsageCoreNanoSeconds, before.cpu, after.cpu, c.Rootfs.UsedBytes)
		if off(c.Memory.WorkingSetBytes, before.memory) > 0.05 && off(c.Memory.WorkingSetBytes, after.memory) > 0.05 {
			return fmt.Errorf("memory %d, the cgroup has %d", c.Memory.WorkingSetBytes, after.memory)
		}
		if off(c.CPU.UsageCoreNanoSeconds, before.cpu) > 0.05 && off(c.CPU.UsageCoreNanoSeconds, after.cpu) > 0.05 {
			return fmt.Errorf("CPU time %d, the cgroup has %d", c.CPU.UsageCoreNanoSeconds, after.cpu)
		}
		if off(c.Rootfs.UsedBytes, 10<<20) > 0.05 {
			return fmt.Errorf("%d bytes in the writable layer, want 10 MB", c.Rootfs.UsedBytes)
		}
		if p.Memory.WorkingSetBytes < c.Memory.WorkingSetBytes || p.CPU.UsageCoreNanoSeconds == 0 || p.Network.RxBytes+p.Network.TxBytes == 0 {
			return fmt.Errorf("the pod's stats: %+v", p)
		}

		return nil
	}

	return fmt.Errorf("the pod is not among %d", len(all.Pods))
}

// scraped has Prometheus scrape kubelet, which has what crisp counts, and the daemon, and
// compares what it answers with the kernel's files.
func (s *space) scraped(t *testing.T, id string) {
	addresses := regexp.MustCompile(`msg="Serving metrics" address=(\S+)`).FindAllStringSubmatch(s.node.Lab.Log(), -1)
	if len(addresses) == 0 {
		t.Fatal("the log has no address of metrics")
	}
	server := prometheustest.Serve(t, prometheus.Options{Target: addresses[len(addresses)-1][1], Jobs: []string{s.node.ScrapeJob("metrics/cadvisor")}})
	one := func(expr string) (uint64, error) {
		v := prometheustest.Query(t, server, expr)
		if len(v) != 1 {
			return 0, fmt.Errorf("%s: %d series", expr, len(v))
		}
		return uint64(v[0].Value), nil
	}
	same := func(what, expr string, read func() (uint64, error)) error {
		before, err := read()
		if err != nil {
			return err
		}
		got, err := one(expr)
		if err != nil {
			return err
		}
		after, err := read()
		if err != nil {
			return err
		}
		s.Logf("%s: %d, of %d to %d", what, got, before, after)
		if off(got, before) > 0.05 && off(got, after) > 0.05 {
			return fmt.Errorf("%s: Prometheus has %d, the kernel %d to %d", what, got, before, after)
		}
		return nil
	}

	labels := fmt.Sprintf(`{namespace=%q,pod="busy",container="main"}`, s.name)
	memory := func() (uint64, error) { u, err := usage(id); return u.memory, err }
	cpu := func() (uint64, error) { u, err := usage(id); return u.cpu, err }
	daemon := func() (uint64, error) { return resident(s.node.Lab.PID()) }
	s.eventually("what Prometheus has within 5 % of the kernel's", func() error {
		return errors.Join(
			same("memory", "container_memory_working_set_bytes"+labels, memory),
			same("CPU time", "container_cpu_usage_seconds_total"+labels+" * 1e9", cpu),
			same("the daemon's memory", `process_resident_memory_bytes{job="crisp"}`, daemon),
		)
	})
}

// resident is the resident memory of a process, in bytes.
func resident(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, pages uint64
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		return 0, err
	}
	return pages * uint64(os.Getpagesize()), nil
}

func off(got, want uint64) float64 { return math.Abs(float64(got)-float64(want)) / float64(want) }

// usageStats are the stats of a cgroup: its working set in bytes, and CPU time in
// nanoseconds.
type usageStats struct{ memory, cpu uint64 }

// usage reads the cgroup of a container.
func usage(id string) (usageStats, error) {
	var f usageStats
	for _, dir := range inventory.Cgroups(id) {
		if total, err := number(dir, "memory.usage_in_bytes"); err == nil {
			f.memory = total - field(dir, "memory.stat", "total_inactive_file")
		} else if total, err := number(dir, "memory.current"); err == nil {
			f.memory = total - field(dir, "memory.stat", "inactive_file")
		}
		if n, err := number(dir, "cpuacct.usage"); err == nil {
			f.cpu = n
		} else if n := field(dir, "cpu.stat", "usage_usec"); n > 0 {
			f.cpu = n * 1000
		}
	}

	if f.memory == 0 || f.cpu == 0 {
		return f, fmt.Errorf("the cgroup of %s has no stats", id)
	}
	return f, nil
}

func number(dir, file string) (uint64, error) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
}

// field is a number in a file of names and numbers, 0 if it is missing.
func field(dir, file, name string) uint64 {
	data, _ := os.ReadFile(filepath.Join(dir, file))
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			n, _ := strconv.ParseUint(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// latency reports how long pods took to start, as measured by kubelet.
func (w *world) latency(t *testing.T) {
	s := &space{t, w, "default"}
	for _, m := range []string{"kubelet_pod_start_duration_seconds", "kubelet_pod_start_sli_duration_seconds", "kubelet_run_podsandbox_duration_seconds"} {
		count := s.metric(m+"_count", "")
		if count == 0 {
			t.Errorf("kubelet has not measured %s", m)
			continue
		}
		t.Logf("%s: mean %.2f s of %.0f", m, s.metric(m+"_sum", "")/count, count)
	}

	for _, op := range []string{"run_podsandbox", "create_container", "start_container", "exec_sync", "stop_podsandbox"} {
		label := fmt.Sprintf("operation_type=%q", op)
		if count := s.metric("kubelet_runtime_operations_duration_seconds_count", label); count > 0 {
			t.Logf("%s: mean %.1f ms of %.0f", op, 1000*s.metric("kubelet_runtime_operations_duration_seconds_sum", label)/count, count)
		}
	}
}
