package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/hook"
	"crisp/runtime/keeper/client"
	"crisp/runtime/plan"
	"crisp/runtime/untrusted"
)

// Hooks says how the hooks of a container are run.
type Hooks struct {
	// Container is what they are told of it.
	Container hook.Container
	// Dir is the directory of the host above the container's bundle that
	// createContainer hooks do not see: they see their bundle in its place.
	Dir string
	// Sources are those of the spec's hooks.
	Sources hook.Sources
	// Run starts the request for a hook's process and waits until that has
	// exited. If ctx ends first it kills the process with its group, and
	// returns the context's error. While it runs, printed is the end of what the hook
	// has written so far.
	Run func(ctx context.Context, h hook.Hook, r client.Request, printed func() string) (client.Exit, error)
}

// list are the hooks of some kinds, in order.
func (hs *Hooks) list(kinds ...hook.Kind) []hook.Hook {
	if hs == nil {
		return nil
	}
	return hook.List(hs.Container.Spec.Hooks, hs.Sources, kinds...)
}

// RunHooks runs the hooks of a kind in the runtime's namespaces, poststart or
// poststop, for a container whose process is or was pid. All of them run; the
// errors of those that failed are returned.
func (l *Launcher) RunHooks(ctx context.Context, hs *Hooks, k hook.Kind, pid int) error {
	var errs []error
	for _, h := range hs.list(k) {
		errs = append(errs, l.RunHook(ctx, hs, h, pid))
	}
	return errors.Join(errs...)
}

// RunHook is [Launcher.RunHooks] for one hook.
func (l *Launcher) RunHook(ctx context.Context, hs *Hooks, h hook.Hook, pid int) error {
	s := hs.Container.Spec
	return l.run(ctx, hs, &hookRun{hook: h, spec: s, pid: pid, held: Held{}})
}

// bundle opens the bundle that a plan needs for hooks.
func (in *inputs) bundle(hs *Hooks, o *plan.Options) error {
	if len(hs.list(hook.Prestart, hook.CreateRuntime, hook.CreateContainer)) == 0 {
		return nil
	}
	fs, err := newTmpfs(map[string]string{"mode": "755", "source": "bundle", "nr_inodes": "64"})
	if err != nil {
		return err
	}
	in.own("bundle", fs)
	view, err := hs.Container.Fill(fs, hs.Dir)
	if err != nil {
		return err
	}
	o.BundleAt, o.BundleRoot = view.At, view.Root
	return nil
}

// ask returns what runs the hooks of a start, and gives the listener of its filter
// to the agent, nil if it has none of both: each while the process waits at the step
// of that.
func (l *Launcher) ask(r *Request, p *plan.Plan, s *specs.Spec, agent *patience) func(context.Context, client.Waiting) error {
	todo := r.Hooks.list(hook.Prestart, hook.CreateRuntime, hook.CreateContainer, hook.StartContainer)
	at := map[int]func(context.Context, client.Waiting) error{}
	for i := range p.Steps {
		switch {
		case p.Listens(i):
			late := r.Hooks.list(hook.StartContainer)
			at[i] = func(ctx context.Context, w client.Waiting) error {
				defer agent.begin(r.Spec.Linux.Seccomp.ListenerPath, late)
				return l.handOver(ctx, r, w)
			}
		case p.Steps[i].Asks() && len(todo) > 0:
			h := todo[0]
			todo = todo[1:]
			at[i] = func(ctx context.Context, w client.Waiting) error {
				return l.run(ctx, r.Hooks, &hookRun{hook: h, spec: s, pid: w.Pid, held: Held{"pidfd": w.PidFD}, request: r})
			}
		}
	}
	if len(at) == 0 {
		return nil
	}

	return func(ctx context.Context, w client.Waiting) error {
		do, ok := at[w.Step]
		if !ok {
			return fmt.Errorf("step %d has neither a hook nor a listener: %w", w.Step, client.ErrInvalid)
		}
		return do(ctx, w)
	}
}

// hookRun is one run of a hook.
type hookRun struct {
	hook hook.Hook
	spec *specs.Spec
	// pid is the container's process, which is held as "pidfd" while it waits.
	pid  int
	held Held
	// request is that of the container's start during which the hook runs, nil
	// after it.
	request *Request
}

// run runs a hook until it has exited, or its time is over.
func (l *Launcher) run(ctx context.Context, hs *Hooks, run *hookRun) error {
	h := run.hook
	if !h.Kind.InContainer() {
		if err := hs.Container.WriteBundle(h.Kind, run.pid); err != nil {
			return fmt.Errorf("%s: %w", h, err)
		}
	}

	state, err := hs.Container.State(h.Kind, run.pid)
	if err != nil {
		return fmt.Errorf("%s: %w", h, err)
	}
	defer state.Close()
	out, err := newTail()
	if err != nil {
		return fmt.Errorf("%s: %w", h, err)
	}
	defer out.close()

	in := l.inputs(run.held, run.spec)
	defer in.close()
	in.extra["stdin"], in.extra["stdout"], in.extra["stderr"] = state, out.w, out.w
	p, err := in.hookPlan(run)
	if err != nil {
		return err
	}
	if err := in.open(ctx, p); err != nil {
		return err
	}

	limited, cancel := context.WithTimeout(ctx, h.Limit())
	defer cancel()
	agent, limited := l.newPatience(limited)
	defer agent.end()
	own := Request{Spec: run.spec, Process: run.spec.Process, Member: run.pid, About: hs.Container}
	r := client.Request{Kind: client.Exec, Plan: p, Files: in.files, Within: run.request != nil, Ask: l.ask(&own, p, run.spec, agent)}
	if h.Kind == hook.Poststop {
		// It runs to its end, also without this daemon.
		r.Keep = []client.Named{{Name: HookOutput, File: out.r}}
	}
	exit, err := hs.Run(limited, h, r, out.soFar)
	if cause := context.Cause(limited); errors.Is(cause, ErrAgent) {
		err = cause
	}
	return verdict(ctx, h, exit, err, out)
}

