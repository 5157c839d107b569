package hostile

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/keeper/client"
	"crisp/test/testkit/pace"
	"crisp/test/testkit/pods"
)

// kind is a kind of pod that a resident lives in.
type kind struct {
	pid        string // container, shared
	network    string // pod, node
	user       bool   // has a user namespace
	capability string
	unconfined bool // has no filter, no masks and nothing read-only
}

func (k kind) String() string {
	return fmt.Sprintf("PID namespace %s, network %s, user namespace %t, capability %q, unconfined %t", k.pid, k.network, k.user, k.capability, k.unconfined)
}

// may are the findings that a kind of resident is allowed, by prefix.
var may = []struct {
	finding string
	kinds   func(kind) bool
	reason  string
}{}

func (k kind) allowed(finding string) bool {
	for _, m := range may {
		if strings.HasPrefix(finding, m.finding) && m.kinds(k) {
			return true
		}
	}
	return false
}

// kinds are all pairs of a namespace mode and a capability, half of them with a
// user namespace alternately; a pod in the node's network has none.
func kinds() []kind {
	var all []kind
	for i, capability := range []string{"", "SYS_PTRACE", "SYS_ADMIN", "NET_ADMIN", "DAC_READ_SEARCH", "ALL"} {
		odd := i%2 == 1
		all = append(all,
			kind{pid: "container", network: "pod", user: odd, capability: capability},
			kind{pid: "shared", network: "pod", user: !odd, capability: capability},
			kind{pid: "container", network: "node", capability: capability})
	}

	// Those that see most are tested in all combinations.
	return append(all,
		kind{pid: "container", network: "pod", capability: "SYS_PTRACE"},
		kind{pid: "container", network: "pod", capability: "ALL"},
		kind{pid: "shared", network: "pod", user: true, capability: "ALL"},
		kind{pid: "container", network: "pod", capability: "usual", unconfined: true},
		kind{pid: "shared", network: "pod", capability: "SYS_PTRACE", unconfined: true},
		kind{pid: "shared", network: "pod", user: true, capability: "ALL", unconfined: true})
}

// lodger is a running resident.
type lodger struct {
	kind kind
	pod  *pods.Pod
	c    *pods.Container
}

// TestResidents has residents of each kind inspect everything visible while the
// runtime runs all of its operations: CVE-2019-5736, CVE-2020-15257,
// CVE-2022-0492, CVE-2022-29162, CVE-2024-21626.
func TestResidents(t *testing.T) {
	n := newNode(t)
	victim := pods.Run(t, n.Lab, "victim").Start(t, "victim", busybox, pods.Command("sleep", "10000"), pods.Env("SECRET", n.secret))
	const together = 5
	all := kinds()
	for i := 0; i < len(all); i += together {
		t.Run(fmt.Sprintf("residents from %d on", i), func(t *testing.T) {
			n.live(t, victim, all[i:min(i+together, len(all))])
		})
	}
}

// live runs residents while the runtime works.
func (n *node) live(t *testing.T, victim *pods.Container, kinds []kind) {
	var all []*lodger
	for i, k := range kinds {
		all = append(all, n.settle(t, i, k))
	}

	for _, r := range all {
		r.c.Await(t, "READY")
	}
	seen := map[*lodger]int{}
	for _, r := range all {
		seen[r], _ = r.looked(t)
	}

	n.everything(t, victim, all)
	time.Sleep(pace.Scale(300 * time.Millisecond)) // for a last check
	for _, r := range all {
		log := r.c.Logged(t)
		for _, finding := range found(log, "FOUND") {
			if !r.kind.allowed(finding) {
				t.Errorf("%v: found %s", r.kind, finding)
			}
		}

		looked, early := r.looked(t)
		t.Logf("%v: looked at %d processes, %d times before their program", r.kind, looked-seen[r], early)

		// Some end before it can see them; it must have seen most.
		if looked-seen[r] < commands/4 {
			t.Errorf("%v: it looked at %d processes of %d and more", r.kind, looked-seen[r], commands)
		}
		r.pod.Remove(t)
	}
}

func (r *lodger) looked(t *testing.T) (processes, early int) {
	t.Helper()
	lines := found(r.c.Logged(t), "LOOKED")
	if len(lines) > 0 {
		fmt.Sscanf(lines[len(lines)-1], "%d processes, %d before", &processes, &early)
	}
	return processes, early
}

// settle starts a resident.
func (n *node) settle(t *testing.T, i int, k kind) *lodger {
	t.Helper()
	var in []pods.PodChange
	if k.user {
		in = append(in, pods.UserNamespace(uint32(300000+i*65536)))
	}
	if k.pid == "shared" {
		in = append(in, pods.SharedPID)
	}
	if k.network == "node" {
		in = append(in, pods.HostNetwork)
	}

	r := &lodger{kind: k, pod: pods.Run(t, n.Lab, fmt.Sprintf("resident-%d", i), in...)}
	r.c = r.pod.Start(t, "resident", attacker, n.of(k), pods.Command("/resident", "watch"))
	return r
}

// of are the changes to each container of a resident's pod.
func (n *node) of(k kind) pods.Change {
	return func(c *runtimeapi.ContainerConfig) {
		n.armed()(c)
		capable(k.capability)(c)
		pods.Env("SHARED", fmt.Sprint(k.pid == "shared"))(c)
		if k.unconfined {
			security := c.Linux.SecurityContext
			security.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
			security.MaskedPaths, security.ReadonlyPaths = nil, nil
		}
	}
}

// commands are executed next to each resident.
const commands = 60

