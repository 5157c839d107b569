package spawn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/test/testkit"
)

// program builds plans by hand.
type program struct{ plan.Plan }

func newProgram() *program {
	return &program{plan.Plan{Name: "run test", Clone: plan.Clone{Cgroup: -1}}}
}

func (p *program) do(name string, call uintptr, args ...plan.Arg) *plan.Step {
	p.Steps = append(p.Steps, plan.Step{Name: name, Call: call, Args: args, Save: plan.NoReg})
	return &p.Steps[len(p.Steps)-1]
}

func num(n int64) plan.Arg      { return plan.Arg{Kind: plan.ArgInt, Int: n} }
func str(s string) plan.Arg     { return plan.Arg{Kind: plan.ArgStr, Str: s} }
func reg(r int64) plan.Arg      { return plan.Arg{Kind: plan.ArgReg, Int: r} }
func strs(s ...string) plan.Arg { return plan.Arg{Kind: plan.ArgStrs, Strs: s} }

func (p *program) gate() {
	p.do("wait at gate", unix.SYS_READ, plan.Arg{Kind: plan.ArgSync}, plan.Arg{Kind: plan.ArgBytes, Bytes: []byte{0}}, num(1))
}

func (p *program) fork() {
	p.do("fork", unix.SYS_CLONE, num(unix.CLONE_PARENT|int64(unix.SIGCHLD)), num(0), num(0), num(0), num(0)).Fork = true
}

// shell ends the plan with a shell whose output goes to input 0.
func (p *program) shell(script string) {
	p.Inputs = append(p.Inputs, plan.Input{Name: "stdout"})
	p.do("set stdout", unix.SYS_DUP3, plan.Arg{Kind: plan.ArgIn, Int: int64(len(p.Inputs) - 1)}, num(1), num(0))
	p.do("exec", unix.SYS_EXECVE, str("/bin/sh"), strs("sh", "-c", script), strs("PATH=/bin:/usr/bin"))
}

// result is the outcome of a plan.
type result struct {
	events []Event
	err    error
	pid    int // the last process of the plan
	out    string
	status unix.WaitStatus
}

// run runs a plan to its end, releasing it from every gate, and reaps its processes.
func (p *program) run(t testing.TB, opt Options) result {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	files := make([]int, len(p.Inputs))
	for i := range files {
		files[i] = int(w.Fd())
	}

	c, err := Start(&p.Plan, files, opt)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer unix.Close(c.PidFD)

	if err := c.WriteIDMaps(); err != nil {
		t.Error(err)
	}
	res := result{pid: c.Pid}
	for {
		ev, err := c.Next()
		if err != nil {
			res.err = err
			break
		}

		res.events = append(res.events, ev)
		if ev.Kind == Forked {
			reap(t, res.pid)
			res.pid = ev.Pid
		}
		if ev.Kind == Waiting {
			if err := c.Release(); err != nil {
				t.Error(err)
			}
		}
		if ev.Kind == Executed || ev.Kind == Ended {
			break
		}
	}

	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		t.Error(err)
	}
	res.out = out.String()
	res.status = reap(t, res.pid)
	return res
}

func reap(t testing.TB, pid int) unix.WaitStatus {
	t.Helper()
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Errorf("reap %d: %v", pid, err)
		}
		return status
	}
}

func (r result) kinds() []EventKind {
	var kinds []EventKind
	for _, ev := range r.events {
		kinds = append(kinds, ev.Kind)
	}
	return kinds
}

func TestRunsToExec(t *testing.T) {
	p := newProgram()
	p.shell("echo hello $0; exit 3")
	r := p.run(t, Options{})
	if r.err != nil || r.out != "hello sh\n" || r.status.ExitStatus() != 3 || !slices.Equal(r.kinds(), []EventKind{Executed}) {
		t.Errorf("got %+v", r)
	}
}

func TestEndsWithoutExec(t *testing.T) {
	p := newProgram()
	p.do("getpid", unix.SYS_GETPID)
	r := p.run(t, Options{})
	if r.err != nil || !slices.Equal(r.kinds(), []EventKind{Ended}) || r.status.ExitStatus() != 0 {
		t.Errorf("got %+v", r)
	}
}

