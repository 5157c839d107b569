package launch

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/hook"
	"crisp/test/testkit/agent"
	"crisp/test/testkit/pace"
)

// asking is a profile that has an agent decide about some calls.
func asking(socket string, calls ...string) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, ListenerPath: socket, ListenerMetadata: "opaque",
		Syscalls: []specs.LinuxSyscall{{Names: calls, Action: specs.ActNotify}},
	}
}

// about is what agents are told of the lab's containers.
func about(s *specs.Spec) hook.Container {
	s.Annotations = map[string]string{"a": "b"}
	return hook.Container{ID: "test", Spec: s, Bundle: "/run/bundle"}
}

// TestListener has an agent decide about mkdir in containers of each kind, whose
// processes have no descriptor of the filter, and in commands there.
func TestListener(t *testing.T) {
	const script = `mkdir /refused 2>&1 | sed 's/.*: //'; mkdir /made && test ! -e /made && echo answered; ls -l /proc/$$/fd 2>/dev/null | grep -c seccomp`
	for name, make := range labs() {
		for _, nnp := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, no new privileges %v", name, nnp), func(t *testing.T) {
				b := make(t)
				socket := filepath.Join(b.open("crisp-agent-"), "socket")
				var n atomic.Int32
				a := agent.Start(t, socket, func(agent.Call) agent.Answer {
					if n.Add(1)%2 == 1 {
						return agent.Answer{Err: unix.EXDEV}
					}
					return agent.Answer{}
				})
				s := b.spec(script + "; exec sleep 100")
				s.Process.NoNewPrivileges = nnp
				if b.pod["ns/pid"] != nil {
					setNamespace(s, specs.PIDNamespace, "ns/pid")
				}
				s.Linux.Seccomp = asking(socket, "mkdir", "mkdirat")
				c, err := b.start(s, nil, Request{About: about(s)})
				if err != nil {
					t.Fatal(err)
				}
				defer c.kill()

				got := a.State()
				if got.Metadata != "opaque" || got.State.ID != "test" || got.State.Status != specs.StateCreating || got.State.Bundle != "/run/bundle" ||
					got.State.Annotations["a"] != "b" || got.Pid != got.State.Pid || b.pod["ns/pid"] == nil && got.Pid != c.Pid {
					t.Errorf("state %+v of process %d", got, c.Pid)
				}
				const want = "Invalid cross-device link\nanswered\n0\n"
				if out := c.until("\n0\n"); out != want {
					t.Errorf("the container printed %q, want %q", out, want)
				}

				p := *s.Process
				p.Args = []string{"/bin/sh", "-c", script}
				e, err := b.exec(c, s, &p, Request{Member: c.Pid, About: about(s)})
				if err != nil {
					t.Fatal(err)
				}
				if out, _ := e.wait(); out != want {
					t.Errorf("a command printed %q", out)
				}
				if got := a.State(); got.State.Status != specs.StateRunning || got.State.Pid != c.Pid || got.Pid == c.Pid {
					t.Errorf("state of a command: %+v", got)
				}
			})
		}
	}
}

