package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// said is what a command printed, and its exit code.
type said struct {
	out, err string
	code     int
}

// command is a call of the command line for the node's daemon.
func (n *node) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cache, err := lab.Find()
	if err != nil {
		t.Fatal(err)
	}
	crisp, err := cache.Crisp()
	if err != nil {
		t.Fatal(err)
	}

	flags := []string{"--config", n.path("config.toml"), "--state", n.path("state"), "--listen", n.Endpoint}
	at := 1
	if len(args) > 1 && slices.Contains([]string{"images", "debug", "network"}, args[0]) && !strings.HasPrefix(args[1], "-") {
		at = 2
	}
	args = append(append(append([]string{}, args[:at]...), flags...), args[at:]...)
	cmd := exec.CommandContext(t.Context(), crisp, args...)
	cmd.Env = append(os.Environ(), "TERM=xterm")
	return cmd
}

// finish runs a command to its end.
func finish(t *testing.T, cmd *exec.Cmd) said {
	t.Helper()
	var out, errs bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	cmd.Stderr = &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}
	return said{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// crisp runs a command that must succeed, and returns its output.
func (n *node) crisp(t *testing.T, args ...string) string {
	t.Helper()
	s := finish(t, n.command(t, args...))
	if s.code != 0 || s.err != "" {
		t.Errorf("crisp %q exited with %d: %s", args, s.code, s.err)
	}
	return s.out
}

// refused runs a command that must fail with a code, and say why in one line.
func (n *node) refused(t *testing.T, code int, why string, args ...string) {
	t.Helper()
	s := finish(t, n.command(t, args...))
	if s.code != code || !strings.Contains(s.err, why) || strings.Count(s.err, "\n") != 1 || s.out != "" {
		t.Errorf("crisp %q exited with %d and said %q and %q, want %d and %q", args, s.code, s.out, s.err, code, why)
	}
}

// wantLines requires a line for each pattern in an output, in their order.
func wantLines(t *testing.T, out string, patterns ...string) {
	t.Helper()
	rest := out
	for _, p := range patterns {
		at := regexp.MustCompile("(?m)" + p).FindStringIndex(rest)
		if at == nil {
			t.Errorf("no line %q in\n%s", p, out)
			return
		}
		rest = rest[at[1]:]
	}
}

// podNamed gives a pod a name.
func podNamed(name string) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = name }
}

// TestCommands calls each command that asks the daemon.
func TestCommands(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "lists", func(t *testing.T) { testListCommands(t, n) })
	n.run(t, "formats", func(t *testing.T) { testFormats(t, n) })
	n.run(t, "logs", func(t *testing.T) { testLogsCommand(t, n) })
	n.run(t, "exec", func(t *testing.T) { testExecCommand(t, n) })
	n.run(t, "changes", func(t *testing.T) { testChangeCommands(t, n) })
	n.run(t, "events", func(t *testing.T) { testEventsCommand(t, n) })
	n.run(t, "terminal", func(t *testing.T) { testOnTerminal(t, n) })
	n.run(t, "images", func(t *testing.T) { testImageCommands(t, n) })
}

func testListCommands(t *testing.T, n *node) {
	web, db := n.pod(t, podNamed("web")), n.pod(t, podNamed("db"))
	app := web.start(t, named("app"))
	db.start(t, named("db"), sh("exit 3")).wait(t)

	wantLines(t, n.crisp(t, "pods"), "^POD +STATE +CONTAINERS +ADDRESS +AGE +ID$", `^e2e/db +Ready +0/1 +[0-9.]+ +\d+s +`+db.id[:12]+"$", `^e2e/web +Ready +1/1 +`)
	wantLines(t, n.crisp(t, "pods", "-o", "wide", "web"), "HANDLER +UID$", "^e2e/web .* "+web.id+" +0 +- +lists-")
	wantLines(t, n.crisp(t, "ps"), "^CONTAINER +STATE +SINCE +RESTARTS +IMAGE +ID$", `^e2e/web/app +Running +\d+s +0 +`+busybox+" +"+app.id[:12]+"$")
	wantLines(t, n.crisp(t, "ps", "--all"), `^e2e/db/db +Error \(3\) +\d+s `, "^e2e/web/app +Running")
	if out := n.crisp(t, "ps", "-q"); out != app.id+"\n" {
		t.Errorf("IDs are %q", out)
	}
	wantLines(t, n.crisp(t, "stats"), "^CONTAINER +CPU +MEMORY +DISK +ID$", `^e2e/web/app +\d+\.\d% +\d.* +\d.* +`+app.id[:12]+"$")
	wantLines(t, n.crisp(t, "top", "--once"), `^crisp \S+  pods: 2, 2 ready  containers: 1 running  CPU: `, "^CONTAINER", "^e2e/web/app ")

	n.refused(t, 6, "there is no pod nothing", "pods", "nothing")
	n.refused(t, 6, "crisp ps -a", "stats", "nothing")
	if s := finish(t, n.command(t, "ps", "-o", "xml")); s.code != 1 || !strings.Contains(s.err, "none of table") {
		t.Errorf("a format that does not exist: %+v", s)
	}
}