// TestEveryStepFails makes each step of a plan fail in turn.
func TestEveryStepFails(t *testing.T) {
	for _, forked := range []bool{false, true} {
		for bad := range 6 {
			p := newProgram()
			p.do("umask", unix.SYS_UMASK, num(0))
			p.do("getuid", unix.SYS_GETUID)
			if forked {
				p.fork()
			} else {
				p.do("getgid", unix.SYS_GETGID)
			}

			p.gate()
			p.do("chdir", unix.SYS_CHDIR, str("/"))
			p.shell("exit 9")
			s := &p.Steps[bad]
			s.Call, s.Args = unix.SYS_CHDIR, []plan.Arg{str("/no such directory")}

			r := p.run(t, Options{})
			var step *StepError
			if !errors.As(r.err, &step) || step.Index != bad || step.Step != s.Name || step.Plan != p.Name || !errors.Is(r.err, unix.ENOENT) {
				t.Errorf("step %d: error %v", bad, r.err)
			}
			if r.status.ExitStatus() != exitFailed {
				t.Errorf("step %d: status %v", bad, r.status)
			}
		}
	}
}

func TestStepErrorText(t *testing.T) {
	e := &StepError{Plan: "start container web", Index: 31, Step: "mask /proc/keys", Err: unix.EACCES}
	if got, want := e.Error(), `start container web: step 31 "mask /proc/keys": permission denied`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	e.Index, e.Step = -1, "clone"
	if got, want := e.Error(), "start container web: clone: permission denied"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestCloneFails(t *testing.T) {
	p := newProgram()
	p.Clone.Flags = unix.CLONE_NEWNS | unix.CLONE_FS // contradict each other
	p.shell("exit 0")
	_, err := Start(&p.Plan, []int{1000}, Options{})
	var step *StepError
	if !errors.As(err, &step) || step.Index != -1 || !errors.Is(err, unix.EINVAL) {
		t.Errorf("error %v", err)
	}
}

func TestRefusesInputs(t *testing.T) {
	p := newProgram()
	p.shell("exit 0")
	for _, files := range [][]int{nil, {2}, {-1}, {5, 6}} {
		if _, err := Start(&p.Plan, files, Options{}); !errors.Is(err, ErrInputs) {
			t.Errorf("files %v: error %v", files, err)
		}
	}
}

func TestIgnoredErrors(t *testing.T) {
	p := newProgram()
	s := p.do("chdir", unix.SYS_CHDIR, str("/no such directory"))
	s.Ignore, s.Save = []syscall.Errno{unix.EEXIST, unix.ENOENT}, 3
	p.do("check register", unix.SYS_CLOSE, reg(3)).Ignore = []syscall.Errno{unix.EBADF}
	p.shell("echo on")
	if r := p.run(t, Options{}); r.err != nil || r.out != "on\n" {
		t.Errorf("got %+v", r)
	}
}

func TestTwoStages(t *testing.T) {
	p := newProgram()
	p.fork()
	p.gate()
	p.shell("echo $$ $PPID")
	r := p.run(t, Options{})
	if want := fmt.Sprintln(r.pid, os.Getpid()); r.err != nil || r.out != want {
		t.Errorf("output %q, want %q, error %v", r.out, want, r.err)
	}
	if !slices.Equal(r.kinds(), []EventKind{Forked, Waiting, Executed}) {
		t.Errorf("events %v", r.kinds())
	}
}

func TestGateHolds(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "passed")
	for name, end := range map[string]func(*Child){
		"aborted":       (*Child).Abort,
		"caller's gone": (*Child).Close,
	} {
		for _, forked := range []bool{false, true} {
			p := newProgram()
			if forked {
				p.fork()
			}

			p.gate()
			p.do("mark", unix.SYS_OPENAT, num(unix.AT_FDCWD), str(marker), num(unix.O_CREAT|unix.O_RDWR), num(0o600))
			p.do("exec", unix.SYS_EXECVE, str("/bin/true"), strs("true"), strs())
			c, err := Start(&p.Plan, nil, Options{})
			if err != nil {
				t.Fatal(err)
			}

			pids := []int{c.Pid}
			for {
				ev, err := c.Next()
				if err != nil {
					t.Fatal(err)
				}
				if ev.Kind == Waiting {
					break
				}
				pids = append(pids, ev.Pid)
			}

			end(c)
			for _, pid := range pids {
				if s := reap(t, pid); s.ExitStatus() == 0 && pid == pids[len(pids)-1] {
					t.Errorf("%s: child continued: %v", name, s)
				}
			}

			if _, err := os.Stat(marker); err == nil {
				t.Fatalf("%s: child passed the gate", name)
			}
			if name == "aborted" {
				if _, err := c.Next(); !errors.Is(err, ErrDied) {
					t.Errorf("after abort: error %v", err)
				}
				c.Close()
			}
			unix.Close(c.PidFD)
		}
	}
}

