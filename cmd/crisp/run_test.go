package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/test/testkit"
	"crisp/test/testkit/agent"
	"crisp/test/testkit/lab"
)

// bundle makes a bundle that runs a script with the host's programs, and the
// command that runs it.
func bundle(t *testing.T, script string, change func(*specs.Spec)) *exec.Cmd {
	testkit.Root(t)
	testkit.Leaks(t, "crisp/run-", "crisp-run-")
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}

	crisp, err := cache.Crisp()
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	t.Setenv("TMPDIR", t.TempDir())
	s := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Cwd: "/"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.UTSNamespace}}},
	}

	for _, host := range []string{"/bin", "/usr", "/lib", "/lib64"} {
		if _, err := os.Stat(host); err == nil {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: host, Type: "bind", Source: host, Options: []string{"rbind", "ro"}})
		}
	}

	if change != nil {
		change(s)
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}

	if err := errors.Join(os.Mkdir(filepath.Join(dir, "rootfs"), 0o755), os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(crisp, "run", dir)
	cmd.Stderr = os.Stderr
	return cmd
}

func wantExit(t *testing.T, err error, code int) {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("exited with %v, want exit code %d", err, code)
	}
}

func TestRunPassesStreamsAndCode(t *testing.T) {
	cmd := bundle(t, "cat; echo $$; : >/dev/null; exit 7", nil)
	cmd.Stdin = strings.NewReader("hello\n")
	out, err := cmd.Output()
	wantExit(t, err, 7)
	if string(out) != "hello\n1\n" {
		t.Errorf("printed %q", out)
	}
}

func TestRunPassesSignals(t *testing.T) {
	cmd := bundle(t, "trap 'exit 9' TERM; echo ready; sleep 100 & wait", nil)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}

	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Errorf("printed %q, %v", line, err)
	}

	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	wantExit(t, cmd.Wait(), 9)
}

func TestRunGivesTerminal(t *testing.T) {
	cmd := bundle(t, "test -t 0 && test -t 1 && echo terminal", func(s *specs.Spec) { s.Process.Terminal = true })
	out, err := cmd.Output()
	if err != nil || string(out) != "terminal\r\n" {
		t.Errorf("printed %q, %v", out, err)
	}
}

func TestRunNamesWhatIsWrong(t *testing.T) {
	cmd := bundle(t, "", func(s *specs.Spec) { s.Process.Args = []string{"/nothing"} })
	cmd.Stderr = nil
	_, err := cmd.Output()
	wantExit(t, err, 1)
	var exit *exec.ExitError
	if errors.As(err, &exit) && !strings.Contains(string(exit.Stderr), `exec "/nothing"`) {
		t.Errorf("stderr is %q", exit.Stderr)
	}
}

// TestRunInNamedGroups places containers in cgroups of other names than crisp's.
func TestRunInNamedGroups(t *testing.T) {
	name := "crisp-run-test-" + strconv.Itoa(os.Getpid())
	for path, want := range map[string]string{
		"/" + name:                 "/" + name,
		"/" + name + "/deep/er":    "/" + name + "/deep/er",
		name:                       "/crisp/" + name,
		"../" + name + "/x/../one": "/crisp/" + name + "/one",
	} {
		cmd := bundle(t, "tail -n 1 /proc/self/cgroup", func(s *specs.Spec) { s.Linux.CgroupsPath = path })
		cmd.Args = slices.Insert(cmd.Args, 2, "--cgroup-driver=cgroupfs")
		out, err := cmd.Output()
		if err != nil || !strings.HasSuffix(string(out), ":"+want+"\n") {
			t.Errorf("%s: printed %q, %v, want %s", path, out, err, want)
		}
	}
}

// TestRunLeavesOthersGroupsAlone refuses a cgroup that has a process, which
// would be killed with the container.
func TestRunLeavesOthersGroupsAlone(t *testing.T) {
	for _, path := range []string{"/", ".."} {
		cmd := bundle(t, "true", func(s *specs.Spec) { s.Linux.CgroupsPath = path })
		cmd.Args = slices.Insert(cmd.Args, 2, "--cgroup-driver=cgroupfs")
		cmd.Stderr = nil
		_, err := cmd.Output()
		wantExit(t, err, 1)
	}

	first := bundle(t, "trap 'exit 9' TERM; echo ready; sleep 100 & wait", func(s *specs.Spec) { s.Linux.CgroupsPath = "/crisp-run-test-taken" })
	first.Args = slices.Insert(first.Args, 2, "--cgroup-driver=cgroupfs")
	out, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}

	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Errorf("printed %q, %v", line, err)
	}

	second := bundle(t, "true", func(s *specs.Spec) { s.Linux.CgroupsPath = "/crisp-run-test-taken" })
	second.Args = slices.Insert(second.Args, 2, "--cgroup-driver=cgroupfs")
	second.Stderr = nil
	_, err = second.Output()
	wantExit(t, err, 1)
	var exit *exec.ExitError
	if errors.As(err, &exit) && !strings.Contains(string(exit.Stderr), "already has") {
		t.Errorf("stderr is %q", exit.Stderr)
	}

	if err := first.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	wantExit(t, first.Wait(), 9)
}

