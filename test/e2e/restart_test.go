package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// end stops the daemon in one of two ways.
type end struct {
	name string
	do   func(t *testing.T, n *node)
}

var ends = []end{
	{"SIGTERM", func(t *testing.T, n *node) {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}},
	{"SIGKILL", func(_ *testing.T, n *node) { n.Kill() }},
}

func (n *node) begin(t *testing.T) {
	t.Helper()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.warm(t)
}

func TestRestart(t *testing.T) {
	cni := newPlugin(t)
	n := newNode(t, lab.Options{PluginDir: cni.dir})
	for _, e := range ends {
		n.run(t, e.name+" status", func(t *testing.T) { testStatusSurvives(t, n, e) })
		n.run(t, e.name+" log", func(t *testing.T) { testLogSurvives(t, n, e) })
		n.run(t, e.name+" exits", func(t *testing.T) { testExitsWhileDown(t, n, e) })
		n.run(t, e.name+" sessions", func(t *testing.T) { testSessionsAfterRestart(t, n, e) })
		n.run(t, e.name+" open sessions", func(t *testing.T) { testSessionsEnd(t, n, e) })
	}
	n.run(t, "slow plugin", func(t *testing.T) { testStopDuringPlugin(t, n, cni, false) })
	n.run(t, "slow plugin, then and later", func(t *testing.T) { testStopDuringPlugin(t, n, cni, true) })
	n.run(t, "second daemon", func(t *testing.T) { testSecondDaemon(t, n) })
}

// testStatusSurvives compares every status before and after.
func testStatusSurvives(t *testing.T, n *node, e end) {
	p := n.pod(t)
	p.start(t, named("rich"), mount(t.TempDir(), "/mnt"), func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "BYTES", Value: []byte("\xff\x01")}}
		c.Annotations = map[string]string{"ünïcode": "\u2028 \x00 \"quotes\""}
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: busybox}, Readonly: true})
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 50000, CpuPeriod: 100000}
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1002}
		c.Linux.SecurityContext.SupplementalGroups = []int64{7, 8}
		c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
	}).update(t, &runtimeapi.LinuxContainerResources{CpuShares: 300})

	p.create(t, named("created"))
	p.start(t, named("failed"), sh("exit 3")).wantEnd(t, 3, "Error")
	stopped := n.pod(t, attempt(1))
	call(t, n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: stopped.id})

	before := n.statuses(t)
	if ip := p.status(t).Network.GetIp(); ip == "" {
		t.Error("the pod has no address")
	}

	e.do(t, n)
	n.begin(t)
	after := n.statuses(t)
	if len(before) != 5 || len(after) != len(before) {
		t.Errorf("%d statuses before and %d after, want 2 pods and 3 containers", len(before), len(after))
	}

	for id, want := range before {
		if got := after[id]; !proto.Equal(got, want) {
			t.Errorf("the status differs.\nbefore: %v\nafter:  %v", want, got)
		}
	}

	// A container that was created before starts now.
	call(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: p.create(t, named("created")).id})
}

// statuses are those of all pods and containers by their id.
func (n *node) statuses(t *testing.T) map[string]proto.Message {
	t.Helper()
	all := map[string]proto.Message{}
	for _, p := range call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items {
		all[p.Id] = call(t, n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id}).Status
	}
	for _, c := range call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{}).Containers {
		all[c.Id] = call(t, n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id}).Status
	}
	return all
}

// testLogSurvives has a container count while the daemon is away.
func testLogSurvives(t *testing.T, n *node, e end) {
	c := n.pod(t).start(t, sh("i=0; while :; do echo $i; i=$((i+1)); done"))
	size := func() int64 {
		info, err := os.Stat(c.logFile())
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}

	grows := func(when string) {
		from := size()
		eventually(t, "the log grows "+when, func() bool { return size() > from+1<<20 })
	}

	grows("at first")
	e.do(t, n)
	grows("without a daemon")
	n.begin(t)
	grows("with the next daemon")
	c.stop(t, 0)
	wantCount(t, parse(t, []byte(slurp(c.logFile()))))
}

// wantCount wants the lines 0, 1, 2 and so on; the last may be cut short.
func wantCount(t *testing.T, lines []line) {
	t.Helper()
	for i, l := range lines {
		if l.content != fmt.Sprint(i) && i < len(lines)-1 {
			t.Fatalf("line %d of %d says %q", i, len(lines), l.content)
		}
	}
}