// TestCallerKeepsOOMScore lets a child wait at its gate: only it gets another OOM score.
func TestCallerKeepsOOMScore(t *testing.T) {
	score := func() string {
		b, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}

	before := score()
	p := newProgram()
	p.gate()
	p.do("exec", unix.SYS_EXECVE, str("/bin/true"), strs("true"), strs())

	c := p.atGate(t, Options{OOMScoreAdj: "321"})
	if now := score(); now != before {
		t.Errorf("own score became %q, was %q", now, before)
	}

	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.Pid)); err != nil || string(b) != "321\n" {
		t.Errorf("child's score is %q, %v", b, err)
	}
	c.Abort()

	if ev, err := c.Next(); err == nil {
		t.Errorf("aborted child: %+v", ev)
	}
}

// atGate starts a plan and returns once it waits at its first gate.
func (p *program) atGate(t *testing.T, opt Options) *Child {
	t.Helper()
	c, err := Start(&p.Plan, nil, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Abort()
		c.Close()
		reap(t, c.Pid)
		unix.Close(c.PidFD)
	})

	if ev, err := c.Next(); err != nil || ev.Kind != Waiting {
		t.Fatalf("got %+v, %v", ev, err)
	}
	return c
}

// TestStartWaitsForNoChild starts a child that is stopped before its first
// instruction, as in a frozen cgroup.
func TestStartWaitsForNoChild(t *testing.T) {
	testkit.Root(t)
	group := frozenGroup(t)
	p := newProgram()
	p.Inputs = append(p.Inputs, plan.Input{Name: "cgroup"})
	p.Clone.Cgroup = 0
	p.gate()

	c, err := Start(&p.Plan, []int{int(group.Fd())}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c.PidFD)
	defer reap(t, c.Pid)
	defer c.Close()

	c.Abort()
	if ev, err := c.Next(); !errors.Is(err, ErrDied) {
		t.Errorf("aborted child: %+v, %v", ev, err)
	}
}

// frozenGroup returns an open, frozen v2 cgroup.
func frozenGroup(t *testing.T) *os.File {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		root += "/unified"
	}

	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		testkit.Skip(t, "cgroup version 2 mounted", "there is no cgroup to clone into")
	}
	dir, err := os.MkdirTemp(root, "crisp-spawn-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})

	if err := os.WriteFile(dir+"/cgroup.freeze", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })

	return f
}

