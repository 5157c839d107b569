package launch

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/client"
	"crisp/runtime/plan"
	"crisp/runtime/seccomp"
)

// tracer records the system calls of a child from its first gate to its execve.
type tracer struct {
	attach chan int
	ready  chan error
	calls  chan []uint64
}

func newTracer() *tracer {
	tr := &tracer{attach: make(chan int), ready: make(chan error), calls: make(chan []uint64, 1)}
	go func() {
		// Only the thread that attached may continue.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		pid := <-tr.attach
		const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEEXEC
		err := unix.PtraceSeize(pid)
		if err == nil {
			err = unix.PtraceInterrupt(pid)
		}
		if err == nil {
			var ws unix.WaitStatus
			_, err = unix.Wait4(pid, &ws, unix.WALL, nil)
		}
		if err == nil {
			err = unix.PtraceSetOptions(pid, options)
		}

		var calls []uint64
		if err == nil {
			err = unix.PtraceSyscall(pid, 0)
		}

		tr.ready <- err
		for err == nil {
			pid, err = tr.next(pid, &calls)
		}
		tr.calls <- calls
	}()

	return tr
}

// next waits for a stop of the child and resumes it. It follows a fork, and
// returns an error after a successful execve, or when the child has exited.
func (tr *tracer) next(pid int, calls *[]uint64) (int, error) {
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		return pid, err
	}

	if !ws.Stopped() {
		return pid, os.ErrProcessDone
	}
	switch {
	case ws.TrapCause() == unix.PTRACE_EVENT_EXEC:
		return pid, cmp.Or(unix.PtraceDetach(pid), os.ErrProcessDone)
	case ws.TrapCause() == unix.PTRACE_EVENT_FORK:
		child, err := unix.PtraceGetEventMsg(pid)
		if err != nil {
			return pid, err
		}
		if err := unix.PtraceDetach(pid); err != nil {
			return pid, err
		}
		pid = int(child)
		if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
			return pid, err
		}
	case ws.StopSignal() == unix.SIGTRAP|0x80:
		var regs unix.PtraceRegs
		if err := unix.PtraceGetRegs(pid, &regs); err != nil {
			return pid, err
		}
		if int64(regs.Rax) == -int64(unix.ENOSYS) { // at the entry of a call
			*calls = append(*calls, regs.Orig_rax)
		}
	}

	return pid, unix.PtraceSyscall(pid, 0)
}

// TestCallsAreThePlan traces starts and commands and compares the system calls
// that the child makes with its plan: it makes those, in that order, and no
// others except the reports.
func TestCallsAreThePlan(t *testing.T) {
	for _, kind := range []string{"start", "exec", "exec with terminal", "start next to it"} {
		for _, userns := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, user namespace %v", kind, userns), func(t *testing.T) {
				b := newSharing(t, userns)
				change := func(s *specs.Spec) {
					s.Process.NoNewPrivileges = true
					s.Linux.Seccomp = seccomp.RuntimeDefault(nil)
					if kind == "start next to it" {
						setNamespace(s, specs.PIDNamespace, "ns/pid")
					}
				}

				c, s := b.running(change)
				var p *plan.Plan
				b.k.change = func(made *plan.Plan) { p = made }
				tr := newTracer()
				gate := func(pid int) error {
					tr.attach <- pid
					return <-tr.ready
				}

				command, process, held := *s.Process, s.Process, Held{"pidfd": c.PidFD}
				r, run := b.inPod(s, held, Request{}), b.l.container
				if strings.HasPrefix(kind, "exec") {
					process = &command
					process.Args, process.Terminal = []string{"sleep", "1000"}, strings.HasSuffix(kind, "terminal")
					r, run = Request{Name: "traced", Spec: s, Process: process, Held: held}, b.l.exec
				}

				b.k.gate = gate
				_, err := b.launch(r, func(ctx context.Context, r Request) (*client.Started, error) {
					o, err := b.l.options(&r, process)
					o.Gate = true
					if err != nil {
						return nil, err
					}
					return run(ctx, &r, o)
				})
				b.k.gate = nil
				if err != nil {
					t.Fatal(err)
				}
				compare(t, p, <-tr.calls)
			})
		}
	}
}

// compare compares the calls of a child with its plan from the first gate on.
func compare(t *testing.T, p *plan.Plan, calls []uint64) {
	t.Helper()
	gate := slices.IndexFunc(p.Steps, func(s plan.Step) bool {
		return slices.ContainsFunc(s.Args, func(a plan.Arg) bool { return a.Kind == plan.ArgSync })
	})
	if gate < 0 || len(calls) < len(p.Steps)/2 {
		t.Fatalf("gate is step %d, %d calls were seen", gate, len(calls))
	}

	// The gate's own read was under way; it may be restarted.
	if calls[0] == unix.SYS_READ || calls[0] == unix.SYS_RESTART_SYSCALL {
		calls = calls[1:]
	}

	m := matching{steps: p.Steps, calls: calls, tried: map[[2]int]bool{}}
	if !m.fits(gate+1, 0) {
		far := min(m.calls0+5, len(calls))
		t.Errorf("step %d %q was not made; calls from there %d", m.step, p.Steps[min(m.step, len(p.Steps)-1)].Name, calls[m.calls0:far])
	}

	// A call that is not in the plan would be seen.
	umask := slices.IndexFunc(p.Steps, func(s plan.Step) bool { return s.Call == unix.SYS_UMASK })
	m = matching{steps: slices.Delete(slices.Clone(p.Steps), umask, umask+1), calls: calls, tried: map[[2]int]bool{}}
	if m.fits(gate+1, 0) {
		t.Error("the calls also match a plan with one step less")
	}
}

// matching aligns calls with steps. Conditional steps may be skipped, so there
// is more than one alignment.
type matching struct {
	steps []plan.Step
	calls []uint64
	tried map[[2]int]bool
	// step and calls0 are how far the best alignment got.
	step, calls0 int
}

func (m *matching) fits(i, j int) bool {
	if i > m.step {
		m.step, m.calls0 = i, j
	}
	if m.tried[[2]int{i, j}] {
		return false
	}

	m.tried[[2]int{i, j}] = true
	if i == len(m.steps) || j == len(m.calls) {
		// The program may be at the first of its possible paths.
		return j == len(m.calls) && (i == len(m.steps) || m.steps[i-1].Call == unix.SYS_EXECVE)
	}

	s := &m.steps[i]
	if s.Cond != plan.Always && m.fits(i+1, j) {
		return true
	}
	if s.Call == unix.SYS_EXECVE && m.calls[j] == unix.SYS_WRITE {
		j++ // the report that the next is execve
	}

	for again := j < len(m.calls) && uintptr(m.calls[j]) == s.Call; again; {
		j++
		if m.fits(i+1, j) {
			return true
		}
		again = s.Retry && j < len(m.calls) && uintptr(m.calls[j]) == s.Call
	}

	return false
}
