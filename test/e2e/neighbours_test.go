package e2e

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/fuse"
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

// badNeighbour is a container that is, or makes itself, hard to join.
type badNeighbour struct {
	name   string
	change []change
	// begin makes it misbehave once it runs, or is nil.
	begin func(t *testing.T, c *container)
	// command is what is executed in it, "true" if there is none.
	command []string
}

// badNeighbours are those of a test. An open of a file in silence never
// returns.
func badNeighbours(silence string) []badNeighbour {
	return []badNeighbour{
		{name: "frozen", begin: func(t *testing.T, c *container) { c.freeze(t) }},
		{name: "throttled", change: []change{sh("for i in $(seq 200); do while :; do :; done & done; wait"), limited(10, 256)}},
		{name: "out of memory again and again", change: []change{sh("while :; do tail /dev/zero; done"), limited(500, 16)}},
		{name: "forking", change: []change{sh("while :; do (sleep 1000 &) ; done"), limited(50, 64)}},
		{name: "hoarding descriptors", change: []change{sh("for i in $(seq 20); do sleep 1000 3</dev/null 4</dev/zero & done; i=5; while eval \"exec $i</dev/null\"; do i=$((i+1)); done; wait")}},
		{name: "stopped by a signal", begin: func(t *testing.T, c *container) { c.signal(t, unix.SIGSTOP) }},
		// It makes every command stop before its program starts.
		{name: "stopping processes that join it", change: []change{sh("trap '' TERM; while :; do kill -STOP -1; done"), limited(300, 64)}},
		{name: "hanging in a file system", change: []change{mount(silence, "/silence"), sh("cat /silence/file & cat /silence/file")}, command: []string{"cat", "/silence/file"}},
	}
}

// TestNeighbours runs a pod next to one that is frozen, throttled, out of
// memory, bursting, stopped or hanging, while commands pile up in that one:
// calls for the good pod take at most twice as long, the commands end at their
// timeout, and the bad pod can be removed.
func TestNeighbours(t *testing.T) {
	n := newNode(t, lab.Options{})
	victim := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "victim" })
	c := victim.start(t)
	victim.usage(t, c) // the first calls are slower

	silence := t.TempDir()
	for _, bad := range badNeighbours(silence) {
		n.run(t, bad.name, func(t *testing.T) {
			alone := victim.usage(t, c)
			p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "bad" })
			silent := func() {}
			if bad.command != nil {
				silent = fuse.Serve(t, silence, fuse.NewSilent()).End
				defer silent()
			}

			b := p.start(t, append([]change{named("bad")}, bad.change...)...)
			if bad.begin != nil {
				bad.begin(t, b)
			}

			time.Sleep(pace.Scale(500 * time.Millisecond))

			command := bad.command
			if command == nil {
				command = []string{"true"}
			}

			ended := b.pileUp(t, 8, command)
			for what, with := range victim.usage(t, c) {
				t.Logf("%s takes %v next to it, %v without", what, with, alone[what])
				if with > 2*alone[what]+pace.Scale(150*time.Millisecond) {
					t.Errorf("%s takes %v next to it, %v without", what, with, alone[what])
				}
			}

			ended()

			silent() // nothing else unblocks processes that wait for it
			began := time.Now()
			p.remove(t)
			if took := time.Since(began); took > pace.Scale(10*time.Second) {
				t.Errorf("to remove the bad pod took %v", took)
			}
		})
	}
}

// signal signals a container's first process.
func (c *container) signal(t *testing.T, s unix.Signal) {
	t.Helper()
	if err := unix.Kill(c.pid(t), s); err != nil {
		t.Fatal(err)
	}
}

// pileUp executes commands in a container that may never start. The returned
// function waits for them and checks that they end at their timeout.
func (c *container) pileUp(t *testing.T, count int, command []string) func() {
	t.Helper()
	const timeout = 3
	var wg sync.WaitGroup
	for range count {
		wg.Go(func() {
			ctx, stop := context.WithTimeout(t.Context(), pace.Scale(60*time.Second))
			defer stop()
			began := time.Now()
			_, err := c.p.n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: command, Timeout: timeout})

			if took := time.Since(began); took > pace.Scale(timeout*time.Second+3*time.Second) {
				t.Errorf("a command with a time-out of %d s took %v: %v", timeout, took, err)
			}

			// One that is out of memory or processes may fail earlier.
			if code := status.Code(err); code == codes.Unknown || code == codes.Canceled {
				t.Errorf("a command fails with %v: %v", code, err)
			}
		})
	}

	return wg.Wait
}

// usage measures kubelet's calls for a pod, each a few times, and returns the
// medians.
func (p *pod) usage(t *testing.T, c *container) map[string]time.Duration {
	t.Helper()
	n := p.n
	before, lines := strings.Count(c.logged(t), "another line"), 0
	took := map[string]time.Duration{}
	for what, do := range map[string]func(){
		"a command": func() { c.exec(t, "true") },
		"a start":   func() { p.start(t, named("brief"), sh("exit 0")).remove(t) },
		"a list":    func() { call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{}) },
		"statistics": func() {
			call(t, n.Runtime.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: c.id})
		},
		"all statistics": func() {
			call(t, n.Runtime.ListContainerStats, &runtimeapi.ListContainerStatsRequest{})
			call(t, n.Runtime.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{})
		},
		"a line of the log": func() {
			c.exec(t, "sh", "-c", "echo another line >/proc/1/fd/1")
			lines++
			eventually(t, "the line is in the log", func() bool { return strings.Count(c.logged(t), "another line") == before+lines })
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
