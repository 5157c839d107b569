package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"crisp/runtime/keeper/client"
	"crisp/runtime/keeper/table"
)

// drainTimeout is how long to wait for output after a command's exit, from
// processes that still have its pipes open.
const drainTimeout = 50 * time.Millisecond

// killTimeout is how long to wait for a killed command to exit; one in
// uninterruptible sleep takes longer.
const killTimeout = time.Second

// Command is a process that is executed in a container, with a client's streams.
type Command struct {
	row    *table.Row
	st     Streams
	ends   *ends
	theirs map[string]*os.File
	exit   chan client.Exit // buffered
	lost   chan struct{}    // closed when its exit can no longer be reported
}

// Begin creates the row and the pipes of a command. The caller closes it with
// [Command.Close].
func Begin(t *table.Table, id string, st Streams) (*Command, error) {
	c := &Command{st: st, theirs: map[string]*os.File{}, exit: make(chan client.Exit, 1), lost: make(chan struct{})}
	var err error
	if c.ends, err = openEnds(c.theirs, st); err != nil {
		c.closeTheirs()
		return nil, err
	}

	var once sync.Once
	c.row = t.Begin(id, client.Exec, table.Hooks{
		Ended: func(e client.Exit) {
			select {
			case c.exit <- e:
			default: // already reported
			}
		},
		Lost: func(err error) {
			klog.ErrorS(err, "Could not hand a command to the new keeper, killing it", "command", id)
			once.Do(func() { close(c.lost) })
		},
	})
	return c, nil
}

// ID is the command's ID in the keeper.
func (c *Command) ID() string { return c.row.ID() }

// Theirs are the command's ends of the pipes, by their names in plans. They
// are open until the command runs or is closed.
func (c *Command) Theirs() map[string]*os.File { return c.theirs }

func (c *Command) closeTheirs() {
	for _, f := range c.theirs {
		f.Close()
	}
	clear(c.theirs)
}

// Run moves bytes between the started command and the client until the command
// has exited and its output is drained, and returns its exit code, 128 plus the
// signal's number if one killed it. If ctx ends first the command is killed,
// with its process group, and the error is the cause. The command takes
// ownership of started; forever is the daemon's own context.
func (c *Command) Run(ctx, forever context.Context, started *client.Started) (int, error) {
	c.closeTheirs() // only the command's own copies stay open

	// Only this daemon has the terminal.
	err := c.row.Started(forever, &client.Started{Pid: started.Pid, PidFD: started.PidFD, StartedAt: started.StartedAt})
	if err != nil {
		klog.ErrorS(err, "Could not hand a command to the new keeper", "command", c.ID())
	}
	if started.Terminal != nil {
		if c.ends.terminal, err = Polled(started.Terminal); err != nil {
			return 0, err
		}
	}

	exit, err := c.ends.run(ctx, c.st, started.PidFD, c)
	if errors.Is(err, client.ErrReplaced) {
		if err := c.row.Reap(); err != nil {
			klog.ErrorS(err, "Could not reap a command", "command", c.ID())
		}
	}
	if err != nil {
		return 0, err
	}
	return c.code(exit)
}

// code is the exit code of a command, which may be unknown if its keeper died.
func (c *Command) code(e client.Exit) (int, error) {
	e, known := c.row.Exit(e)
	if !known && e.Code == client.ExitUnknown {
		return 0, errExitLost
	}
	return e.Code, nil
}

// Close closes the command's descriptors and removes it from the table.
func (c *Command) Close() {
	c.closeTheirs()
	c.ends.close()
	c.row.Drop()
}

// ends are the daemon's ends of a command's standard streams.
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
func openEnds(theirs map[string]*os.File, st Streams) (*ends, error) {
	e := &ends{}
	if st.TTY {
		return e, nil
	}

	out := func(name string, want bool, ours **os.File) error {
		if !want {
			return nil
		}
		r, w, err := Pipe()
		if err != nil {
			return err
		}

		theirs[name] = w
		*ours, err = Polled(r)
		return err
	}

	err := errors.Join(out("stdout", st.Stdout != nil, &e.stdout), out("stderr", st.Stderr != nil, &e.stderr))
	if st.Stdin != nil && err == nil {
		var r, w *os.File
		if r, w, err = Pipe(); err == nil {
			theirs["stdin"] = r
			e.stdin, err = Polled(w)
		}
	}
	if err != nil {
		e.close()
		return nil, err
	}

	return e, nil
}

// run moves bytes until the command exits and its output is drained, or ctx
// ends.
func (e *ends) run(ctx context.Context, st Streams, pidfd *os.File, run *Command) (client.Exit, error) {
	in, stdout := e.stdin, e.stdout
	if e.terminal != nil {
		in, stdout = e.terminal, e.terminal
	}

	if st.Stdin != nil && in != nil {
		// Not waited for: a client that sends nothing blocks its read forever.
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
		err := client.KillGroup(pidfd)
		e.close()
		return client.Exit{}, errors.Join(client.ErrReplaced, err)
	case <-ctx.Done():
		err := client.KillGroup(pidfd)
		e.close()
		select {
		case <-run.exit:
		case <-run.lost:
		case <-time.After(killTimeout):
		}
		return client.Exit{}, errors.Join(fmt.Errorf("the command was killed: %w", context.Cause(ctx)), err)
	}
}