// testExitsWhileDown ends containers while no daemon runs: their exit codes and
// times are known afterwards.
func testExitsWhileDown(t *testing.T, n *node, e end) {
	dir := t.TempDir()
	waitThen := func(end string) change { return sh("while [ ! -e /mnt/go ]; do sleep 0.02; done; " + end) }
	p := n.pod(t)
	seven := p.start(t, named("seven"), mount(dir, "/mnt"), waitThen("echo last words; exit 7"))
	killed := p.start(t, named("killed"))
	hog := p.start(t, named("hog"), mount(dir, "/mnt"), waitThen("exec dd if=/dev/zero of=/dev/null bs=200M"), memory(16<<20))
	victim := killed.pid(t)
	e.do(t, n)

	from := time.Now()
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}

	if err := unix.Kill(victim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*container{seven, killed, hog} {
		eventually(t, "the container's end is on record", func() bool { return slurp(n.path("state/exits", c.id)) != "" })
	}

	to := time.Now() // the time of the restart would be too late
	n.begin(t)
	seven.wantEnd(t, 7, "Error")
	killed.wantEnd(t, 137, "Error")

	// systemd removes a scope with its last process, and with it the count of
	// OOM kills. The keeper reads that when it is notified of the exit, as
	// systemd is: on a slow machine it may be too late.
	reason := "OOMKilled"

	if os.Getenv("CRISP_CGROUP_DRIVER") == "systemd" && pace.Scale(1) > 1 && hog.wait(t).Reason == "Error" {
		reason = "Error"
	}
	hog.wantEnd(t, 137, reason)

	for _, c := range []*container{seven, killed, hog} {
		if at := time.Unix(0, c.status(t).FinishedAt); at.Before(from) || at.After(to) {
			t.Errorf("container %s ended at %v, which is not between %v and %v", c.cfg.Metadata.Name, at, from, to)
		}
	}

	if got := seven.logged(t); got != "last words\n" {
		t.Errorf("logged %q", got)
	}
}

// testSessionsAfterRestart uses a container of an earlier daemon in all ways.
func testSessionsAfterRestart(t *testing.T, n *node, e end) {
	p := n.pod(t)
	cat := p.start(t, named("cat"), sh("cat; exit 5"), func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	tty := p.start(t, named("tty"), sh("while read x; do echo got $x; done"), func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true })
	trap := p.start(t, named("trap"), sh("trap 'echo bye; exit 6' TERM; while :; do sleep 0.02; done"))
	e.do(t, n)
	n.begin(t)

	if got := cat.sh(t, "echo $HOSTNAME $(hostname) $$"); !strings.Contains(got, "e2e") {
		t.Errorf("exec says %q", got)
	}
	var out bytes.Buffer
	o := remotecommand.StreamOptions{Stdin: strings.NewReader("after\n"), Stdout: &out}
	if err := dialer(dialSPDY).session(t, cat.attachURL(t, o), o); err != nil || out.String() != "after\n" {
		t.Errorf("attach: got %q, %v", out.String(), err)
	}

	cat.wantEnd(t, 5, "Error")
	out.Reset()

	// EOF typed on the terminal ends the loop.
	o = remotecommand.StreamOptions{Stdin: strings.NewReader("word\r\x04"), Stdout: &out, Tty: true}
	if err := dialer(dialSPDY).session(t, tty.attachURL(t, o), o); err != nil || !strings.Contains(out.String(), "got word\r\n") {
		t.Errorf("attach to the terminal: got %q, %v", out.String(), err)
	}

	tty.wantEnd(t, 0, "Completed")

	old := trap.logFile() + ".1"
	if err := os.Rename(trap.logFile(), old); err != nil {
		t.Fatal(err)
	}

	call(t, n.Runtime.ReopenContainerLog, &runtimeapi.ReopenContainerLogRequest{ContainerId: trap.id})
	trap.stop(t, 10)
	trap.wantEnd(t, 6, "Error")
	if got := trap.logged(t); got != "bye\n" || slurp(old) != "" {
		t.Errorf("the new log says %q, the old one %q", got, slurp(old))
	}
}