func TestRunWarnsOfCapabilities(t *testing.T) {
	cmd := bundle(t, "grep CapBnd /proc/self/status", func(s *specs.Spec) {
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL", "CAP_NO_SUCH"}}
	})
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil || string(out) != "CapBnd:\t0000000000000020\n" || !strings.Contains(said.String(), `warning: capability "CAP_NO_SUCH"`) {
		t.Errorf("printed %q, %v, stderr %q", out, err, said.String())
	}
}

func TestRunSetsHome(t *testing.T) {
	for env, want := range map[string]string{"": "/srv/web", "HOME=": "/srv/web", "HOME=/else": "/else"} {
		cmd := bundle(t, "echo $HOME", func(s *specs.Spec) {
			s.Process.User.UID = 1234
			s.Process.Env = append(s.Process.Env, env)
		})
		etc := filepath.Join(cmd.Args[len(cmd.Args)-1], "rootfs/etc")
		if err := errors.Join(os.Mkdir(etc, 0o755), os.WriteFile(filepath.Join(etc, "passwd"), []byte("web:x:1234:1234::/srv/web:/bin/sh\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
		if out, err := cmd.Output(); err != nil || string(out) != want+"\n" {
			t.Errorf("with %q it is %q, %v, want %s", env, out, err, want)
		}
	}
}

// TestRunHooks runs the hooks of a bundle.
func TestRunHooks(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	note := func(word string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo " + word + " >>" + log}}}
	}
	hooks := &specs.Hooks{
		//lint:ignore SA1019 a bundle may still use the old field
		Prestart: note("prestart"), CreateRuntime: note("createRuntime"), CreateContainer: note("createContainer"),
		Poststart: append(note("poststart"), specs.Hook{Path: "/bin/false"}), Poststop: note("poststop"),
		StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "test $$ != 1 -a -z $HOME"}}},
	}
	cmd := bundle(t, "exit 7", func(s *specs.Spec) { s.Hooks = hooks })
	wantExit(t, cmd.Run(), 7)
	data, err := os.ReadFile(log)
	if want := "prestart\ncreateRuntime\ncreateContainer\npoststart\npoststop\n"; err != nil || string(data) != want {
		t.Errorf("hooks that ran: %q, %v, want %q", data, err, want)
	}
}

// TestRunHookFails has a hook fail: the container does not start, and what the
// hook did is undone by poststop hooks.
func TestRunHookFails(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	cmd := bundle(t, "echo ran", func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{
			CreateContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo broken >&2; exit 3"}}},
			Poststop:        []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo poststop >>" + log}}},
		}
	})
	var text strings.Builder
	cmd.Stderr = &text
	out, err := cmd.Output()
	if err == nil || len(out) > 0 || !strings.Contains(text.String(), "createContainer hook /bin/sh: hook failed: exit code 3: broken") {
		t.Errorf("printed %q, %v: %s", out, err, text.String())
	}
	if data, err := os.ReadFile(log); err != nil || string(data) != "poststop\n" {
		t.Errorf("hooks that ran: %q, %v", data, err)
	}
}

// TestRunAsksAgent has an agent decide about calls of a bundle's container.
func TestRunAsksAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent")
	a := agent.Start(t, socket, func(agent.Call) agent.Answer { return agent.Answer{Err: unix.EXDEV} })
	asking := func(socket string) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow, ListenerPath: socket, ListenerMetadata: "opaque",
				Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActNotify}},
			}
		}
	}
	out, err := bundle(t, "mkdir /x 2>&1 | sed 's/.*: //'; ls -l /proc/1/fd | grep -c seccomp; true", asking(socket)).Output()
	if err != nil || string(out) != "Invalid cross-device link\n0\n" {
		t.Errorf("printed %q, %v", out, err)
	}
	if state := a.State(); state.Metadata != "opaque" || state.Pid == 0 {
		t.Errorf("the agent is told %+v", state)
	}

	cmd := bundle(t, "echo ran", asking(socket+"-none"))
	cmd.Stderr = nil
	out, err = cmd.Output()
	wantExit(t, err, 1)
	var exit *exec.ExitError
	if len(out) > 0 || errors.As(err, &exit) && !strings.Contains(string(exit.Stderr), "seccomp agent") {
		t.Errorf("without its agent it printed %q and %q", out, exit.Stderr)
	}
}

// TestRunRefusesClass requests a class of Intel RDT that no node has.
func TestRunRefusesClass(t *testing.T) {
	cmd := bundle(t, "echo ran", func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "none-of-this-name"} })
	cmd.Stderr = nil
	out, err := cmd.Output()
	wantExit(t, err, 1)
	var exit *exec.ExitError
	if len(out) > 0 || errors.As(err, &exit) && !strings.Contains(string(exit.Stderr), "lacks Intel RDT") {
		t.Errorf("printed %q and %q", out, exit.Stderr)
	}
}
