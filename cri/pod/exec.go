package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crisp/cri/spec"
	"crisp/runtime/keeper/client"
	"crisp/runtime/keeper/table"
	"crisp/runtime/launch"
)

// drainTimeout is how long output is awaited after a command's end, from
// processes it left behind with its pipes open.
const drainTimeout = 50 * time.Millisecond

// execKillTimeout is how long the end of a killed command is awaited; one in
// uninterruptible sleep takes longer.
const execKillTimeout = time.Second

// TerminalSize is that of a terminal window in characters.
type TerminalSize struct{ Width, Height uint16 }

// Streams are a session's ends at the client. Nil means the client has none.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	// Resize delivers sizes for the terminal until it is closed.
	Resize <-chan TerminalSize
}

// command is a process that was executed in a container.
type command struct {
	row  *table.Row
	exit chan client.Exit // buffered
	lost chan struct{}    // closed when its end will not be reported any more
}

// Exec runs a command in a running container and returns its exit code, 128
// plus the signal's number if one ended it. When ctx ends first the command is
// killed, with its process group, and the error is the cause. The keeper may
// die meanwhile.
func (m *Manager) Exec(ctx context.Context, id string, cmd []string, io Streams) (int, error) {
	p, id, err := m.container(id)
	if err != nil {
		return 0, err
	}

	if len(cmd) == 0 {
		return 0, fmt.Errorf("exec in container %s: %w: no command", id, ErrInvalid)
	}
	c := p.record().Container(id)
	pr := p.process(id)
	if c == nil || pr == nil || c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return 0, fmt.Errorf("exec in container %s: it is not running: %w", id, ErrState)
	}

	code, err := p.exec(ctx, c, pr, cmd, io)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return code, nil
}

func (p *pod) exec(ctx context.Context, c *Container, pr *process, cmd []string, st Streams) (int, error) {
	k := &making{p: p, id: c.ID}
	s, err := k.loadSpec()
	if err != nil {
		return 0, err
	}

	s = withScore(s, c)
	proc := *s.Process
	proc.Args, proc.Terminal = cmd, st.TTY
	if st.TTY {
		proc.Env = withTerm(proc.Env)
	}

	if err := spec.CheckArguments(&proc, p.m.Host); err != nil {
		return 0, err
	}
	h := &held{files: launch.Held{}}
	defer h.close()

	if err := p.holdProcess(h, pr); err != nil {
		return 0, err
	}
	ends, err := openEnds(h, st)
	if err != nil {
		return 0, err
	}
	defer ends.close()

	run := p.m.beginCommand(c.ID)
	defer p.m.endCommand(ctx, run)
	started, err := p.m.Launcher.Exec(ctx, launch.Request{
		ID: run.row.ID(), Name: "exec in container " + c.Config.Msg.GetMetadata().GetName(), Spec: s, Process: &proc,
		Held: h.files, Group: pr.group, Member: pr.row.Pid(), InPod: true,
	})
	if err != nil {
		return 0, err
	}
	h.close() // the command's ends of the pipes: only its own copies count now
	h.own = nil

	if started.Terminal != nil {
		if ends.terminal, err = polled(started.Terminal); err != nil {
			return 0, err
		}
	}

	// The terminal is this daemon's alone.
	err = run.row.Started(p.m.ctx, &client.Started{Pid: started.Pid, PidFD: started.PidFD, StartedAt: started.StartedAt})
	warn(err, "hand a command to the new keeper", "command", run.row.ID())

	exit, err := ends.run(ctx, st, started.PidFD, run)
	if errors.Is(err, errKeeperLost) {
		warn(run.row.Reap(), "reap a command", "command", run.row.ID())
	}
	if err != nil {
		return 0, err
	}

	return run.code(exit)
}

// holdProcess gives an exec the descriptor through which it joins.
func (p *pod) holdProcess(h *held, pr *process) error {
	fd, err := unix.FcntlInt(pr.row.PidFD().Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("duplicate pidfd: %w", err)
	}
	h.add("pidfd", os.NewFile(uintptr(fd), "pidfd"))
	if f := p.namespace("user"); f != nil {
		h.files["ns/user"] = f
	}
	return nil
}

func withTerm(env []string) []string {
	for _, e := range env {
		if len(e) >= 5 && e[:5] == "TERM=" {
			return env
		}
	}
	return append(append([]string(nil), env...), "TERM=xterm")
}

// beginCommand makes the row of a command in a container.
func (m *Manager) beginCommand(container string) *command {
	c := &command{exit: make(chan client.Exit, 1), lost: make(chan struct{})}
	var once sync.Once
	id := container[:16] + "-exec-" + newID()[:16]
	c.row = m.table.Begin(id, client.Exec, table.Hooks{
		Ended: func(e client.Exit) {
			select {
			case c.exit <- e:
			default: // it was reported before
			}
		},
		Lost: func(err error) {
			klog.ErrorS(err, "Could not hand a command to the new keeper; it is killed", "command", id)
			once.Do(func() { close(c.lost) })
		},
	})
	return c
}