// startIt is the name of the plan of a hook's process: an error of a step follows the
// hook's own name.
const startIt = "start it"

// hookPlan returns the plan of a hook's process.
func (in *inputs) hookPlan(run *hookRun) (*plan.Plan, error) {
	h := run.hook
	if h.Kind != hook.StartContainer {
		return plan.Hook(run.spec, h, startIt)
	}

	// It is the container's own program, with its identity and privileges.
	proc := *run.spec.Process
	proc.Args, proc.Env, proc.Terminal = h.Argv(), h.Env, false
	r := Request{Name: startIt, Spec: run.spec, Held: in.extra, InPod: run.request.InPod}
	o, err := in.l.options(&r, &proc)
	if err != nil {
		return nil, err
	}
	entry, err := in.follow(run.request.Group, run.pid)
	if err != nil {
		return nil, err
	}

	o.CgroupV2, o.CgroupTasks = entry.unified, entry.tasks
	o.Program, o.Waiting = h.Path, true
	if name := joinedPIDs(run.spec); name != "" && run.request.Held[name] != nil {
		in.extra[name] = run.request.Held[name]
	}
	return plan.Exec(run.spec, &proc, o)
}

// killTime is how long to wait for a killed hook to exit; one in
// uninterruptible sleep takes longer.
const killTime = time.Second

// AwaitHook waits until the exit of a hook's process is received. If ctx ends
// first it kills the process with its group, and returns the context's error.
func AwaitHook(ctx context.Context, s *client.Started, exited <-chan client.Exit) (client.Exit, error) {
	select {
	case e := <-exited:
		return e, nil
	case <-ctx.Done():
	}

	err := client.KillGroup(s.PidFD)
	select {
	case <-exited:
	case <-time.After(killTime):
	}
	return client.Exit{}, errors.Join(ctx.Err(), err)
}

// verdict is the error of a hook that has ended, with the end of its output.
func verdict(ctx context.Context, h hook.Hook, exit client.Exit, err error, out *tail) error {
	switch text := out.text(); {
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return fmt.Errorf("%s: %w: it was killed after %v%s", h, hook.ErrFailed, h.Limit(), text)
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("%s: %w", h, err)
	case err != nil:
		return fmt.Errorf("%s: %w: %w", h, hook.ErrFailed, err)
	case exit.Signal != 0:
		return fmt.Errorf("%s: %w: signal %d (%s)%s", h, hook.ErrFailed, exit.Signal, unix.SignalName(unix.Signal(exit.Signal)), text)
	case exit.Code != 0:
		return fmt.Errorf("%s: %w: exit code %d%s", h, hook.ErrFailed, exit.Code, text)
	}
	return nil
}

// HookOutput is the name under which the keeper keeps the output of a poststop
// hook.
const HookOutput = "output"

// tailSize is how much of a hook's output an error has, in bytes.
const tailSize = 2 << 10

// drainTime is how long to wait for output after a hook's exit, from processes
// that it left.
const drainTime = 50 * time.Millisecond

// tail reads the output of a hook and keeps its end.
type tail struct {
	r, w *os.File
	wg   sync.WaitGroup
	mu   sync.Mutex
	data []byte // guarded by mu until the reading has ended
}

func newTail() (*tail, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, fmt.Errorf("make pipe: %w", err)
	}

	t := &tail{r: os.NewFile(uintptr(fds[0]), "hook's output"), w: os.NewFile(uintptr(fds[1]), "hook's output")}
	t.wg.Go(t.read)
	return t, nil
}

func (t *tail) read() {
	buf := make([]byte, tailSize)
	for {
		n, err := t.r.Read(buf)
		t.add(buf[:n])
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.add([]byte("\n(its output could not be read)"))
			}
			return
		}
	}
}

func (t *tail) add(data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, data...)
	if over := len(t.data) - tailSize; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
}

// soFar is the end of the output until now.
func (t *tail) soFar() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return untrusted.Of(string(t.data)).Message(tailSize)
}

// close ends the reading.
func (t *tail) close() {
	t.w.Close()
	// It fails only after an earlier call.
	_ = t.r.SetReadDeadline(time.Now().Add(drainTime))
	t.wg.Wait()
	t.r.Close()
}

// text is the end of the output, as the end of an error.
func (t *tail) text() string {
	t.close()
	if text := t.soFar(); text != "" {
		return ": " + text
	}
	return ""
}