// TestListenerOfExec has an agent decide about the calls with which a process starts,
// and be gone afterwards: then its calls fail.
func TestListenerOfExec(t *testing.T) {
	for name, make := range labs() {
		t.Run(name, func(t *testing.T) {
			b := make(t)
			socket := filepath.Join(b.open("crisp-agent-"), "socket")
			a := agent.Start(t, socket, func(agent.Call) agent.Answer { return agent.Answer{Continue: true} })
			s := b.spec("mkdir /made && echo made; read line; mkdir /more 2>&1 | sed 's/.*: //'")
			if b.pod["ns/pid"] != nil {
				setNamespace(s, specs.PIDNamespace, "ns/pid")
			}
			s.Linux.Seccomp = asking(socket, "execve", "mkdir", "mkdirat", "capset", "prctl", "setsid", "clone", "sendmsg", "ioctl", "prlimit64")
			c, err := b.start(s, nil, Request{About: about(s)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.kill()

			c.until("made\n")
			if calls := a.Calls(); len(calls) < 2 {
				t.Errorf("the agent was asked about %v", calls)
			}
		})
	}
}

// TestBadAgents starts containers whose agent is missing, does not accept, does not
// answer, or is gone.
func TestBadAgents(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	b.l.agentTime = time.Second
	dir := b.open("crisp-agent-")
	full := fullSocket(t, filepath.Join(dir, "full"))
	agent.Start(t, filepath.Join(dir, "mute"), nil)
	if err := unix.Mknod(filepath.Join(dir, "file"), unix.S_IFREG|0o600, 0); err != nil {
		t.Fatal(err)
	}

	for name, tt := range map[string]struct{ socket, call, want string }{
		"missing": {filepath.Join(dir, "none"), "mkdir", "no such file"}, "file": {filepath.Join(dir, "file"), "mkdir", "connection refused"},
		"leaves":          {leavingAgent(t, filepath.Join(dir, "leaves")), "execve", "may be gone"},
		"does not accept": {full, "mkdir", "does not read"}, "does not answer": {filepath.Join(dir, "mute"), "execve", "has not let the program start within 1s"},
	} {
		t.Run(name, func(t *testing.T) {
			b := b.with(t)
			s := b.spec("echo ran")
			s.Linux.Seccomp = asking(tt.socket, tt.call)
			begin := time.Now()
			c, err := b.start(s, nil, Request{About: about(s)})
			if err == nil {
				c.kill()
			}
			if !errors.Is(err, ErrAgent) || !strings.Contains(fmt.Sprint(err), tt.want) || !strings.Contains(fmt.Sprint(err), tt.socket) {
				t.Errorf("error %v, want %v with %q", err, ErrAgent, tt.want)
			}
			if took := time.Since(begin); took > pace.Scale(5*time.Second) {
				t.Errorf("took %v", took)
			}
		})
	}
}

// leavingAgent is an agent that closes the listener that it is given.
func leavingAgent(t *testing.T, socket string) string {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })

	wg.Go(func() {
		c, err := l.AcceptUnix()
		if err != nil {
			return // no test has asked it
		}
		defer c.Close()
		data, rights := make([]byte, 1<<20), make([]byte, 1<<10)
		_, n, _, _, err := c.ReadMsgUnix(data, rights)
		messages, _ := unix.ParseSocketControlMessage(rights[:n])
		if err != nil || len(messages) != 1 {
			t.Errorf("%d control messages, %v", len(messages), err)
			return
		}
		fds, _ := unix.ParseUnixRights(&messages[0])
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	return socket
}

// TestAgentLeaves has the agent of a running container die: its calls fail, and do not
// wait.
func TestAgentLeaves(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	socket := filepath.Join(b.open("crisp-agent-"), "socket")
	a := agent.Start(t, socket, func(agent.Call) agent.Answer { return agent.Answer{} })
	s := b.spec("mkdir /x && echo first; until mkdir /x 2>/tmp/error; do break; done; sleep 1; mkdir /x 2>&1 | sed 's/.*: //'")
	s.Linux.Seccomp = asking(socket, "mkdir", "mkdirat")
	c, err := b.start(s, nil, Request{About: about(s)})
	if err != nil {
		t.Fatal(err)
	}
	a.State()
	c.until("first\n")
	a.Leave()
	if out, code := c.wait(); out != "first\nFunction not implemented\n" || code != 0 {
		t.Errorf("printed %q, code %d", out, code)
	}
}

// TestListenerOfHooks has hooks of a container whose filter has an agent: the one in
// the container is subject to it, and waits for it no longer than it may take.
func TestListenerOfHooks(t *testing.T) {
	for _, mute := range []bool{false, true} {
		t.Run(fmt.Sprint("mute ", mute), func(t *testing.T) {
			b := newLab(t)
			b.sandbox(usual())
			b.l.agentTime = time.Second
			h := newHookLab(b)
			socket := filepath.Join(b.open("crisp-agent-"), "socket")
			answer := func(agent.Call) agent.Answer { return agent.Answer{Err: unix.EXDEV} }
			if mute {
				answer = nil
			}
			a := agent.Start(t, socket, answer)
			s := h.spec("echo ran")
			s.Linux.Seccomp = asking(socket, "mkdir", "mkdirat")
			add(s, hook.CreateContainer, "mkdir /tmp/crisp-agent-none; rmdir /tmp/crisp-agent-none")
			two := 2
			hook.Add(s, nil, hook.Hook{Kind: hook.StartContainer, Hook: specs.Hook{
				Path: "/bin/sh", Args: []string{"sh", "-c", "mkdir /x 2>&1 | grep -q cross-device"}, Env: []string{"PATH=/bin"}, Timeout: &two,
			}})

			c, err := h.begin(s, Request{About: about(s)})
			if mute {
				if !errors.Is(err, hook.ErrFailed) {
					t.Errorf("error %v, want %v", err, hook.ErrFailed)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if out, code := c.wait(); out != "ran\n" || code != 0 {
				t.Errorf("printed %q, code %d", out, code)
			}
			a.State()
			a.State()
		})
	}
}

// fullSocket returns the path of a socket whose queue of connections is full.
func fullSocket(t *testing.T, path string) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return path
}