// TestChildHasNoMemoryOfItsParent examines the mappings of a child that waits
// at a gate: the code, the plan, and no heap, stack or variable of this
// process.
func TestChildHasNoMemoryOfItsParent(t *testing.T) {
	if !wholly {
		testkit.Skip(t, "build without C", "the race detector's library needs memory of its own")
	}
	secret := []byte(strings.Repeat("of another pod, not to be seen ", 100))
	p := newProgram()
	p.do("use", unix.SYS_CHDIR, str("/"))
	p.gate()

	c := p.atGate(t, Options{})

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}

	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", c.Pid))
	if err != nil {
		t.Fatal(err)
	}

	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", c.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()

	private := 0
	for line := range strings.Lines(string(maps)) {
		m, err := parseMapping(strings.TrimSuffix(line, "\n"))
		if err != nil {
			t.Fatal(err)
		}

		switch {
		case strings.HasPrefix(m.file, "[v"), m.file == self && m.access[1] != 'w':
			continue
		case m.file != "":
			t.Errorf("the child has %s", line)
		}

		private += int(m.to - m.from)
		content := make([]byte, m.to-m.from)
		if _, err := memory.ReadAt(content, int64(m.from)); err != nil {
			t.Fatal(err)
		}

		if bytes.Contains(content, secret[:31]) {
			t.Errorf("the child has its parent's memory in %s", line)
		}
	}

	if private != firstChunk {
		t.Errorf("the child has %d bytes of its own, want the %d of its plan", private, firstChunk)
	}
	runtime.KeepAlive(secret)
}

func TestCallerGoneBeforeExec(t *testing.T) {
	p := newProgram()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}

	p.do("block", unix.SYS_OPENAT, num(unix.AT_FDCWD), str(fifo), num(unix.O_RDONLY), num(0))
	p.do("exec", unix.SYS_EXECVE, str("/bin/true"), strs("true"), strs())
	c, err := Start(&p.Plan, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c.PidFD)
	c.Close()

	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()

	if s := reap(t, c.Pid); s.ExitStatus() != exitRefused {
		t.Errorf("status %v, want exit code %d", s, exitRefused)
	}
}

func TestChildDies(t *testing.T) {
	p := newProgram()
	p.do("die", unix.SYS_EXIT_GROUP, num(0))
	p.shell("exit 0")
	if r := p.run(t, Options{}); !errors.Is(r.err, ErrDied) {
		t.Errorf("error %v", r.err)
	}
}

// status returns a field of the child's /proc/self/status.
func status(t *testing.T, opt Options, field string) string {
	t.Helper()
	p := newProgram()
	p.shell("grep ^" + field + ": /proc/self/status")
	r := p.run(t, opt)
	if r.err != nil {
		t.Fatal(r.err)
	}
	return strings.TrimSpace(strings.TrimPrefix(r.out, field+":"))
}

func TestSignalsAreReset(t *testing.T) {
	signals := []os.Signal{unix.SIGPIPE, unix.SIGHUP, unix.SIGUSR2, syscall.Signal(40)}
	signal.Ignore(signals...)
	defer signal.Reset(signals...)
	for _, field := range []string{"SigIgn", "SigBlk"} {
		if got := status(t, Options{}, field); strings.Trim(got, "0") != "" {
			t.Errorf("%s = %s", field, got)
		}
	}
	if got := status(t, Options{}, "Umask"); strings.Trim(got, "0") != "" {
		t.Errorf("umask = %s", got)
	}
}

