package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/spawn"
	"crisp/test/testkit"
	"crisp/test/testkit/inventory"
	"crisp/test/testkit/pace"
)

func TestContainerRunsAndLogs(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	sh := newShell(t, "web", "echo hello; echo oops >&2; printf rest; exit 7")
	st := sh.start(t, c)
	x := awaitExit(t, c, "web")
	if x.Code != 7 || x.Signal != 0 || x.Pid != st.Pid || x.Kind != Container {
		t.Errorf("exit = %+v, want code 7 of pid %d", x, st.Pid)
	}

	if d := time.Since(x.At); d < 0 || d > patience || st.StartedAt.After(x.At) {
		t.Errorf("started %v, ended %v", st.StartedAt, x.At)
	}
	for _, want := range []string{`stdout F hello\n`, `stderr F oops\n`, `stdout P rest\n`} {
		if !regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ` + want).Match(sh.read(t)) {
			t.Errorf("log lacks %q:\n%s", want, sh.read(t))
		}
	}
	forget(t, c, "web")
}

func TestExitBySignal(t *testing.T) {
	testkit.Root(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()
	newShell(t, "web", "kill -9 $$").start(t, c)
	if x := awaitExit(t, c, "web"); x.Code != 137 || x.Signal != 9 {
		t.Errorf("exit = %+v", x)
	}
	forget(t, c, "web")
}

func TestFailedStepLeavesNothing(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	for _, forked := range []bool{false, true} {
		p := newProgram("start container web")
		if forked {
			p.fork()
		}

		p.gate()
		p.do("mount /proc", unix.SYS_CHDIR, str("/no such directory"))
		p.exec("/bin/true")
		_, err := c.Start(testContext(t), Request{ID: "web", Kind: Container, Plan: &p.Plan})
		var step *spawn.StepError
		if !errors.As(err, &step) || step.Step != "mount /proc" || step.Plan != "start container web" || !errors.Is(err, unix.ENOENT) {
			t.Errorf("error %v", err)
		}

		if list := listAll(t, c); len(list) != 0 {
			t.Errorf("left %+v", list)
		}
	}

	p := newProgram("start container web")
	p.do("die", unix.SYS_EXIT_GROUP, num(3))
	if _, err := c.Start(testContext(t), Request{ID: "web", Kind: Container, Plan: &p.Plan}); !errors.Is(err, spawn.ErrDied) || !strings.HasSuffix(err.Error(), "with exit code 3") {
		t.Errorf("error %v", err)
	}

	p = newProgram("start container web")
	p.do("getpid", unix.SYS_GETPID).Save = 0
	p.do("die", unix.SYS_KILL, plan.Arg{Kind: plan.ArgReg, Int: 0}, num(int64(unix.SIGKILL)))
	if _, err := c.Start(testContext(t), Request{ID: "web", Kind: Container, Plan: &p.Plan}); !errors.Is(err, spawn.ErrDied) || !strings.HasSuffix(err.Error(), "by signal 9") {
		t.Errorf("error %v", err)
	}

	p = newProgram("start container web")
	p.do("getpid", unix.SYS_GETPID)
	if _, err := c.Start(testContext(t), Request{ID: "web", Kind: Container, Plan: &p.Plan}); !errors.Is(err, ErrInvalid) {
		t.Errorf("plan without execve: error %v", err)
	}
	awaitChildless(t, c)
}

func TestInvalidRequests(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	good := func() Request {
		p := newProgram("start")
		p.exec("/bin/true")
		return Request{ID: "web", Kind: Container, Plan: &p.Plan}
	}

	for name, spoil := range map[string]func(*Request){
		"no plan":           func(r *Request) { r.Plan = nil },
		"id with a slash":   func(r *Request) { r.ID = "../web" },
		"no id":             func(r *Request) { r.ID = "" },
		"kind":              func(r *Request) { r.Kind = 9 },
		"input missing":     func(r *Request) { r.Plan.Inputs = make([]plan.Input, 1) },
		"nil file":          func(r *Request) { r.Files = []*os.File{nil} },
		"bad plan":          func(r *Request) { r.Plan.Steps[0].Save = 99 },
		"hold without gate": func(r *Request) { r.Hold = true },
		"pause unheld":      func(r *Request) { r.Pause = true },
		"log without file":  func(r *Request) { r.Log = &LogConfig{} },
		"no terminal":       func(r *Request) { r.Terminal = true },
	} {
		r := good()
		spoil(&r)
		if _, err := c.Start(testContext(t), r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}

	r := good()
	r.Gate = func(int) error { return nil }
	if _, err := c.Start(testContext(t), r); !errors.Is(err, ErrNoGate) {
		t.Errorf("error %v", err)
	}

	if list := listAll(t, c); len(list) != 0 {
		t.Errorf("left %+v", list)
	}
	awaitChildless(t, c)
}

func TestGate(t *testing.T) {
	testkit.Root(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()
	for _, forked := range []bool{false, true} {
		p := newProgram("start container web")
		if forked {
			p.fork()
		}

		p.gate()
		p.gate() // passed without asking
		p.exec("/bin/sleep", "60")
		asked := 0
		req := Request{ID: "web", Kind: Container, Plan: &p.Plan, Gate: func(pid int) error {
			asked = pid
			return nil
		}}

		st, err := c.Start(testContext(t), req)
		if err != nil {
			t.Fatal(err)
		}

		if asked != st.Pid {
			t.Errorf("gate saw pid %d, want %d", asked, st.Pid)
		}
		end(t, c, "web", st)

		refusal := errors.New("no scope")
		req.Gate = func(int) error { return refusal }
		if _, err := c.Start(testContext(t), req); !errors.Is(err, refusal) {
			t.Errorf("refused gate: error %v", err)
		}

		ctx, cancel := context.WithCancel(testContext(t))
		req.Gate = func(int) error { cancel(); return nil }
		if st, err := c.Start(ctx, req); err == nil {
			end(t, c, "web", st) // it was faster
		} else if !errors.Is(err, context.Canceled) {
			t.Errorf("canceled at gate: error %v", err)
		}
	}
	awaitChildless(t, c)
}

// TestCancel cancels starts that hang in a step, before and after a fork.
func TestCancel(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}

	for _, forked := range []bool{false, true} {
		p := newProgram("start container web")
		if forked {
			p.fork()
		}

		p.do("hang", unix.SYS_OPENAT, num(unix.AT_FDCWD), str(fifo), num(unix.O_RDONLY), num(0))
		p.exec("/bin/true")
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		_, err := c.Start(ctx, Request{ID: "web", Kind: Container, Plan: &p.Plan})
		cancel()

		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if list := listAll(t, c); len(list) != 0 {
			t.Errorf("left %+v", list)
		}
	}
	awaitChildless(t, c)
}

func TestHeldSandbox(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	p := newProgram("make sandbox pod")
	p.Clone.Flags = unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNS
	p.do("set host name", unix.SYS_SETHOSTNAME, str("pod"), num(3))
	p.gate()

	st, err := c.Start(testContext(t), Request{ID: "pod", Kind: Sandbox, Plan: &p.Plan, Hold: true})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()

	if st.Pid != 0 || st.PidFD != nil || st.Terminal != nil {
		t.Errorf("started %+v", st)
	}
	checkNamespaces(t, st.Namespaces, "net", "uts", "ipc", "mnt")
	awaitChildless(t, c)
	c.Close()

	// Another daemon finds them, and a container can join them.
	c = connectTest(t, dir)
	defer c.Close()
	list := listAll(t, c)
	if len(list) != 1 || list[0].ID != "pod" || list[0].Kind != Sandbox || list[0].Pid != 0 || list[0].Exit != nil {
		t.Fatalf("listed %+v", list)
	}

	checkNamespaces(t, list[0].Namespaces, "net", "uts", "ipc", "mnt")
	sh := newShell(t, "web", "cat /proc/sys/kernel/hostname")
	uts := (&program{*sh.req.Plan})
	join := uts.input("uts")
	sh.req.Files = append(sh.req.Files, list[0].Namespaces["uts"])
	sh.req.Plan.Inputs = uts.Inputs
	sh.req.Plan.Steps = append([]plan.Step{{Name: "join", Call: unix.SYS_SETNS, Args: []plan.Arg{join, num(0)}, Save: plan.NoReg}}, sh.req.Plan.Steps...)
	sh.start(t, c)
	awaitExit(t, c, "web")

	if !bytes.HasSuffix(sh.read(t), []byte(" stdout F pod\n")) {
		t.Errorf("log %q", sh.read(t))
	}
	forget(t, c, "web", "pod")
}

func checkNamespaces(t *testing.T, got map[string]*os.File, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("got %d namespaces, want %v", len(got), want)
	}

	for _, name := range want {
		if got[name] == nil {
			t.Errorf("no %s namespace", name)
			continue
		}

		own, err := os.Stat("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := got[name].Stat(); err != nil || os.SameFile(st, own) {
			t.Errorf("%s namespace is the host's, error %v", name, err)
		}
	}
}

// TestPauseIsInit runs the pause program as PID 1 of a pod: it stays, and
// orphans are reaped.
func TestPauseIsInit(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	p := newProgram("make sandbox pod")
	p.Clone.Flags = unix.CLONE_NEWPID
	p.gate()
	p.do("exec pause", unix.SYS_EXECVEAT, p.input("pause"), str(""), strs("pause"), strs(), num(unix.AT_EMPTY_PATH))

	image := pauseImage(t)
	st, err := c.Start(testContext(t), Request{ID: "pod", Kind: Sandbox, Plan: &p.Plan, Files: []*os.File{image}, Hold: true, Pause: true})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()

	checkNamespaces(t, st.Namespaces, "pid")
	if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", st.Pid)); string(comm) != "pause\x00" {
		t.Errorf("command line %q", comm)
	}

	// A process joins the pod and leaves an orphan behind.
	sh := newShell(t, "web", "(true & echo $!) ; sleep 60")
	w := program{*sh.req.Plan}
	join := w.input("pid")
	steps := w.Steps
	w.Steps = nil
	w.do("join", unix.SYS_SETNS, join, num(0))
	w.fork()
	w.Steps = append(w.Steps, steps...)
	sh.req.Plan, sh.req.Files = &w.Plan, append(sh.req.Files, st.Namespaces["pid"])

	web := sh.start(t, c)
	eventually(t, "orphan reaped", func() bool {
		return bytes.HasSuffix(sh.read(t), []byte("\n")) && len(childrenOf(t, st.Pid)) == 0
	})
	end(t, c, "web", web)
	end(t, c, "pod", st)
}

func TestTerminal(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	out, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}

	p := newProgram("start container web")
	reg := func(r int64) plan.Arg { return plan.Arg{Kind: plan.ArgReg, Int: r} }
	p.do("make session", unix.SYS_SETSID)
	p.do("open terminal", unix.SYS_OPENAT, num(unix.AT_FDCWD), str("/dev/ptmx"), num(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC), num(0)).Save = 0
	p.do("unlock", unix.SYS_IOCTL, reg(0), num(unix.TIOCSPTLCK), plan.Arg{Kind: plan.ArgBytes, Bytes: make([]byte, 4)})
	p.do("open other side", unix.SYS_IOCTL, reg(0), num(unix.TIOCGPTPEER), num(unix.O_RDWR|unix.O_NOCTTY)).Save = 1
	p.do("control", unix.SYS_IOCTL, reg(1), num(unix.TIOCSCTTY), num(0))
	p.do("pass", unix.SYS_SENDMSG, plan.Arg{Kind: plan.ArgBack}, plan.Arg{Kind: plan.ArgPassFD, Int: 0}, num(0))

	for fd := range int64(3) {
		p.do("set stdio", unix.SYS_DUP3, reg(1), num(fd), num(0))
	}

	// The kernel hangs up a terminal when its session leader exits, and may
	// drop its last output.
	p.exec("/bin/sh", "-c", "tty; read x; echo got $x; sleep 0.5; exit 4")
	relay, err := NewTerminalStream(0)
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()

	st, err := c.Start(testContext(t), Request{ID: "web", Kind: Container, Plan: &p.Plan, Terminal: true, Log: &LogConfig{Stdout: relay, Out: out}})
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()

	r, w := pipe(t)
	defer r.Close()
	err = c.Attach(testContext(t), "web", w, nil)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}

	if _, err := st.Terminal.WriteString("typed\n"); err != nil {
		t.Fatal(err)
	}
	if x := awaitExit(t, c, "web"); x.Code != 4 {
		t.Errorf("exit %+v", x)
	}

	log, err := os.ReadFile(out.Name())
	if err != nil || !regexp.MustCompile(`(?s) stdout F /dev/pts/\d+\r\n.* stdout F got typed\r\n$`).Match(log) {
		t.Errorf("log %q, error %v", log, err)
	}

	if got, err := io.ReadAll(r); err != nil || !strings.HasSuffix(string(got), "got typed\r\n") {
		t.Errorf("attached reader got %q, error %v", got, err)
	}
	forget(t, c, "web")
}

// TestDaemonRestart has a container outlive its daemon, and one end meanwhile.
func TestDaemonRestart(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	stdinR, stdinW := pipe(t)
	defer stdinR.Close()
	defer stdinW.Close()

	long := newShell(t, "long", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
	long.req.Keep = []Named{{"stdin", stdinW}}
	st := long.start(t, c)
	short := newShell(t, "short", "sleep 0.2; exit 7").start(t, c)
	c.Close()
	eventually(t, "exit record", func() bool {
		exits, err := ReadExits(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(exits) == 1 && exits[0].ID == "short" && exits[0].Code == 7
	})

	c = connectTest(t, dir)
	defer c.Close()
	entries := map[string]Entry{}
	for _, e := range listAll(t, c) {
		entries[e.ID] = e
	}

	e := entries["long"]
	if len(entries) != 2 || e.Pid != st.Pid || e.PidFD == nil || e.Exit != nil || e.Kind != Container || e.Kept["stdin"] == nil || !e.StartedAt.Equal(st.StartedAt) {
		t.Fatalf("listed %+v", entries)
	}

	if x := entries["short"].Exit; x == nil || x.Code != 7 || x.Pid != short.Pid || entries["short"].PidFD != nil {
		t.Errorf("short ended with %+v", x)
	}
	before := len(long.read(t))
	eventually(t, "log continues", func() bool { return len(long.read(t)) > before })
	if err := unix.PidfdSendSignal(int(e.PidFD.Fd()), unix.SIGTERM, nil, 0); err != nil {
		t.Fatal(err)
	}

	if x := awaitExit(t, c, "long"); x.Code != 143 {
		t.Errorf("exit %+v", x)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(long.read(t))), "\n") {
		if !strings.HasSuffix(line, fmt.Sprintf(" stdout F %d", i+1)) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}

	forget(t, c, "long", "short")
	if exits, err := ReadExits(dir); err != nil || len(exits) != 0 {
		t.Errorf("exit records %v, error %v", exits, err)
	}
}

// TestDaemonDiesDuringStart ends a daemon whose start is under way: it must not
// take effect after the next one has listed entries.
func TestDaemonDiesDuringStart(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	dir := stateDir(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}

	next := connectTest(t, dir)
	defer next.Close()
	for _, forked := range []bool{false, true} {
		c := connectTest(t, dir)
		p := newProgram("start container web")
		if forked {
			p.fork()
		}

		p.do("hang", unix.SYS_OPENAT, num(unix.AT_FDCWD), str(fifo), num(unix.O_RDONLY), num(0))
		p.exec("/bin/true")
		lost := make(chan error, 1)
		go func() {
			_, err := c.Start(testContext(t), Request{ID: "web", Kind: Container, Plan: &p.Plan})
			lost <- err
		}()

		eventually(t, "the start is under way", func() bool { return len(inventory.Descendants(next.keeper.Process.Pid)) > 0 })
		c.Close()
		if err := <-lost; !errors.Is(err, ErrLost) {
			t.Errorf("error %v", err)
		}

		if list := listAll(t, next); len(list) != 0 {
			t.Errorf("left %+v", list)
		}
		newShell(t, "web", "exit 3").start(t, next)

		if x := awaitExit(t, next, "web"); x.Code != 3 {
			t.Errorf("the next start ended with %+v", x)
		}
		forget(t, next, "web")
		awaitChildless(t, next)
	}
}

func TestTwoDaemons(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	a, b := connectTest(t, dir), connectTest(t, dir)
	defer a.Close()
	defer b.Close()

	newShell(t, "web", "exit 3").start(t, a)
	for _, c := range []*Client{a, b} {
		if x := awaitExit(t, c, "web"); x.Code != 3 {
			t.Errorf("exit %+v", x)
		}
	}

	if _, err := b.Start(testContext(t), newShell(t, "web", "exit 0").req); !errors.Is(err, ErrExists) {
		t.Errorf("error %v, want %v", err, ErrExists)
	}
	forget(t, b, "web")
}

// TestConnectRace has many daemons connect at once.
func TestConnectRace(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	dir := stateDir(t)
	clients := make([]*Client, 8)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() { clients[i] = connectTest(t, dir) })
	}
	wg.Wait()

	keepers := 0
	for _, c := range clients {
		if c.keeper != nil {
			keepers++
		}
	}

	if keepers != 1 {
		t.Errorf("%d keepers were started", keepers)
	}
	newShell(t, "web", "exit 3").start(t, clients[0])

	for _, c := range clients {
		awaitExit(t, c, "web")
	}
	forget(t, clients[7], "web")

	for _, c := range clients {
		c.Close()
	}
}

// TestConnectWhileKeeperExits connects while an idle keeper exits.
func TestConnectWhileKeeperExits(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	connectTest(t, dir).Close()
	for range 3 {
		socket := filepath.Join(dir, ownSocketName)
		eventually(t, "keeper ends", func() bool {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			_, err = os.Stat(socket)
			return err != nil
		})

		c := connectTest(t, dir)
		if list := listAll(t, c); len(list) != 0 {
			t.Errorf("listed %v", list)
		}
		c.Close()
	}
}

func TestKeeperKilled(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	defer c.Close()

	newShell(t, "done", "exit 5").start(t, c)
	awaitExit(t, c, "done")
	st := newShell(t, "web", "sleep 60").start(t, c)
	if err := c.keeper.Process.Kill(); err != nil {
		t.Fatal(err)
	}

	select {
	case <-c.Done():
	case <-time.After(pace.Scale(patience)):
		t.Fatal("loss of the keeper is not noticed")
	}

	if _, ok := <-c.Events(); ok {
		t.Error("events continue")
	}
	if _, err := c.List(testContext(t)); !errors.Is(err, ErrLost) {
		t.Errorf("error %v, want %v", err, ErrLost)
	}

	if err := unix.PidfdSendSignal(int(st.PidFD.Fd()), 0, nil, 0); err != nil {
		t.Errorf("container died with the keeper: %v", err)
	}
	exits, err := ReadExits(dir)
	if err != nil || len(exits) != 1 || exits[0].ID != "done" || exits[0].Code != 5 {
		t.Errorf("exit records %+v, error %v", exits, err)
	}

	if err := RemoveExit(dir, "done"); err != nil {
		t.Error(err)
	}
	next := connectTest(t, dir)
	defer next.Close()

	if list := listAll(t, next); len(list) != 0 {
		t.Errorf("a new keeper holds %+v", list)
	}
	if err := unix.PidfdSendSignal(int(st.PidFD.Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Error(err)
	}
}

// A connection can be lost though the keeper lives: it disconnects a peer that
// sends too many descriptors.
func TestCloseDoesNotWaitForALivingKeeper(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	newShell(t, "web", "sleep 1; exit 4").start(t, c)
	c.conn.Close()
	<-c.Done()

	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the end of a lost connection waits for the keeper's end")
	}

	again := connectTest(t, dir)
	defer again.Close()
	if entries, err := again.List(testContext(t)); err != nil || len(entries) != 1 {
		t.Errorf("the keeper holds %v, %v", entries, err)
	}

	awaitExit(t, again, "web")
	forget(t, again, "web")
}

func TestKeeperEndsWhenAsked(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	defer c.Close()

	st := newShell(t, "web", "sleep 60").start(t, c)
	for _, sig := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTERM} {
		if err := c.keeper.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}

	if list := listAll(t, c); len(list) != 1 {
		t.Errorf("listed %v", list)
	}
	if err := unix.PidfdSendSignal(int(st.PidFD.Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}

	select {
	case <-c.Done():
	case <-time.After(pace.Scale(patience)):
		t.Fatal("keeper stays")
	}

	eventually(t, "exit record", func() bool {
		exits, err := ReadExits(dir)
		return err == nil && len(exits) == 1 && exits[0].Code == 137
	})
}

// TestUnfinishedRecord starts a keeper after another one was killed while it
// wrote an exit record.
func TestUnfinishedRecord(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	exits := filepath.Join(dir, "exits")
	if err := os.Mkdir(exits, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(exits, ".web"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	connectTest(t, dir).Close()
	if left := inventory.Names(exits); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
}

func TestKeptAndForgotten(t *testing.T) {
	testkit.Root(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()
	r, w := pipe(t)
	defer r.Close()

	sh := newShell(t, "web", "sleep 60")
	sh.req.Keep = []Named{{"stdin", w}}
	st := sh.start(t, c)
	w.Close()

	if err := c.Forget(testContext(t), "web"); !errors.Is(err, ErrRunning) {
		t.Errorf("forget a process that lives: error %v", err)
	}
	if err := c.CloseKept(testContext(t), "web", "stdout"); !errors.Is(err, ErrNotFound) {
		t.Errorf("close what is not kept: error %v", err)
	}

	if err := c.CloseKept(testContext(t), "web", "stdin"); err != nil {
		t.Error(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("kept descriptor is still open: %d bytes, error %v", n, err)
	}

	if err := c.Forget(testContext(t), "unknown"); err != nil {
		t.Errorf("forget an unknown ID: %v", err)
	}
	end(t, c, "web", st)
}

func TestLimitIsInherited(t *testing.T) {
	testkit.Root(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()
	want, err := exec.Command("/bin/sh", "-c", "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj").Output()
	if err != nil {
		t.Fatal(err)
	}

	sh := newShell(t, "web", "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj; ls /proc/$$/fd")
	sh.start(t, c)
	awaitExit(t, c, "web")
	var got strings.Builder
	for line := range strings.Lines(string(sh.read(t))) {
		_, content, _ := strings.Cut(line, " F ")
		got.WriteString(content)
	}

	if got.String() != string(want)+"0\n1\n2\n" {
		t.Errorf("got %q, want %q", got.String(), want)
	}
	forget(t, c, "web")
}

// TestManyAtOnce starts and ends processes of one and two stages concurrently.
func TestManyAtOnce(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	const workers, rounds = 8, 12
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for j := range rounds {
				id := fmt.Sprintf("c%d-%d", i, j)
				p := newProgram("start " + id)
				if j%2 == 1 {
					p.fork()
				}

				p.exec("/bin/sh", "-c", fmt.Sprintf("exit %d", j))
				st, err := c.Start(testContext(t), Request{ID: id, Kind: Exec, Plan: &p.Plan})
				if err != nil {
					t.Error(err)
					continue
				}
				st.Close()
			}
		})
	}

	codes := map[string]int{}
	timeout := time.After(pace.Scale(3 * patience))
	for len(codes) < workers*rounds {
		select {
		case x := <-c.Events():
			codes[x.ID] = x.Code
		case <-timeout:
			t.Fatalf("%d exits of %d", len(codes), workers*rounds)
		}
	}
	wg.Wait()

	for id, code := range codes {
		if !strings.HasSuffix(id, fmt.Sprintf("-%d", code)) {
			t.Errorf("%s ended with %d", id, code)
		}
		forget(t, c, id)
	}
	awaitChildless(t, c)
}

func TestStateDirectoryMustBePrivate(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(testContext(t), dir, ""); !errors.Is(err, ErrState) {
		t.Errorf("error %v, want %v", err, ErrState)
	}
	if _, err := Connect(testContext(t), filepath.Join(dir, "none"), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want %v", err, os.ErrNotExist)
	}
}

func TestKeeperDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(testContext(t), dir, "/bin/false"); !errors.Is(err, ErrKeeper) {
		t.Errorf("error %v, want %v", err, ErrKeeper)
	}
	if _, err := Connect(testContext(t), dir, filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want %v", err, os.ErrNotExist)
	}
}