// endCommand lets the keeper forget a command, which the caller need not wait
// for. One that survives its end is forgotten when it has ended too.
func (m *Manager) endCommand(ctx context.Context, c *command) {
	warn(c.row.Drop(), "close a command", "command", c.row.ID())
	m.wg.Go(func() {
		err := m.Keeper.Forget(context.WithoutCancel(ctx), c.row.ID())
		if !errors.Is(err, client.ErrRunning) {
			warn(err, "forget a command", "command", c.row.ID())
		}
	})
}

// code is the exit code of a command. How one ended whose keeper died may not
// be known.
func (c *command) code(e client.Exit) (int, error) {
	e, known := c.row.Exit(e)
	if !known && e.Code == exitUnknown {
		return 0, errExitLost
	}
	return e.Code, nil
}

// ends are our ends of a command's standard streams.
type ends struct {
	stdin, stdout, stderr, terminal *os.File
}

func (e *ends) close() {
	for _, f := range []*os.File{e.stdin, e.stdout, e.stderr, e.terminal} {
		if f != nil {
			f.Close()
		}
	}
}

// openEnds makes the pipes of a command; streams that the client lacks are
// left out and become /dev/null.
func openEnds(h *held, st Streams) (*ends, error) {
	e := &ends{}
	if st.TTY {
		return e, nil
	}

	out := func(name string, want bool, ours **os.File) error {
		if !want {
			return nil
		}
		r, w, err := pipe()
		if err != nil {
			return err
		}

		h.add(name, w)
		*ours, err = polled(r)
		return err
	}

	err := errors.Join(out("stdout", st.Stdout != nil, &e.stdout), out("stderr", st.Stderr != nil, &e.stderr))
	if st.Stdin != nil && err == nil {
		var r, w *os.File
		if r, w, err = pipe(); err == nil {
			h.add("stdin", r)
			e.stdin, err = polled(w)
		}
	}
	if err != nil {
		e.close()
		return nil, err
	}

	return e, nil
}

// run moves bytes until the command ends and its output is drained, or ctx ends.
func (e *ends) run(ctx context.Context, st Streams, pidfd *os.File, run *command) (client.Exit, error) {
	in, stdout := e.stdin, e.stdout
	if e.terminal != nil {
		in, stdout = e.terminal, e.terminal
	}

	if st.Stdin != nil && in != nil {
		// Not waited for: a client that sends nothing blocks its read for ever.
		go func() {
			io.Copy(in, st.Stdin)
			if e.stdin != nil {
				e.stdin.Close()
			}
		}()
	}

	stopResize := followResize(e.terminal, st.Resize)
	defer stopResize()
	var out sync.WaitGroup
	drain(&out, st.Stdout, stdout)
	drain(&out, st.Stderr, e.stderr)

	drained := make(chan struct{})
	go func() { out.Wait(); close(drained) }()
	defer func() { <-drained }()

	select {
	case x := <-run.exit:
		deadline := time.Now().Add(drainTimeout)
		for _, f := range []*os.File{stdout, e.stderr} {
			if f != nil {
				f.SetReadDeadline(deadline)
			}
		}
		return x, nil
	case <-run.lost:
		err := killGroup(pidfd)
		e.close()
		return client.Exit{}, errors.Join(errKeeperLost, err)
	case <-ctx.Done():
		err := killGroup(pidfd)
		e.close()
		select {
		case <-run.exit:
		case <-run.lost:
		case <-time.After(execKillTimeout):
		}
		return client.Exit{}, errors.Join(fmt.Errorf("the command was killed: %w", context.Cause(ctx)), err)
	}
}

func drain(wg *sync.WaitGroup, to io.Writer, from *os.File) {
	if to != nil && from != nil {
		wg.Go(func() { copyOut(to, from) })
	}
}

// copyOut copies output until it ends, or is quiet after the command's end,
// which the file's deadline tells. A client may be slow: what the command wrote
// before its end is in the pipe by then, and no more than that is copied of
// what others write, who have it open, too.
func copyOut(to io.Writer, from *os.File) {
	const mostInPipe = 1 << 20
	if _, err := io.Copy(to, from); !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}

	buf := make([]byte, 32<<10)
	for left := mostInPipe; left > 0; {
		if from.SetReadDeadline(time.Now().Add(drainTimeout)) != nil {
			return
		}
		n, err := from.Read(buf[:min(len(buf), left)])
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			return
		}
		left -= n
	}
}

// killGroup kills a command and the group it leads.
func killGroup(pidfd *os.File) error {
	const processGroup = 1 << 2 // PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9
	err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, processGroup)
	if errors.Is(err, unix.EINVAL) {
		return signal(pidfd, unix.SIGKILL)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// followResize applies sizes to a terminal until the returned function is called.
func followResize(terminal *os.File, sizes <-chan TerminalSize) (stop func()) {
	if terminal == nil || sizes == nil {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case s, ok := <-sizes:
				if !ok {
					return
				}
				resize(terminal, s)
			case <-quit:
				return
			}
		}
	}()

	return func() { close(quit); <-done }
}

func resize(terminal *os.File, s TerminalSize) {
	conn, err := terminal.SyscallConn()
	if err != nil {
		return
	}
	conn.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
	})
}