func testFormats(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	c := p.start(t, named("app"))
	var list []struct{ Namespace, Pod, Name, ID, State, StartedAt string }
	if err := json.Unmarshal([]byte(n.crisp(t, "ps", "-o", "json")), &list); err != nil || len(list) != 1 || list[0].ID != c.id || list[0].StartedAt == "" {
		t.Errorf("as JSON: %+v, %v", list, err)
	}
	wantLines(t, n.crisp(t, "pods", "-o", "yaml"), "^- attempt: 0$", "^  id: "+p.id, "^  name: web$")
	if out := n.crisp(t, "images", "-o", `go-template={{range .}}{{index .tags 0}} {{end}}`); out != busybox+" " {
		t.Errorf("by a template: %q", out)
	}

	for name, want := range map[string][2]string{
		"web": {`{{.status.metadata.name}} {{.info.info.phase}}`, "web ready"}, "web/app": {`{{.status.state}} {{.info.info.config.metadata.name}}`, "CONTAINER_RUNNING app"},
		c.id[:20]: {`{{.status.id}}`, c.id}, busybox: {`{{index .status.repoTags 0}}`, busybox},
	} {
		if out := n.crisp(t, "inspect", name, "-o", "go-template="+want[0]); out != want[1] {
			t.Errorf("inspect %s: %q, want %q", name, out, want[1])
		}
	}
	n.refused(t, 6, "no pod, container or image", "inspect", "nothing")
}