func TestNothingLeaks(t *testing.T) {
	// A descriptor without close-on-exec, in place of one of another container.
	fd, err := unix.Open("/", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	p := newProgram()
	p.shell("ls -x /proc/$$/fd")
	r := p.run(t, Options{})
	if got := strings.Join(strings.Fields(r.out), " "); r.err != nil || got != "0 1 2" {
		t.Errorf("descriptors %q, error %v", r.out, r.err)
	}
}

func TestLimitsAreRestored(t *testing.T) {
	p := newProgram()
	p.shell("ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj")
	r := p.run(t, Options{NoFile: &unix.Rlimit{Cur: 77, Max: 99}, OOMScoreAdj: "123"})
	if r.err != nil || r.out != "77\n99\n123\n" {
		t.Errorf("output %q, error %v", r.out, r.err)
	}
}

// TestSizes runs plans of small and large size.
func TestSizes(t *testing.T) {
	for _, size := range []int{10, 40000, 3, 200000, 5} {
		p := newProgram()
		for range size / 100 {
			p.do("close", unix.SYS_CLOSE, num(-1)).Ignore = []syscall.Errno{unix.EBADF}
		}
		p.shell(fmt.Sprintf("a=%s; echo ${#a}", strings.Repeat("x", min(size, 100000))))
		if r := p.run(t, Options{}); r.err != nil || r.out != fmt.Sprintln(min(size, 100000)) {
			t.Errorf("size %d: output %q, error %v", size, r.out, r.err)
		}
	}
}

func TestPassFD(t *testing.T) {
	p := newProgram()
	p.do("open", unix.SYS_OPENAT, num(unix.AT_FDCWD), str("/proc/self/comm"), num(unix.O_RDONLY), num(0)).Save = 4
	p.do("pass", unix.SYS_SENDMSG, plan.Arg{Kind: plan.ArgBack}, plan.Arg{Kind: plan.ArgPassFD, Int: 4}, num(0))
	p.shell("exit 0")
	r := p.run(t, Options{})
	if r.err != nil || !slices.Equal(r.kinds(), []EventKind{Passed, Executed}) {
		t.Fatalf("got %+v", r)
	}
	defer unix.Close(r.events[0].FD)
	if link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.events[0].FD)); link != fmt.Sprintf("/proc/%d/comm", r.pid) {
		t.Errorf("descriptor is %s", link)
	}
}

func TestRegisterInMemory(t *testing.T) {
	p := newProgram()
	p.do("open", unix.SYS_OPENAT, num(unix.AT_FDCWD), str("/dev/null"), num(unix.O_RDONLY), num(0)).Save = 0

	// A struct pollfd: the descriptor, then POLLIN.
	p.do("poll", unix.SYS_PPOLL, plan.Arg{Kind: plan.ArgRegPtr, Int: 0, Bytes: []byte{0, 0, 0, 0, 1, 0}}, num(1), num(0), num(0)).Save = 1
	p.do("duplicate", unix.SYS_DUP3, reg(0), reg(1), num(0)) // poll returned 1
	p.do("is null", unix.SYS_READLINKAT, num(unix.AT_FDCWD), str("/proc/self/fd/1"), plan.Arg{Kind: plan.ArgBuf, Int: 64}, num(64))
	p.Steps[len(p.Steps)-1].Want = []byte("/dev/null")
	p.shell("echo ok")

	if r := p.run(t, Options{}); r.err != nil || r.out != "ok\n" {
		t.Errorf("got %+v", r)
	}
	p.Steps[3].Want = []byte("/dev/full")

	if r := p.run(t, Options{}); !errors.Is(r.err, unix.EBADMSG) {
		t.Errorf("unwanted result: error %v", r.err)
	}
}

func TestConditions(t *testing.T) {
	p := newProgram()
	s := p.do("missing", unix.SYS_OPENAT, num(unix.AT_FDCWD), str("/no such file"), num(0), num(0))
	s.Save, s.Ignore = 0, []syscall.Errno{unix.ENOENT}
	p.do("there", unix.SYS_OPENAT, num(unix.AT_FDCWD), str("/dev/null"), num(0), num(0)).Save = 1

	bad := []plan.Arg{str("/no such directory")}
	for i, c := range []plan.Cond{plan.IfSet, plan.IfUnset} {
		s := p.do("skipped", unix.SYS_CHDIR, bad...)
		s.Cond, s.CondReg, s.Save = c, plan.Reg(i), 2
	}

	s = p.do("skipped after skipped", unix.SYS_CHDIR, bad...)
	s.Cond, s.CondReg = plan.IfSet, 2
	for i, c := range []plan.Cond{plan.IfUnset, plan.IfSet} {
		s := p.do("run", unix.SYS_CLOSE, reg(1))
		s.Cond, s.CondReg = c, plan.Reg(i)
		if i == 1 {
			s.Ignore = []syscall.Errno{unix.EBADF}
		}
	}

	p.do("closed by both", unix.SYS_CLOSE, reg(1)).Ignore = nil
	p.shell("exit 0")
	r := p.run(t, Options{})
	var step *StepError
	if !errors.As(r.err, &step) || step.Step != "closed by both" {
		t.Errorf("error %v", r.err)
	}
}

