package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/client"
)

// terminalFlags are those of a session.
type terminalFlags struct {
	stdin, tty bool
	streams    [3]any // of the command: input, output, errors
}

// execCommand is the command exec.
func execCommand() *cobra.Command {
	var t terminalFlags
	cmd := withDaemon(&cobra.Command{
		Use: "exec [-i] [-t] [FLAGS] CONTAINER COMMAND [ARGUMENT]...", Short: "Run a command in a container",
		Long: `Run a command in a container, with the exit code of the command. A pod's name is
that of its only container.`,
		Args: cli.AtLeast(2, "a container and a command"),
	}, func(ctx context.Context, s *session, args []string) error {
		return s.exec(ctx, t, args[0], args[1:])
	})
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { t.use(cmd) }

	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&t.stdin, "stdin", "i", false, "pass the standard input to the command")
	cmd.Flags().BoolVarP(&t.tty, "tty", "t", false, "give the command a terminal")
	return cmd
}

func (s *session) exec(ctx context.Context, t terminalFlags, name string, command []string) error {
	if command[0] == "--" && len(command) > 1 {
		command = command[1:]
	}
	pods, err := s.List(ctx)
	if err != nil {
		return err
	}
	o, err := pods.Container(name)
	if err != nil {
		return err
	}

	r, err := s.Runtime.Exec(ctx, &runtimeapi.ExecRequest{
		ContainerId: o.ID(), Cmd: command, Stdin: t.stdin, Stdout: true, Stderr: !t.tty, Tty: t.tty,
	})
	if err != nil {
		return refused("run a command in", o, err)
	}
	return t.run(ctx, r.GetUrl())
}

// attachCommand is the command attach.
func attachCommand() *cobra.Command {
	var t terminalFlags
	cmd := withDaemon(&cobra.Command{
		Use: "attach [-i] [FLAGS] CONTAINER", Short: "Connect to the streams of a container",
		Args: cli.Exactly(1, "one container"),
	}, func(ctx context.Context, s *session, args []string) error {
		return s.attach(ctx, t, args[0])
	})
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { t.use(cmd) }
	cmd.Flags().BoolVarP(&t.stdin, "stdin", "i", false, "pass the standard input to the container")
	return cmd
}

func (s *session) attach(ctx context.Context, t terminalFlags, name string) error {
	pods, err := s.List(ctx)
	if err != nil {
		return err
	}
	o, err := pods.Container(name)
	if err != nil {
		return err
	}
	st, err := s.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: o.ID(), Verbose: true})
	if err != nil {
		return refused("attach to", o, err)
	}

	var info struct {
		Config struct{ TTY, Stdin bool }
	}
	if err := json.Unmarshal([]byte(st.GetInfo()["info"]), &info); err != nil {
		return fmt.Errorf("attach to %s: read its configuration: %w", o.Name(), err)
	}
	t.tty, t.stdin = info.Config.TTY, t.stdin && info.Config.Stdin
	r, err := s.Runtime.Attach(ctx, &runtimeapi.AttachRequest{
		ContainerId: o.ID(), Stdin: t.stdin, Stdout: true, Stderr: !t.tty, Tty: t.tty,
	})
	if err != nil {
		return refused("attach to", o, err)
	}
	return unlessInterrupted(ctx, t.run(ctx, r.GetUrl()))
}

// use takes the streams of a command.
func (t *terminalFlags) use(cmd *cobra.Command) {
	t.streams = [3]any{cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()}
}

// run connects the streams, and with a terminal its size, to a session.
func (t *terminalFlags) run(ctx context.Context, url string) error {
	s := client.Streams{Stdout: t.streams[1].(io.Writer), TTY: t.tty}
	if t.stdin {
		s.Stdin = t.streams[0].(io.Reader)
	}
	if !t.tty {
		s.Stderr = t.streams[2].(io.Writer)
	}

	// A dumb terminal can be raw as well.
	in, isFile := t.streams[0].(*os.File)
	if t.tty && isFile && term.IsTerminal(int(in.Fd())) {
		if t.stdin {
			old, err := term.MakeRaw(int(in.Fd()))
			if err != nil {
				return fmt.Errorf("make terminal raw: %w", err)
			}
			defer func() { _ = term.Restore(int(in.Fd()), old) }()
		}
		sizes, stop := followSize(in)
		defer stop()
		s.Sizes = sizes
	}

	code, err := client.Session(ctx, url, s)
	if err == nil && code != 0 {
		return ExitCode(code)
	}
	return err
}

// followSize sends the size of a terminal, now and when it changes, until stop.
func followSize(f *os.File) (sizes chan client.Size, stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	changed <- unix.SIGWINCH
	sizes, end, done := make(chan client.Size), make(chan struct{}), make(chan struct{})

	go func() {
		defer close(done)
		defer close(sizes)
		for {
			select {
			case <-changed:
			case <-end:
				return
			}
			width, height, err := term.GetSize(int(f.Fd()))
			if err != nil {
				continue
			}
			select {
			case sizes <- client.Size{Width: uint16(width), Height: uint16(height)}:
			case <-end:
				return
			}
		}
	}()
	return sizes, func() { signal.Stop(changed); close(end); <-done }
}