// testSessionsEnd stops the daemon under commands in a container, which are
// killed, as their exit could not be reported, under an attached client and a
// forwarded port.
func testSessionsEnd(t *testing.T, n *node, e end) {
	p := n.pod(t)
	c := p.start(t, sh("nc -l -p 99 -e cat & exec sleep 1000"))
	o := remotecommand.StreamOptions{Stdout: io.Discard}
	called := begin(func() error {
		return failure(t, n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sleep", "2005"}})
	})

	u, attach := c.execURL(t, o, "sleep", "2006"), c.attachURL(t, o)
	sessions := map[string]<-chan error{
		"a command":          begin(func() error { return dialer(dialSPDY).session(t, u, o) }),
		"an attached client": begin(func() error { return dialer(dialSPDY).session(t, attach, o) }),
	}

	for _, command := range []string{"sleep\x002005", "sleep\x002006"} {
		eventually(t, "the commands run", func() bool { return len(n.processes(t, command)) == 1 })
	}
	address, _, forwarded := p.forward(t, 99)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	fmt.Fprintln(conn, "there?")
	if got, err := bufio.NewReader(conn).ReadString('\n'); got != "there?\n" || err != nil {
		t.Fatalf("the forwarded port says %q, %v", got, err)
	}

	e.do(t, n)
	wantCode(t, <-called, codes.Unavailable, "")
	for what, ended := range sessions {
		// To a SPDY client a closed connection looks like success.
		if err := <-ended; e.name == "SIGTERM" && (err == nil || !strings.Contains(err.Error(), "crisp is being stopped or restarted")) {
			t.Errorf("%s gets %v", what, err)
		}
	}

	if err := <-forwarded; !errors.Is(err, portforward.ErrLostConnectionToPod) {
		t.Errorf("the client of a forwarded port gets %v", err)
	}
	n.begin(t)
	eventually(t, "the commands are gone", func() bool { return len(n.processes(t, "sleep\x00200")) == 0 })

	if st := c.status(t).State; st != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("their container is %v", st)
	}
}

// testStopDuringPlugin stops the daemon while a plugin hangs. It does not wait
// for that, and the operation is undone. If the plugin hangs then, too, the
// next daemon serves nevertheless, and creates the pod once the undo is
// complete.
func testStopDuringPlugin(t *testing.T, n *node, cni plugin, later bool) {
	adds := cni.calls("ADD")
	cni.set(t, "hold-ADD")
	request := &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(t)}
	ended := make(chan error, 1)
	go func() { ended <- failure(t, n.Runtime.RunPodSandbox, request) }()
	eventually(t, "the plugin is called", func() bool { return cni.calls("ADD") > adds })

	began := time.Now()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}

	if took := time.Since(began); took > pace.Scale(15*time.Second) {
		t.Errorf("the daemon took %v to end", took)
	}
	if err := <-ended; err == nil {
		t.Error("the caller got the ID of the pod")
	}

	if later {
		cni.set(t, "hold-DEL")
	}
	cni.clear("hold-ADD")
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	if list := call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items; len(list) != 0 {
		t.Errorf("pods %v are listed", list)
	}
	if later {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := n.Runtime.RunPodSandbox(ctx, request)
		wantCode(t, err, codes.DeadlineExceeded)
		cni.clear("hold-DEL")
	}
	n.podOf(t, request.Config)
}

// testSecondDaemon starts a second daemon on the directories of a running one.
func testSecondDaemon(t *testing.T, n *node) {
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}

	crisp, err := cache.Crisp()
	if err != nil {
		t.Fatal(err)
	}

	for what, args := range map[string][]string{
		"root":  {"--root", n.path("root"), "--state", n.path("other")},
		"state": {"--root", n.path("other"), "--state", n.path("state")},
	} {
		args = append([]string{"serve", "--config", n.path("config.toml"), "--listen", "unix://" + n.path("other.sock")}, args...)
		out, err := exec.CommandContext(t.Context(), crisp, args...).CombinedOutput()
		if want := fmt.Sprintf("%s is in use by another crisp daemon (pid %d)", n.path(what), n.PID()); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("the same %s: %v: %s, want it to say %q", what, err, out, want)
		}
	}
	call(t, n.Runtime.Version, &runtimeapi.VersionRequest{})
}