// denying returns a filter that fails the calls with an error.
func denying(errno uint32, calls ...uint32) plan.Arg {
	prog := []unix.SockFilter{{Code: 0x20, K: 0}} // load the number
	for _, nr := range calls {
		prog = append(prog, unix.SockFilter{Code: 0x15, Jf: 1, K: nr}, unix.SockFilter{Code: 0x06, K: 0x00050000 | errno})
	}
	prog = append(prog, unix.SockFilter{Code: 0x06, K: 0x7fff0000}) // allow the rest
	var b []byte
	for _, in := range prog {
		b = binary.NativeEndian.AppendUint16(b, in.Code)
		b = append(b, in.Jt, in.Jf)
		b = binary.NativeEndian.AppendUint32(b, in.K)
	}
	return plan.Arg{Kind: plan.ArgFilter, Bytes: b}
}

func (p *program) filter(f plan.Arg) {
	p.do("no new privileges", unix.SYS_PRCTL, num(unix.PR_SET_NO_NEW_PRIVS), num(1), num(0), num(0), num(0))
	p.do("filter", unix.SYS_SECCOMP, num(unix.SECCOMP_SET_MODE_FILTER), num(0), f)
}

func TestFilter(t *testing.T) {
	p := newProgram()
	p.filter(denying(uint32(unix.EPROTO), unix.SYS_CHDIR))
	p.do("chdir", unix.SYS_CHDIR, str("/"))
	p.shell("exit 0")
	var step *StepError
	if r := p.run(t, Options{}); !errors.As(r.err, &step) || step.Step != "chdir" || step.Err != unix.EPROTO {
		t.Errorf("error %v", r.err)
	}
}

// TestFilterWithoutExit has a step fail under a filter that allows neither
// the report nor the exit.
func TestFilterWithoutExit(t *testing.T) {
	p := newProgram()
	p.filter(denying(uint32(unix.EPERM), unix.SYS_EXIT_GROUP, unix.SYS_WRITE))
	p.do("chdir", unix.SYS_CHDIR, str("/no such directory"))
	p.shell("exit 0")
	if r := p.run(t, Options{}); !errors.Is(r.err, ErrDied) || r.status.Signal() != unix.SIGSEGV {
		t.Errorf("error %v, status %v", r.err, r.status)
	}
}

func TestUserNamespace(t *testing.T) {
	testkit.Root(t)
	p := newProgram()
	p.Clone.Flags = unix.CLONE_NEWUSER
	p.Clone.UIDMap = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 10}, {ContainerID: 10, HostID: 200000, Size: 1}}
	p.Clone.GIDMap = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 300000, Size: 5}}
	p.gate()
	p.do("become root", unix.SYS_SETRESUID, num(0), num(0), num(0))
	p.shell("cat /proc/self/uid_map /proc/self/gid_map; id -u")
	r := p.run(t, Options{})
	if got := strings.Join(strings.Fields(r.out), " "); r.err != nil || got != "0 100000 10 10 200000 1 0 300000 5 0" {
		t.Errorf("output %q, error %v", got, r.err)
	}
}

func TestPidNamespaces(t *testing.T) {
	testkit.Root(t)
	p := newProgram()
	p.do("unshare", unix.SYS_UNSHARE, num(unix.CLONE_NEWPID))
	p.fork()
	p.gate()
	p.shell("echo $$ $PPID")
	r := p.run(t, Options{})
	if r.err != nil || r.out != "1 0\n" || r.events[0].Pid != r.pid || r.pid == 1 {
		t.Errorf("got %+v", r)
	}
}

func TestManyAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				p := newProgram()
				if j%2 == 1 {
					p.fork()
				}

				p.gate()
				want := fmt.Sprintf("%d-%d\n", i, j)
				p.shell("printf '%s' '" + want + "'")
				if r := p.run(t, Options{}); r.err != nil || r.out != want {
					t.Errorf("output %q, want %q, error %v", r.out, want, r.err)
				}
			}
		})
	}
	wg.Wait()
}

