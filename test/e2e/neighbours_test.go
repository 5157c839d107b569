package e2e

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// limited gives a container a CPU quota in thousandths of a CPU, and a memory
// limit in MiB.
func limited(milliCPU, mib int64) change {
	return func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources.CpuPeriod, c.Linux.Resources.CpuQuota = 100_000, max(1000, milliCPU*100)
		c.Linux.Resources.MemoryLimitInBytes = mib << 20
	}
}

// badNeighbours are containers that are, or make themselves, hard to join.
var badNeighbours = []struct {
	name   string
	change []change
	freeze bool
}{
	{"frozen", nil, true},
	{"throttled", []change{sh("for i in $(seq 200); do while :; do :; done & done; wait"), limited(10, 256)}, false},
	{"out of memory again and again", []change{sh("while :; do tail /dev/zero; done"), limited(500, 16)}, false},
	{"forking", []change{sh("while :; do (sleep 1000 &) ; done"), limited(50, 64)}, false},
	{"hoarding descriptors", []change{sh("for i in $(seq 20); do sleep 1000 3</dev/null 4</dev/zero & done; i=5; while eval \"exec $i</dev/null\"; do i=$((i+1)); done; wait")}, false},
}

// TestNeighbours has a pod work beside one that is frozen, throttled, out of
// memory, or bursting, while commands pile up in that one: what is asked of the
// good pod takes at most twice its time, the commands end when theirs is
// up, and the bad pod can be removed.
func TestNeighbours(t *testing.T) {
	n := newNode(t, lab.Options{})
	victim := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "victim" })
	c := victim.start(t)
	victim.usage(t, c) // the first of everything is slower
	for _, bad := range badNeighbours {
		n.run(t, bad.name, func(t *testing.T) {
			alone := victim.usage(t, c)
			p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "bad" })
			b := p.start(t, append([]change{named("bad")}, bad.change...)...)
			if bad.freeze {
				b.freeze(t)
			}
			time.Sleep(pace.Scale(500 * time.Millisecond))

			ended := b.pileUp(t, 8)
			for what, with := range victim.usage(t, c) {
				t.Logf("%s takes %v beside it, %v without", what, with, alone[what])
				if with > 2*alone[what]+pace.Scale(150*time.Millisecond) {
					t.Errorf("%s takes %v beside it, %v without", what, with, alone[what])
				}
			}
			ended()

			began := time.Now()
			p.remove(t)
			if took := time.Since(began); took > pace.Scale(10*time.Second) {
				t.Errorf("to remove the bad pod took %v", took)
			}
		})
	}
}

// pileUp executes commands in a container that may never begin. What it returns
// waits for them and checks that they end at their time-out.
func (c *container) pileUp(t *testing.T, count int) func() {
	t.Helper()
	const timeout = 3
	var wg sync.WaitGroup
	for range count {
		wg.Go(func() {
			ctx, stop := context.WithTimeout(t.Context(), pace.Scale(60*time.Second))
			defer stop()
			began := time.Now()
			_, err := c.p.n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}, Timeout: timeout})
			if took := time.Since(began); took > pace.Scale(timeout*time.Second+3*time.Second) {
				t.Errorf("a command with a time-out of %d s took %v: %v", timeout, took, err)
			}
			// One that is out of memory or processes may fail before its time.
			if code := status.Code(err); code == codes.Unknown || code == codes.Canceled {
				t.Errorf("a command fails with %v: %v", code, err)
			}
		})
	}
	return wg.Wait
}

// usage measures what kubelet asks of a pod, each a few times, and returns the medians.
func (p *pod) usage(t *testing.T, c *container) map[string]time.Duration {
	t.Helper()
	n := p.n
	took := map[string]time.Duration{}
	for what, do := range map[string]func(){
		"a command": func() { c.exec(t, "true") },
		"a start":   func() { p.start(t, named("brief"), sh("exit 0")).remove(t) },
		"a list":    func() { call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{}) },
		"statistics": func() {
			call(t, n.Runtime.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
		},
	} {
		var times []time.Duration
		for range 7 {
			began := time.Now()
			do()
			times = append(times, time.Since(began))
		}
		slices.Sort(times)
		took[what] = times[len(times)/2]
	}
	return took
}