// everything runs all operations of the runtime.
func (n *node) everything(t *testing.T, victim *pods.Container, all []*lodger) {
	t.Helper()
	var wg sync.WaitGroup
	for _, r := range all {
		wg.Go(func() { n.execute(t, r.c, commands) })
	}

	// The secret passes through the keeper at the same time.
	wg.Go(func() { n.execute(t, victim, commands) })
	wg.Wait()
	for _, r := range all {
		n.beside(t, r)
	}

	page := pods.Run(t, n.Lab, "page")
	server := page.Start(t, "page", nginx, func(c *runtimeapi.ContainerConfig) { c.Command = nil })
	pods.Eventually(t, "the server listens", func() bool { return strings.Contains(server.Shell(t, "cat /proc/net/tcp"), ":0050 ") })
	forward(t, page, 80)
	pods.Call(t, n.Runtime.ListContainerStats, &runtimeapi.ListContainerStatsRequest{})
	pods.Call(t, n.Runtime.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{})
	page.Remove(t)

	n.changeKeeper(t, func() {
		for _, r := range all {
			n.execute(t, r.c, 5)
		}
	})
}

// execute executes commands, whose results attackers must not affect.
func (n *node) execute(t *testing.T, c *pods.Container, count int) {
	for i := range count {
		ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(30*time.Second))
		r, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", fmt.Sprintf("echo %d; exit 3", i)}, Timeout: 20})
		cancel()
		if err != nil || r.ExitCode != 3 || string(r.Stdout) != fmt.Sprintln(i) {
			t.Errorf("command %d: %v, %v", i, r, err)
			return
		}
	}
}

// beside runs the operations on a container and its pod.
func (n *node) beside(t *testing.T, r *lodger) {
	t.Helper()
	for i := range 3 {
		c := r.pod.Start(t, fmt.Sprintf("beside-%d", i), busybox, n.of(r.kind), pods.Command("sh", "-c", "echo there; sleep 0.05"))
		c.Wait(t)
		if got := c.Logged(t); got != "there\n" {
			t.Errorf("%v: a container next to it prints %q", r.kind, got)
		}
		c.Remove(t)
	}

	stopped := r.pod.Start(t, "stopped", busybox, n.of(r.kind), pods.Command("sleep", "1000"))
	pods.Call(t, n.Runtime.UpdateContainerResources, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: stopped.ID, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512},
	})

	pods.Call(t, n.Runtime.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: stopped.ID, Timeout: 0})
	stopped.Remove(t)
	var out bytes.Buffer
	exec := pods.Call(t, n.Runtime.Exec, &runtimeapi.ExecRequest{ContainerId: r.c.ID, Cmd: []string{"tty"}, Tty: true, Stdout: true})
	if err := session(t, exec.Url, remotecommand.StreamOptions{Stdout: &out, Tty: true}, 0); err != nil || !strings.Contains(out.String(), "/dev/pts/") {
		t.Errorf("%v: a command with a terminal says %q, %v", r.kind, out.String(), err)
	}

	attach := pods.Call(t, n.Runtime.Attach, &runtimeapi.AttachRequest{ContainerId: r.c.ID, Stdout: true})
	_ = session(t, attach.Url, remotecommand.StreamOptions{Stdout: io.Discard}, 300*time.Millisecond) // it ends by its timeout
}

// session is a SPDY session, for some time or until it ends.
func session(t *testing.T, address string, o remotecommand.StreamOptions, limit time.Duration) error {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}

	peer, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}

	if limit == 0 {
		limit = pace.Scale(30 * time.Second)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return peer.StreamWithContext(ctx, o)
}

// forward gets a page through a forwarded port.
func forward(t *testing.T, p *pods.Pod, port int32) {
	t.Helper()
	u, err := url.Parse(pods.Call(t, p.Node.Runtime.PortForward, &runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{port}}).Url)
	if err != nil {
		t.Fatal(err)
	}

	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}

	quit, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u), []string{fmt.Sprintf("0:%d", port)}, quit, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}

	go func() { ended <- forwarder.ForwardPorts() }()
	<-ready
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}

	peer := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: pace.Scale(10 * time.Second)}
	pods.Eventually(t, "the page comes through the port", func() bool {
		r, err := peer.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[0].Local))
		if err != nil {
			return false
		}
		return r.Body.Close() == nil && r.StatusCode == http.StatusOK
	})
	close(quit)

	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// changeKeeper upgrades the keeper to another program, kills it, and then kills
// it with the daemon; after each, f must work.
func (n *node) changeKeeper(t *testing.T, f func()) {
	t.Helper()
	data, err := os.ReadFile("../../bin/crisp-keeper")
	if err != nil {
		t.Fatal(err)
	}

	other := filepath.Join(t.TempDir(), "crisp-keeper")
	if err := os.WriteFile(other, append(data, 0), 0o700); err != nil {
		t.Fatal(err)
	}

	if _, err := client.Upgrade(t.Context(), filepath.Join(n.Dir, "state"), other); err != nil {
		t.Fatalf("upgrade the keeper: %v", err)
	}
	f()
	n.killKeeper(t)
	f()
	n.Kill()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	f()
}

// killKeeper kills the keeper and waits for the next one.
func (n *node) killKeeper(t *testing.T) {
	t.Helper()
	old, err := n.Keeper()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pods.Eventually(t, "there is another keeper", func() bool {
		now, err := n.Keeper()
		_, answer := pods.Try(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{})
		return err == nil && now != old && status.Code(answer) == codes.OK
	})
}