// inundate sends so many reports, as long as somebody receives them.
func inundate(sock, count int) {
	defer unix.Close(sock)
	for range count {
		if unix.Sendto(sock, make([]byte, reportWords*4), unix.MSG_NOSIGNAL, nil) != nil {
			return
		}
	}
}

// TestForeignReports sends reports in place of an exposed child: none counts, and
// only a flood that outlasts a child that hangs fails the start.
func TestForeignReports(t *testing.T) {
	quick, hangs := newProgram(), newProgram()
	for _, p := range []*program{quick, hangs} {
		p.fork()
		p.Steps[0].Exposed = true
	}
	hangs.do("hang", unix.SYS_NANOSLEEP, plan.Arg{Kind: plan.ArgBytes, Bytes: binary.NativeEndian.AppendUint64(nil, 3600)}, num(0))
	quick.shell("sleep 0.1; echo on")
	hangs.shell("echo on")

	var flood sync.WaitGroup
	defer flood.Wait()
	for _, test := range []struct {
		p     *program
		flood int
	}{{quick, 0}, {quick, 4 * maxEarly}, {hangs, 2 * maxForeign}} {
		p, many := test.p, test.p == hangs
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()

		prepared, err := Prepare(&p.Plan, []int{int(w.Fd())}, Options{})
		if err != nil {
			t.Fatal(err)
		}

		// As a process that got the child's end of the socket would.
		stolen, err := unix.Dup(int(prepared.childs.Fd()))
		if err != nil {
			t.Fatal(err)
		}

		c, err := prepared.Start()
		if err != nil {
			t.Fatal(err)
		}

		forge := func(kind, value uint32, fds ...int) {
			b := binary.NativeEndian.AppendUint32(nil, kind)
			b = binary.NativeEndian.AppendUint32(b, 0)
			b = binary.NativeEndian.AppendUint32(b, value)
			if err := unix.Sendmsg(stolen, b, unix.UnixRights(fds...), nil, 0); err != nil {
				t.Error(err)
			}
		}

		forge(reportForked, 1)
		forge(reportWaiting, 0)
		forge(reportExec, 0)
		forge(reportFailed, uint32(unix.EPERM), int(w.Fd()))

		// Invalid packets count as foreign reports, too.
		if err := unix.Sendmsg(stolen, []byte{0}, nil, nil, 0); err != nil {
			t.Error(err)
		}

		pids, last := []int{c.Pid}, error(nil)
		for last == nil {
			ev, err := c.Next()
			if last = err; ev.Kind == Executed {
				break
			}

			if ev.Kind != Forked {
				if err == nil {
					t.Errorf("event %+v", ev)
				}
				continue
			}

			pids = append(pids, ev.Pid)
			flood.Go(func() { inundate(stolen, test.flood) })
		}

		if many != errors.Is(last, ErrReport) || many != (last != nil) {
			t.Errorf("hangs %v, flood of %d: error %v", many, test.flood, last)
		}
		if len(pids) != 2 || pids[1] == 1 {
			t.Errorf("processes %d", pids)
		}
		c.Close()

		for _, pid := range pids {
			if many {
				_ = unix.Kill(pid, unix.SIGKILL) // the first has exited
			}
			reap(t, pid)
		}
		unix.Close(c.PidFD)
	}
}

// TestExposedNeedsNoKeeper refuses plans that wait or pass a descriptor after
// an exposed fork.
func TestExposedNeedsNoKeeper(t *testing.T) {
	for _, a := range []plan.Arg{{Kind: plan.ArgSync}, {Kind: plan.ArgBack}, {Kind: plan.ArgPassFD}} {
		p := newProgram()
		p.fork()
		p.Steps[0].Exposed = true
		p.do("deal", unix.SYS_GETPID, a)
		if _, err := Start(&p.Plan, nil, Options{}); !errors.Is(err, plan.ErrInvalid) {
			t.Errorf("%+v: error %v", a, err)
		}
	}
}
