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

// drainTimeout is how long output is awaited after a command's end, from
// processes it left behind with its pipes open.
const drainTimeout = 50 * time.Millisecond

// killTimeout is how long the end of a killed command is awaited; one in
// uninterruptible sleep takes longer.
const killTimeout = time.Second

// Command is a process that is executed in a container, with a client's streams.
type Command struct {
	row    *table.Row
	st     Streams
	ends   *ends
	theirs map[string]*os.File
	exit   chan client.Exit // buffered
	lost   chan struct{}    // closed when its end will not be reported any more
}

// Begin makes the row and the pipes of a command. The caller ends it with
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
			default: // it was reported before
			}
		},
		Lost: func(err error) {
			klog.ErrorS(err, "Could not hand a command to the new keeper; it is killed", "command", id)
			once.Do(func() { close(c.lost) })
		},
	})
	return c, nil
}

// ID is what the keeper knows the command by.
func (c *Command) ID() string { return c.row.ID() }

// Theirs are the command's ends of the pipes, by the names that plans use. They
// are open until the command runs or is closed.
func (c *Command) Theirs() map[string]*os.File { return c.theirs }

func (c *Command) closeTheirs() {
	for _, f := range c.theirs {
		f.Close()
	}
	clear(c.theirs)
}

// Run moves bytes between the started command and the client until the command
// has ended and its output is drained, and returns its exit code, 128 plus the
// signal's number if one ended it. When ctx ends first the command is killed,
// with its process group, and the error is the cause. What was started becomes
// the command's; forever is the daemon's own context.
func (c *Command) Run(ctx, forever context.Context, started *client.Started) (int, error) {
	c.closeTheirs() // only the command's own copies count now

	// The terminal is this daemon's alone.
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

// code is the exit code of a command. How one ended whose keeper died may not
// be known.
func (c *Command) code(e client.Exit) (int, error) {
	e, known := c.row.Exit(e)
	if !known && e.Code == client.ExitUnknown {
		return 0, errExitLost
	}
	return e.Code, nil
}

// Close closes the command's descriptors and takes it out of the table.
func (c *Command) Close() {
	c.closeTheirs()
	c.ends.close()
	c.row.Drop()
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

// run moves bytes until the command ends and its output is drained, or ctx ends.
func (e *ends) run(ctx context.Context, st Streams, pidfd *os.File, run *Command) (client.Exit, error) {
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
