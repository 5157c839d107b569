package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// program is a plugin in a process of its own: this test's program, which the daemon
// starts. It does what its configuration says: names a variable to set, or how it
// ends in the middle of a call.
type program struct{ does string }

// runProgram runs the plugin, if this process is one, and reports whether it was.
func runProgram() bool {
	if os.Getenv(api.PluginSocketEnvVar) == "" {
		return false
	}
	s, err := stub.New(&program{})
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "plugin:", err)
		os.Exit(1)
	}
	return true
}

func (p *program) Configure(_ context.Context, config, _, _ string) (stub.EventMask, error) {
	p.does = strings.TrimSpace(config)
	return api.MustParseEventMask("CreateContainer"), nil
}

func (p *program) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	victim := strings.HasPrefix(c.GetName(), "victim")
	switch {
	case p.does == "die" && victim:
		os.Exit(3)
	case p.does == "hang" && victim:
		time.Sleep(time.Minute)
	}
	a := &api.ContainerAdjustment{}
	a.AddEnv("PLUGIN", p.does)
	return a, nil, nil
}

// install has the daemon start the plugin from its directory.
func (n *node) install(t *testing.T, name, config string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}

	for _, dir := range []string{"nri/plugins", "nri/conf.d"} {
		if err := os.MkdirAll(n.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, n.path("nri/conf.d", name+".conf"), config+"\n")
	write(t, n.path("nri/plugins", name), "#!/bin/sh\nexec "+self+"\n")
	write(t, n.path("nri/plugins/NOTES"), "no plugin keeps others away\n")
	for _, file := range []string{name, "NOTES"} {
		if err := os.Chmod(n.path("nri/plugins", file), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stop(t, n)
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestPluginPrograms has the daemon start plugins, which die and hang in the middle of
// a call. A restart brings them back.
func TestPluginPrograms(t *testing.T) {
	const wait = 2 * time.Second
	n := newNode(t, lab.Options{Config: "nri_request_timeout = \"1s\"\nnri_required_wait = \"" + wait.String() + "\"\n"})
	setBy := func(t *testing.T, c *container) string {
		t.Helper()
		return c.sh(t, "tr '\\0' '\\n' </proc/1/environ | grep ^PLUGIN= || echo none")
	}
	for _, end := range []string{"die", "hang"} {
		t.Run(end, func(t *testing.T) {
			n.install(t, "10-"+end, end)
			p := n.pod(t)
			if got := setBy(t, p.start(t)); got != "PLUGIN="+end {
				t.Errorf("the container has %q", got)
			}

			begin := time.Now()
			if got := setBy(t, p.start(t, named("victim"))); got != "none" {
				t.Errorf("without the plugin's answer the container has %q", got)
			}
			if took := time.Since(begin); took > pace.Scale(5*time.Second) {
				t.Errorf("a plugin that does not answer delayed a container for %v", took)
			}
			if got := setBy(t, p.start(t, named("after"))); got != "none" {
				t.Errorf("after the plugin's end the container has %q", got)
			}

			stop(t, n)
			if err := n.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := setBy(t, p.start(t, named("again"))); got != "PLUGIN="+end {
				t.Errorf("after a restart the container has %q", got)
			}
		})
	}
}

// TestRequiredProgram has a required plugin die in the middle of a call: the container
// is refused, and no other is created until the plugin is back.
func TestRequiredProgram(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	n := &node{testkit.Daemon(t, lab.Options{Config: "nri_request_timeout = \"1s\"\nnri_required_plugins = [\"guard\"]\nnri_required_wait = \"1s\"\n"})}
	n.pull(t, busybox)
	n.install(t, "10-guard", "die")
	p := n.pod(t)
	p.start(t)
	for _, name := range []string{"victim", "other"} {
		r := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(named(name)), SandboxConfig: p.cfg}
		wantCode(t, failure(t, n.Runtime.CreateContainer, r), codes.Unavailable, "guard")
	}
	if list := call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{}).Containers; len(list) != 1 {
		t.Errorf("containers %v, want one", list)
	}
	n.connect(t, &nriPlugin{}, "guard")
	p.start(t, named("victim"))
}

// TestPluginNetDevice has a plugin lend a device of the node to pods: a container
// that is refused afterwards, and the end of the pod, give it back.
func TestPluginNetDevice(t *testing.T) {
	const host = "crispnri1"
	n := newNode(t, lab.Options{})
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: "crispnri2"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName(host); err != nil {
			t.Errorf("the node has lost its device: %v", err)
		} else if err := netlink.LinkDel(link); err != nil {
			t.Error(err)
		}
	})

	lend := "net1"
	n.adjusted(t, "lends", func(a *api.ContainerAdjustment) { a.AddLinuxNetDevice(host, &api.LinuxNetDevice{Name: lend}) })
	for name, change := range podKinds() {
		n.run(t, name, func(t *testing.T) {
			p := n.pod(t, change)
			c := p.start(t)
			if out := c.sh(t, "grep -c net1 /proc/net/dev"); out != "1" || onNode(host) {
				t.Errorf("the container has %q, the node %v", out, onNode(host))
			}
			info := call(t, n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true}).Info["info"]
			if !strings.Contains(info, "network devices") {
				t.Errorf("the verbose status does not tell: %s", info)
			}
			p.remove(t)
			if !onNode(host) {
				t.Error("the node did not get its device back")
			}
		})
	}

	for name, tt := range map[string]struct {
		inside string
		net    runtimeapi.NamespaceMode
		code   codes.Code
	}{
		"taken": {"eth0", runtimeapi.NamespaceMode_POD, codes.FailedPrecondition}, "loopback": {"lo", runtimeapi.NamespaceMode_POD, codes.FailedPrecondition},
		"path": {"../x", runtimeapi.NamespaceMode_POD, codes.FailedPrecondition}, "node's network": {"net1", runtimeapi.NamespaceMode_NODE, codes.FailedPrecondition},
	} {
		n.run(t, name, func(t *testing.T) {
			lend = tt.inside
			p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Network = tt.net })
			r := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(), SandboxConfig: p.cfg}
			wantCode(t, failure(t, n.Runtime.CreateContainer, r), tt.code)
			if !onNode(host) {
				t.Error("a refused container has taken the device")
			}
		})
	}
}