func testLogsCommand(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	one := p.start(t, named("one"), sh("echo 1; echo bad >&2; sleep 100"))
	eventually(t, "the first lines", func() bool { return strings.Contains(slurp(filepath.Join(p.cfg.LogDirectory, "one.log")), "bad") })
	p.start(t, named("two"), sh("echo 2; echo 3; exit 4")).wait(t)

	if s := finish(t, n.command(t, "logs", "web/one")); s.out != "1\n" || s.err != "bad\n" || s.code != 0 {
		t.Errorf("the log is %+v", s)
	}
	if out := n.crisp(t, "logs", "web/two", "--tail", "1"); out != "3\n" {
		t.Errorf("the end of the log is %q", out)
	}
	if out := n.crisp(t, "logs", "web/two", "--timestamps"); !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\S+ 2\n`).MatchString(out) {
		t.Errorf("with times it is %q", out)
	}
	n.refused(t, 6, "e2e/web/one has no attempt before the present one", "logs", "-p", "web/one")
	gone := p.start(t, named("gone"), sh("echo 0"))
	gone.wait(t)
	if err := os.Remove(gone.logFile()); err != nil {
		t.Fatal(err)
	}
	n.refused(t, 1, "it was removed", "logs", "web/gone")
	gone.remove(t)

	one.sh(t, "echo 5 >/proc/1/fd/1")
	eventually(t, "a later line", func() bool { return strings.Contains(slurp(one.logFile()), " 5\n") })
	if s := finish(t, n.command(t, "logs", "web/two", "web/one")); s.out != "[e2e/web/one] 1\n[e2e/web/two] 2\n[e2e/web/two] 3\n[e2e/web/one] 5\n" {
		t.Errorf("both logs are %q", s.out)
	}

	three := p.start(t, named("three"), sh("sleep 100"))
	follow := n.command(t, "logs", "--follow", "web")
	var out bytes.Buffer
	follow.Stdout = &out
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}

	want := "[e2e/web/one] 1\n[e2e/web/two] 2\n[e2e/web/two] 3\n[e2e/web/one] 5\n"
	for i := 6; i < 18; i += 2 {
		three.sh(t, fmt.Sprintf("echo %d >/proc/1/fd/1", i))
		one.sh(t, fmt.Sprintf("echo %d >/proc/1/fd/1", i+1))
		want += fmt.Sprintf("[e2e/web/three] %d\n[e2e/web/one] %d\n", i, i+1)
	}
	one.stop(t, 0)
	three.stop(t, 0)
	if err := follow.Wait(); err != nil {
		t.Error(err)
	}
	if out.String() != want {
		t.Errorf("what was followed is %q, want %q", out.String(), want)
	}
}

func testExecCommand(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	p.start(t, named("app"), sh("read x; echo got $x; sleep 100"), func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	if s := finish(t, n.command(t, "exec", "web", "sh", "-c", "echo out; echo err >&2; exit 7")); s != (said{"out\n", "err\n", 7}) {
		t.Errorf("exec: %+v", s)
	}
	cmd := n.command(t, "exec", "-i", "web/app", "--", "cat")
	cmd.Stdin = strings.NewReader("through\n")
	if s := finish(t, cmd); s != (said{"through\n", "", 0}) {
		t.Errorf("exec -i: %+v", s)
	}
	if s := finish(t, n.command(t, "exec", "-t", "web", "tty")); s.out != "/dev/pts/0\r\n" || s.code != 0 {
		t.Errorf("exec -t: %+v", s)
	}
	if s := finish(t, n.command(t, "exec", "web", "nothing")); s.code != 1 || !strings.Contains(s.err, "nothing") {
		t.Errorf("a program that does not exist: %+v", s)
	}
	n.refused(t, 6, "no pod or container none", "exec", "none", "true")

	attach := n.command(t, "attach", "-i", "web")
	in, err := attach.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out syncBuffer
	attach.Stdout = &out
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "this")
	eventually(t, "the attached output", func() bool { return out.String() == "got this\n" })
	if err := attach.Process.Signal(unix.SIGINT); err != nil {
		t.Error(err)
	}
	if err := attach.Wait(); err != nil {
		t.Errorf("attach: %v", err)
	}
}

func testChangeCommands(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	c := p.start(t, named("app"))
	other := p.start(t, named("other"))
	n.refused(t, 6, "several containers", "exec", "web", "true")
	n.refused(t, 1, "it is running", "rm", "web/app")
	n.refused(t, 6, "nothing", "stop", "web/app", "nothing")
	n.refused(t, 6, "no pod nothing", "network", "show", "nothing")
	if st := c.status(t); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a refused stop has left the container %s", st.State)
	}

	if out := n.crisp(t, "stop", "-t", "0s", "web/app"); out != "e2e/web/app\n" {
		t.Errorf("stop printed %q", out)
	}
	if out := n.crisp(t, "rm", c.id[:10]); out != "e2e/web/app\n" {
		t.Errorf("rm printed %q", out)
	}
	n.crisp(t, "stop", "--timeout", "0s", "web")
	if st := other.status(t); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("with its pod the container is %s", st.State)
	}
	n.crisp(t, "rm", "e2e/web")
	if out := n.crisp(t, "pods", "-q"); out != "" {
		t.Errorf("pods %q are left", out)
	}
	n.pod(t, podNamed("web")).start(t, named("app"))
	n.crisp(t, "rm", "--force", "web")
}

func testEventsCommand(t *testing.T, n *node) {
	for _, args := range [][]string{{"events"}, {"events", "--json"}} {
		cmd := n.command(t, args...)
		var out syncBuffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The stream has no beginning that could be waited for.
		eventually(t, "an event", func() bool {
			p := n.pod(t, podNamed("web"))
			p.start(t, named("app"), sh("exit 3")).wait(t)
			p.remove(t)
			return strings.Contains(out.String(), "deleted")
		})
		if err := cmd.Process.Signal(unix.SIGINT); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("events: %v", err)
		}

		if len(args) == 1 {
			wantLines(t, out.String(), `^\d\d:\d\d:\d\d\.\d{3}  created  .* e2e/web$`, "started .* e2e/web$", "created .* e2e/web/app$", `stopped .* e2e/web/app Error \(3\)$`)
		} else {
			wantLines(t, out.String(), `^{"time":".*"change":"stopped","object":"e2e/web/app".*"exitCode":3,"reason":"Error"}$`)
		}
	}
}

