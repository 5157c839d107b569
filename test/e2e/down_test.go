package e2e

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

var downTime = flag.Duration("down", time.Minute, "how long TestDaemonDown leaves containers without a daemon")

const (
	// standstill is how long a writer that waits for nothing may pause on a
	// busy machine, and endLate how much later than its last write a
	// container's exit may be reported.
	standstill, endLate = 3 * time.Second, time.Second
	// tick is a container's clock, one line ten times a second.
	tick = `while [ ! -e /signal/stop ]; do read up idle < /proc/uptime; echo $up || exit 99; sleep 0.1; done; exit 3`
)

// TestDaemonDown kills the daemon and leaves busy containers alone for a
// minute, in which some of them exit. The first responses of the next daemon
// must agree with what the containers have recorded themselves.
func TestDaemonDown(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "under writers", func(t *testing.T) { testDaemonDown(t, n) })
}

func testDaemonDown(t *testing.T, n *node) {
	w := n.pacedWriters(t)
	dir := filepath.Dir(w.stop)

	// The first process of a PID namespace ignores its own signals, so these
	// are not first processes.
	p := n.pod(t, attempt(1), func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
	})

	clock := p.start(t, named("clock"), mount(dir, "/signal"), sh(tick))
	ending := startEnding(t, p, dir, *downTime)
	shared := n.pod(t, attempt(2), sharedPID)
	member := shared.start(t)
	first := firstProcess(t, member.pid(t))
	events, err := n.Runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}

	before := n.statuses(t)

	n.Kill()
	if _, err := events.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the reader of events gets %v", err)
	}

	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(*downTime / 2)
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}

	time.Sleep(*downTime / 2)
	from := time.Now()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	t.Logf("the daemon answers again after %v", time.Since(from))

	// The first responses count: kubelet acts on them.
	after := n.listed(t)
	for _, c := range ending {
		wantEndedAlone(t, c, after[c.id], dir)
	}

	for _, c := range append(slices.Clone(w.list), clock) {
		if after[c.id] != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container %s is listed as %v", c.cfg.Metadata.Name, after[c.id])
		}
	}

	if st := member.status(t); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("the container of the pod that lost its first process is %v with code %d", st.State, st.ExitCode)
	}
	for pod, want := range map[*pod]runtimeapi.PodSandboxState{
		p: runtimeapi.PodSandboxState_SANDBOX_READY, shared: runtimeapi.PodSandboxState_SANDBOX_NOTREADY,
	} {
		if st := pod.status(t); st.State != want {
			t.Errorf("pod %s is %v, want %v", st.Metadata.Name, st.State, want)
		}
	}

	wantSameIdentity(t, before, n.statuses(t))

	n.warm(t)
	wantNextAttempt(t, ending[0].container)
	rotate(t, w.list[0])
	w.end(t)
	clock.wantEnd(t, 3, "Error")
	wantSteady(t, clock)
}

// pacedWriters are writers that leave some CPU time to others.
func (n *node) pacedWriters(t *testing.T) *writers {
	t.Helper()
	dir := t.TempDir()
	w := &writers{stop: filepath.Join(dir, "stop")}
	p := n.pod(t)
	blocks := strings.ReplaceAll(countBlocks, "i=$((i+1000))", "i=$((i+1000)); sleep 0.3")
	lines := strings.ReplaceAll(countLines, "*00)", "*00) sleep 0.01;")
	typed := strings.ReplaceAll(countTerminal, "i=$((i+1))", "i=$((i+1)); sleep 0.01")
	for i, script := range []string{lines, blocks, blocks, lines, typed, blocks} {
		terminal := func(c *runtimeapi.ContainerConfig) { c.Tty = script == typed }
		w.list = append(w.list, p.start(t, named(fmt.Sprintf("w%d", i)), mount(dir, "/signal"), terminal, sh(fmt.Sprintf(script, i+1))))
	}
	return w
}

// ending is a container that exits by itself.
type ending struct {
	*container
	script string
	code   int32
}

// startEnding starts containers that exit, in different ways and at different
// times within the given time, once a file "go" exists. As its last action each
// writes the time to a file of its name.
func startEnding(t *testing.T, p *pod, dir string, within time.Duration) []*ending {
	t.Helper()
	const script = `until [ -e /signal/go ]; do sleep 0.02; done; sleep %.2f; echo last words; cat /proc/uptime > /signal/%s; %s`
	list := []*ending{
		{script: "exit 0"}, {script: "exit 7", code: 7}, {script: "kill -9 $$; sleep 9", code: 137},
		{script: "exit 255", code: 255}, {script: "exec sh -c 'exit 42'", code: 42}, {script: "sleep 1000 & exit 4", code: 4},
	}
	for i, e := range list {
		name, at := fmt.Sprintf("end%d", i), within.Seconds()*float64(i+1)/8
		e.container = p.start(t, named(name), mount(dir, "/signal"), sh(fmt.Sprintf(script, at, name, e.script)))
	}
	return list
}

