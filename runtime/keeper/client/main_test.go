package client

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper"
	"crisp/runtime/pause"
	"crisp/runtime/plan"
	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// TestMain lets the test binary be the keeper, too, or one of the last release.
func TestMain(m *testing.M) {
	switch os.Args[0] {
	case binaryName:
		os.Exit(keeper.Main(os.Args[1:]))
	case lastName:
		fmt.Fprintln(os.Stderr, lastKeeper(os.Args[1]))
		os.Exit(1)
	}
	os.Exit(testkit.Main(m))
}

// patience bounds every wait of a test.
const patience = 30 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), pace.Scale(patience))
	t.Cleanup(cancel)
	return ctx
}

// dial connects to a keeper of the test's own.
func connectTest(t testing.TB, dir string) *Client {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Connect(testContext(t), dir, self)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, logName))
		t.Fatalf("%v\n%s", err, log)
	}
	return c
}

func stateDir(t testing.TB) string {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { awaitGone(t, dir) })
	return dir
}

// awaitGone waits until the keeper of dir has exited by itself.
func awaitGone(t testing.TB, dir string) {
	eventually(t, "keeper ends", func() bool {
		_, err := os.Stat(filepath.Join(dir, ownSocketName))
		return os.IsNotExist(err)
	})
	log, err := os.ReadFile(filepath.Join(dir, logName))
	if err == nil && len(log) > 0 {
		t.Errorf("keeper log:\n%s", log)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timeout: %s", what)
		}
	}
}

// program builds plans by hand.
type program struct{ plan.Plan }

func (p *program) input(name string) plan.Arg {
	p.Inputs = append(p.Inputs, plan.Input{Name: name})
	return plan.Arg{Kind: plan.ArgIn, Int: int64(len(p.Inputs) - 1)}
}

func (p *program) do(name string, call uintptr, args ...plan.Arg) *plan.Step {
	p.Steps = append(p.Steps, plan.Step{Name: name, Call: call, Args: args, Save: plan.NoReg})
	return &p.Steps[len(p.Steps)-1]
}

func num(n int64) plan.Arg      { return plan.Arg{Kind: plan.ArgInt, Int: n} }
func str(s string) plan.Arg     { return plan.Arg{Kind: plan.ArgStr, Str: s} }
func strs(s ...string) plan.Arg { return plan.Arg{Kind: plan.ArgStrs, Strs: s} }

func (p *program) gate() {
	p.do("wait at gate", unix.SYS_READ, plan.Arg{Kind: plan.ArgSync}, plan.Arg{Kind: plan.ArgBytes, Bytes: []byte{0}}, num(1))
}

func (p *program) fork() {
	p.do("fork", unix.SYS_CLONE, num(unix.CLONE_PARENT|int64(unix.SIGCHLD)), num(0), num(0), num(0), num(0)).Fork = true
}

func (p *program) exec(argv ...string) {
	p.do("close descriptors", unix.SYS_CLOSE_RANGE, num(3), num(0xffffffff), num(unix.CLOSE_RANGE_CLOEXEC))
	p.do("exec "+argv[0], unix.SYS_EXECVE, str(argv[0]), strs(argv...), strs("PATH=/bin:/usr/bin"))
}

func newProgram(name string) *program {
	return &program{plan.Plan{Name: name, Clone: plan.Clone{Cgroup: -1}}}
}

// shell is a container that runs a script with its output logged.
type shell struct {
	req  Request
	log  string
	held []*os.File
}

func newShell(t testing.TB, id, script string) *shell {
	t.Helper()
	p := newProgram("start container " + id)
	sh := &shell{log: filepath.Join(t.TempDir(), id+".log")}
	outR, outW := pipe(t)
	errR, errW := pipe(t)
	out, err := os.OpenFile(sh.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}

	p.do("set stdout", unix.SYS_DUP3, p.input("stdout"), num(1), num(0))
	p.do("set stderr", unix.SYS_DUP3, p.input("stderr"), num(2), num(0))
	sh.req = Request{
		ID: id, Kind: Container, Plan: &p.Plan, Files: []*os.File{outW, errW},
		Log: &LogConfig{Stdout: stream(t, outR), Stderr: stream(t, errR), Out: out},
	}

	p.exec("/bin/sh", "-c", script)
	sh.held = []*os.File{outW, errW}
	return sh
}

func (s *shell) close() {
	closeFiles(s.held...)
	s.req.Log.Close()
}

func stream(t testing.TB, pipe *os.File) *Stream {
	t.Helper()
	s, err := NewStream(pipe, 0)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pipe returns a pipe in blocking mode, as programs expect.
func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")
}

// start starts the shell and closes the test's ends of its files.
func (s *shell) start(t testing.TB, c *Client) *Started {
	t.Helper()
	defer s.close()
	st, err := c.Start(testContext(t), s.req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

func awaitExit(t testing.TB, c *Client, id string) Exit {
	t.Helper()
	timeout := time.After(pace.Scale(patience))
	for {
		select {
		case x, ok := <-c.Events():
			if !ok {
				t.Fatal("keeper lost")
			}
			if x.ID == id {
				return x
			}
		case <-timeout:
			t.Fatalf("timeout: exit of %s", id)
		}
	}
}

func pauseImage(t testing.TB) *os.File {
	t.Helper()
	f, err := pause.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func (s *shell) read(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// end kills a process and forgets it.
func end(t testing.TB, c *Client, id string, st *Started) {
	t.Helper()
	if err := unix.PidfdSendSignal(int(st.PidFD.Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Error(err)
	}
	if x := awaitExit(t, c, id); x.Code != 137 {
		t.Errorf("exit %+v", x)
	}
	forget(t, c, id)
	st.Close()
}

func forget(t testing.TB, c *Client, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := c.Forget(testContext(t), id); err != nil {
			t.Error(err)
		}
	}
}

func listAll(t testing.TB, c *Client) []Entry {
	t.Helper()
	list, err := c.List(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for i := range list {
			list[i].Close()
		}
	})
	return list
}

// childrenOf returns the children of all threads of a process, zombies too.
func childrenOf(t testing.TB, pid int) (children []string) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil {
			children = append(children, strings.Fields(string(data))...)
		}
	}
	return children
}

// awaitChildless waits until the keeper that c started has no child.
func awaitChildless(t testing.TB, c *Client) {
	t.Helper()
	eventually(t, "keeper has no child", func() bool { return len(childrenOf(t, c.keeper.Process.Pid)) == 0 })
}
