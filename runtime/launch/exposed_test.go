package launch

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/seccomp"
	"crisp/test/testkit/pace"
)

// stopExposed makes the process of a plan wait for its standard input as soon as
// others see it.
func stopExposed(p *plan.Plan) {
	i := slices.IndexFunc(p.Steps, func(s plan.Step) bool { return s.Exposed })
	if i < 0 {
		return
	}
	p.Steps = slices.Insert(p.Steps, i+1, plan.Step{
		Name: "stop where others see it", Call: unix.SYS_READ, Save: plan.NoReg, CondReg: plan.NoReg,
		Args: []plan.Arg{{}, {Kind: plan.ArgBuf, Int: 1}, {Int: 1}},
	})
}

// exposed waits for a child that is visible in another PID namespace before it
// has executed, and returns its PID.
func exposed(t *testing.T) int {
	t.Helper()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}

	reads := fmt.Sprintf("%d 0x0 ", unix.SYS_READ) // from its standard input
	for end := time.Now().Add(pace.Scale(20 * time.Second)); time.Now().Before(end); time.Sleep(time.Millisecond) {
		lists, err := filepath.Glob("/proc/self/task/*/children")
		if err != nil {
			t.Fatal(err)
		}

		for _, list := range lists {
			children, _ := os.ReadFile(list) // a thread may be gone
			for _, child := range strings.Fields(string(children)) {
				exe, _ := os.Readlink("/proc/" + child + "/exe")
				wchan, _ := os.ReadFile("/proc/" + child + "/syscall")
				pid, err := strconv.Atoi(child)
				if err == nil && exe == self && len(strings.Fields(statusOf(t, pid, "NSpid"))) > 1 && strings.HasPrefix(string(wchan), reads) {
					return pid
				}
			}
		}
	}

	t.Fatal("no process was exposed")
	return 0
}

func statusOf(t *testing.T, pid int, field string) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "gone"
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return "none"
}

// TestExposedIsUnprivileged stops processes where others in their PID namespace
// see them before they execute. They must have no more than the program will
// have.
func TestExposedIsUnprivileged(t *testing.T) {
	secret := strings.Repeat("the environment of another pod ", 8)
	for _, userns := range []bool{false, true} {
		for _, kind := range []string{"exec", "start next to it"} {
			for _, noNew := range []bool{false, true} {
				for _, filter := range []*specs.LinuxSeccomp{nil, seccomp.RuntimeDefault([]string{"CAP_SYS_PTRACE"})} {
					name := fmt.Sprintf("%s, user namespace %v, no new privileges %v, filter %v", kind, userns, noNew, filter != nil)
					t.Run(name, func(t *testing.T) {
						b := newSharing(t, userns)
						change := func(s *specs.Spec) {
							setNamespace(s, specs.PIDNamespace, "ns/pid")
							s.Process.NoNewPrivileges = noNew
							s.Process.User = specs.User{UID: 1234, GID: 1235, AdditionalGids: []uint32{7}}
							s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_PTRACE"}}
							s.Linux.Seccomp = filter
						}

						c, s := b.running(change)
						b.k.change = stopExposed
						stdin, poke, err := os.Pipe()
						if err != nil {
							t.Fatal(err)
						}
						defer stdin.Close()
						defer poke.Close()

						done := make(chan error, 1)
						var e *started
						go func() {
							var err error
							held := Held{"stdin": stdin}
							if kind == "exec" {
								p := *s.Process
								p.Args = []string{"sh", "-c", "cat"}
								e, err = b.exec(c, s, &p, Request{Held: held})
							} else {
								second := b.spec("cat")
								change(second)
								e, err = b.start(second, held, Request{})
							}
							done <- err
						}()

						pid := exposed(t)
						checkUnprivileged(t, pid, c.Pid, secret)
						if _, err := poke.Write([]byte{0}); err != nil {
							t.Fatal(err)
						}

						if err := <-done; err != nil {
							t.Fatal(err)
						}
						same(t, pid, e.Pid, c.Pid)
					})
				}
			}
		}
	}
	runtime.KeepAlive(secret)
}

// checkUnprivileged checks a process that is exposed in the container of another.
func checkUnprivileged(t *testing.T, pid, other int, secret string) {
	t.Helper()
	for _, link := range []string{"root", "ns/user", "ns/pid", "ns/net", "ns/ipc", "ns/uts"} {
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, link))
		want, werr := os.Readlink(fmt.Sprintf("/proc/%d/%s", other, link))
		if err != nil || werr != nil || got != want {
			t.Errorf("%s is %s, want %s (%v, %v)", link, got, want, err, werr)
		}
	}

	for _, field := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters"} {
		if got, want := statusOf(t, pid, field), statusOf(t, other, field); got != want {
			t.Errorf("%s is %q, want %q as in the container", field, got, want)
		}
	}

	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}

	sockets := 0
	for _, fd := range fds {
		n, _ := strconv.Atoi(fd.Name())
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if n > 2 && !strings.HasPrefix(link, "socket:") {
			t.Errorf("descriptor %d is %s", n, link)
		}
		if n > 2 {
			sockets++
		}
	}

	if sockets != 1 {
		t.Errorf("%d sockets are open", sockets)
	}
	if !memoryHas(t, os.Getpid(), secret) || memoryHas(t, pid, secret) {
		t.Error("memory of another pod is in the process, or the search is broken")
	}

	for _, name := range []string{"environ", "cmdline"} {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name)); len(b) > 0 {
			t.Errorf("%s is %q", name, b)
		}
	}
}

// memoryHas searches all mapped memory.
func memoryHas(t *testing.T, pid int, secret string) bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}

	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()

	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "[v") {
			continue
		}
		var from, to int64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}

		content, err := io.ReadAll(io.NewSectionReader(mem, from, to-from))
		if err != nil {
			continue // not readable
		}
		if bytes.Contains(content, []byte(secret)) {
			return true
		}
	}

	return false
}

// same checks that the exposed process is the one that executed, and a session leader.
func same(t *testing.T, pid, started, other int) {
	t.Helper()
	if pid != started {
		t.Errorf("process %d was exposed, process %d executed", pid, started)
	}
	sid, err := unix.Getsid(pid)
	if err != nil || sid != pid {
		t.Errorf("session %d of process %d: %v", sid, pid, err)
	}
	if got, want := statusOf(t, pid, "CapBnd"), statusOf(t, other, "CapBnd"); got != want {
		t.Errorf("bounding set %s, want %s", got, want)
	}
}