func testImageCommands(t *testing.T, n *node) {
	wantLines(t, n.crisp(t, "images"), "^IMAGE +SIZE +ID$", "^"+busybox+` +\d.*B +[0-9a-f]{12}$`)
	if out := n.crisp(t, "pull", nginx); !strings.Contains(out, "sha256:") {
		t.Errorf("pull printed %q", out)
	}
	wantLines(t, n.crisp(t, "images", "-o", "wide"), "busybox", "nginx.* false ")
	if out := n.crisp(t, "rmi", nginx); out != nginx+"\n" {
		t.Errorf("rmi printed %q", out)
	}
	n.refused(t, 6, "no image", "rmi", nginx)
	n.refused(t, 1, "pull registry.k8s.io/none:1", "pull", "registry.k8s.io/none:1")
}

// testOnTerminal requires colors and movement only on a terminal that has them.
func testOnTerminal(t *testing.T, n *node) {
	n.pod(t, podNamed("web")).start(t, named("app"))
	for term, smart := range map[string]bool{"xterm": true, "dumb": false} {
		cmd := n.command(t, "ps")
		cmd.Env = append(cmd.Env, "TERM="+term)
		if out := onTerminal(t, cmd, nil); strings.Contains(out, "\x1b[32mRunning\x1b[0m") != smart || strings.Contains(out, "\x1b") != smart {
			t.Errorf("ps on a %s terminal: %q", term, out)
		}

		cmd = n.command(t, "top", "-d", "100ms")
		cmd.Env = append(cmd.Env, "TERM="+term)
		out := onTerminal(t, cmd, func(out string) bool { return smart && strings.Count(out, "\x1b[2J") > 2 })
		if strings.Contains(out, "\x1b") != smart || strings.Count(out, "e2e/web/app") > 1 != smart {
			t.Errorf("top on a %s terminal: %q", term, out)
		}
	}

	cmd := n.command(t, "ps")
	cmd.Env = append(cmd.Env, "NO_COLOR=1")
	if out := onTerminal(t, cmd, nil); strings.Contains(out, "\x1b") {
		t.Errorf("without colors: %q", out)
	}
	out := onTerminal(t, n.command(t, "pull", nginx), nil)
	if !strings.Contains(out, "\x1b[K") || !strings.Contains(out, "sha256:") {
		t.Errorf("the progress of a pull: %q", out)
	}
	n.crisp(t, "rmi", nginx)

	// The size comes soon after the start. Until then stty prints nothing, and
	// sometimes succeeds.
	const size = "until stty size 2>/dev/null | grep 100; do sleep 0.1; done"
	if out := onTerminal(t, n.command(t, "exec", "-it", "web", "sh", "-c", size), nil); out != "40 100\r\n" {
		t.Errorf("the terminal of a command has the size %q", out)
	}
}

// TestCommandsWithoutDaemon requires of each command one sentence that says what is
// wrong, and its exit code.
func TestCommandsWithoutDaemon(t *testing.T) {
	n := newNode(t, lab.Options{})
	commands := [][]string{
		{"pods"}, {"ps"}, {"images"}, {"stats"}, {"top"}, {"events"}, {"inspect", "x"}, {"logs", "x"}, {"exec", "x", "y"},
		{"attach", "x"}, {"stop", "x"}, {"checkpoint", "x", "y"}, {"rm", "x"}, {"pull", "x"}, {"rmi", "x"}, {"images", "push", "x"},
		{"why", "x"}, {"df"}, {"debug", "state"}, {"debug", "goroutines"}, {"debug", "profile", "heap"},
	}
	with := func(t *testing.T, socket string, code int, why string) {
		t.Helper()
		old := n.Endpoint
		n.Endpoint = "unix://" + socket
		defer func() { n.Endpoint = old }()
		for _, c := range commands {
			n.refused(t, code, why, c...)
		}
	}

	with(t, n.path("state", "admin.sock"), 5, "not a socket of crisp")
	with(t, n.path("config.toml"), 5, "not a socket of crisp")
	silent, err := net.Listen("unix", n.path("other.sock"))
	if err != nil {
		t.Fatal(err)
	}
	silent.Close()
	with(t, n.path("other.sock"), 3, "no daemon runs")
	with(t, n.path("none.sock"), 3, "no daemon runs on "+n.path("none.sock"))

	cmd := n.command(t, "ps")
	cmd.Args = []string{cmd.Path, "ps", "--listen", n.Endpoint}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if s := finish(t, cmd); s.code != 4 || s.err != "crisp: no rights to use "+strings.TrimPrefix(n.Endpoint, "unix://")+": run this as root\n" {
		t.Errorf("without rights: %+v", s)
	}

	n.Kill()
	with(t, strings.TrimPrefix(n.Endpoint, "unix://"), 3, "no daemon runs")
	n.begin(t)
}
