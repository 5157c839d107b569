package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/agent"
	"crisp/test/testkit/lab"
)

// TestSeccompAgent has an agent decide about calls of containers, by a profile of the
// node and by a plugin's.
func TestSeccompAgent(t *testing.T) {
	n := newNode(t, lab.Options{})
	socket := filepath.Join(openDir(t), "agent")
	a := agent.Start(t, socket, func(agent.Call) agent.Answer { return agent.Answer{Err: unix.EXDEV} })
	profile := filepath.Join(t.TempDir(), "asking.json")
	content, err := json.Marshal(specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, ListenerPath: socket, ListenerMetadata: "from a file",
		Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActNotify}},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, profile, string(content))
	asking := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile}
		c.Annotations = map[string]string{"who": "main"}
	}

	for name, change := range podKinds() {
		n.run(t, name, func(t *testing.T) {
			c := n.pod(t, change).start(t, asking)
			check(t, c, a, "from a file")
			n.Kill()
			if err := n.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantAnswered(t, c)
			a.State()
		})
	}

	n.run(t, "plugin", func(t *testing.T) {
		n.adjusted(t, "asking", func(a *api.ContainerAdjustment) {
			a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{
				DefaultAction: "SCMP_ACT_ALLOW", ListenerPath: socket, ListenerMetadata: "from a plugin",
				Syscalls: []*api.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: "SCMP_ACT_NOTIFY"}},
			})
		})
		check(t, n.pod(t).start(t, func(c *runtimeapi.ContainerConfig) { c.Annotations = map[string]string{"who": "main"} }), a, "from a plugin")
	})
	n.run(t, "missing", func(t *testing.T) {
		write(t, profile, strings.Replace(string(content), socket, socket+"-none", 1))
		p := n.pod(t)
		c := p.create(t, asking)
		err := failure(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id})
		wantCode(t, err, codes.FailedPrecondition, "seccomp agent", socket+"-none", "no such file")
		c.wantEnd(t, 128, "StartError")
		write(t, profile, strings.Replace(string(content), "listenerPath", "comment", 1))
		r := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(named("bad"), asking), SandboxConfig: p.cfg}
		wantCode(t, failure(t, n.Runtime.CreateContainer, r), codes.InvalidArgument, "listenerPath")
	})
}

// check checks what the agent of a container is told, and that it is asked.
func check(t *testing.T, c *container, a *agent.Agent, metadata string) {
	t.Helper()
	state := a.State()
	if state.Metadata != metadata || state.State.ID != c.id || state.State.Status != specs.StateCreating ||
		state.State.Annotations["who"] != "main" || state.State.Annotations["io.kubernetes.cri.container-name"] != "main" {
		t.Errorf("the agent is told %+v", state)
	}
	wantAnswered(t, c)
	if state := a.State(); state.State.ID != c.id || state.State.Status != specs.StateRunning || state.State.Pid == 0 {
		t.Errorf("the agent is told of a command %+v", state)
	}
	if filepath.Base(state.State.Bundle) != c.id {
		t.Errorf("the bundle is %s", state.State.Bundle)
	}
}

// wantAnswered has a command make a call that the agent refuses.
func wantAnswered(t *testing.T, c *container) {
	t.Helper()
	if got := c.sh(t, "mkdir /x 2>&1 | sed 's/.*: //'; ls -l /proc/1/fd /proc/$$/fd | grep -c seccomp; true"); got != "Invalid cross-device link\n0" {
		t.Errorf("a command printed %q", got)
	}
}