// wantEndedAlone compares the reported exit of a container with what it
// recorded itself.
func wantEndedAlone(t *testing.T, c *ending, listed runtimeapi.ContainerState, dir string) {
	t.Helper()
	name, st := c.cfg.Metadata.Name, c.status(t)
	if listed != runtimeapi.ContainerState_CONTAINER_EXITED || st.State != listed {
		t.Errorf("%s is listed as %v and has the status %v", name, listed, st.State)
		return
	}

	reason := "Error"
	if c.code == 0 {
		reason = "Completed"
	}
	if st.ExitCode != c.code || st.Reason != reason {
		t.Errorf("%s ended with code %d, reason %q, want %d, %q", name, st.ExitCode, st.Reason, c.code, reason)
	}

	said := uptimeIn(t, filepath.Join(dir, name))
	if late := time.Unix(0, st.FinishedAt).Sub(said); late < -20*time.Millisecond || late > pace.Scale(endLate) {
		t.Errorf("%s is said to have ended %v after it did", name, late)
	}
	if got := c.logged(t); got != "last words\n" {
		t.Errorf("%s logged %q", name, got)
	}
}

// uptimeIn reads a copy of /proc/uptime as a time of day.
func uptimeIn(t *testing.T, path string) time.Time {
	t.Helper()
	return bootTime(t).Add(uptime(t, slurp(path)))
}

func uptime(t *testing.T, text string) time.Duration {
	t.Helper()
	seconds, err := strconv.ParseFloat(strings.Fields(text + " ")[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds * float64(time.Second))
}

// bootTime is the time of day at which the machine's uptime was zero.
func bootTime(t *testing.T) time.Time {
	t.Helper()
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		t.Fatal(err)
	}
	return time.Now().Add(-time.Duration(up.Nano()))
}

// listed are the states of all containers of listed pods.
func (n *node) listed(t *testing.T) map[string]runtimeapi.ContainerState {
	t.Helper()
	pods := map[string]bool{}
	for _, p := range call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items {
		pods[p.Id] = true
	}
	states := map[string]runtimeapi.ContainerState{}
	for _, c := range call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{}).Containers {
		states[c.Id] = c.State
		if !pods[c.PodSandboxId] {
			t.Errorf("container %s is in a pod that is not listed", c.Id)
		}
	}
	return states
}

// wantSameIdentity requires immutable attributes to be as before: names,
// attempts, from which kubelet counts restarts, times of creation and start,
// and logs.
func wantSameIdentity(t *testing.T, before, after map[string]proto.Message) {
	t.Helper()
	if len(before) != len(after) {
		t.Errorf("%d pods and containers before, %d after", len(before), len(after))
	}
	for id, was := range before {
		if is := after[id]; identity(was) != identity(is) {
			t.Errorf("%s is now\n%v, was\n%v", id, identity(is), identity(was))
		}
	}
}

func identity(status proto.Message) string {
	switch st := status.(type) {
	case *runtimeapi.ContainerStatus:
		return fmt.Sprint(st.Metadata, st.CreatedAt, st.StartedAt, st.LogPath, st.ImageRef, st.Labels)
	case *runtimeapi.PodSandboxStatus:
		return fmt.Sprint(st.Metadata, st.CreatedAt, st.Network, st.Labels)
	}
	return ""
}

// wantNextAttempt restarts a container as kubelet does, next to the exited one,
// and requires the event of its exit.
func wantNextAttempt(t *testing.T, ended *container) {
	t.Helper()
	n := ended.p.n
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(callTime))
	defer cancel()

	events, err := n.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}

	again := ended.p.start(t, named("again"), sh("sleep 0.5; exit 5"), func(c *runtimeapi.ContainerConfig) {
		c.Metadata.Name, c.Metadata.Attempt = ended.cfg.Metadata.Name, 1
	})
	for {
		e, err := events.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.ContainerId == again.id && e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
			break
		}
	}

	again.wantEnd(t, 5, "Error")
	if st := ended.status(t); st.Metadata.Attempt != 0 || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("the attempt before is %v, %v", st.Metadata, st.State)
	}
}

// wantSteady reads the log of a container that continuously wrote the time: it
// never blocked, and its output was in the log soon.
func wantSteady(t *testing.T, clock *container) {
	t.Helper()
	lines := parse(t, []byte(slurp(clock.logFile())))
	boot := bootTime(t)
	var last, gap, delay time.Duration
	for _, l := range lines {
		at := uptime(t, l.content)
		if last > 0 {
			gap = max(gap, at-last)
		}
		delay = max(delay, l.at.Sub(boot.Add(at)))
		last = at
	}

	t.Logf("%d lines; the writer never stood still for more than %v, and no line was logged later than %v", len(lines), gap, delay)
	if gap > pace.Scale(standstill) || delay > pace.Scale(standstill) || len(lines) < int(downTime.Seconds()) {
		t.Error("the writer had to wait, or its lines had")
	}
}

// firstProcess is the first process of the PID namespace that pid is in.
func firstProcess(t *testing.T, pid int) int {
	t.Helper()
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}

	dirs, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		t.Fatal(err)
	}

	for _, d := range dirs {
		other, err := strconv.Atoi(strings.Split(d, "/")[2])
		if ns, rerr := os.Readlink(d); cmp.Or(err, rerr) != nil || ns != want {
			continue
		}
		if innermostPID(other) == "1" {
			return other
		}
	}

	t.Fatalf("the PID namespace of process %d has no first process", pid)
	return 0
}

func innermostPID(pid int) string {
	for line := range strings.Lines(slurp(fmt.Sprintf("/proc/%d/status", pid))) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(rest)
			return f[len(f)-1]
		}
	}
	return ""
}
