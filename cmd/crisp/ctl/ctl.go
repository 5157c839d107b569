package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"crisp/cmd/crisp/cli"
	"crisp/cri/admin"
	"crisp/cri/client"
	"crisp/cri/config"
)

// Exit codes of commands.
const (
	CodeFailed   = 1 // the command, or its command line is wrong
	CodeDown     = 3 // no daemon runs
	CodeNoRights = 4 // to use its socket, or to read the configuration
	CodeOther    = 5 // what listens on the socket is not crisp
	CodeNotFound = 6 // no pod, container or image has the name, or several have
)

// ExitCode is the exit code of a container's command, which becomes that of crisp.
type ExitCode int

func (c ExitCode) Error() string { return fmt.Sprintf("the command exited with code %d", int(c)) }

// Code is the exit code of an error.
func Code(err error) int {
	var exit ExitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.Is(err, client.ErrDown):
		return CodeDown
	case errors.Is(err, client.ErrNoRights), errors.Is(err, fs.ErrPermission):
		return CodeNoRights
	case errors.Is(err, client.ErrOther):
		return CodeOther
	case errors.Is(err, client.ErrNotFound), errors.Is(err, client.ErrAmbiguous):
		return CodeNotFound
	}
	return CodeFailed
}

// Commands are all of this package.
func Commands() []*cobra.Command {
	return []*cobra.Command{
		podsCommand(), psCommand(), statsCommand(), topCommand(), eventsCommand(), inspectCommand(),
		whyCommand(), dfCommand(), debugCommand(),
		logsCommand(), execCommand(), attachCommand(), stopCommand(), checkpointCommand(), commitCommand(), snapshotCommand(), snapshotsCommand(), cloneCommand(), migrateCommand(), receiveCommand(), rmCommand(), pullCommand(), rmiCommand(),
	}
}

// session is one call of a command.
type session struct {
	*client.Client
	cfg *config.Config
	out io.Writer
}

// withDaemon is a command that talks to the daemon.
func withDaemon(cmd *cobra.Command, run func(ctx context.Context, s *session, args []string) error) *cobra.Command {
	settings := cli.NewSettings(cmd.Flags(), "state", "listen")
	cmd.DisableFlagsInUseLine = true
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		cfg, err := settings.Load()
		if err != nil {
			return err
		}
		c, err := client.Open(cmd.Context(), cfg.Socket())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		return run(cmd.Context(), &session{c, cfg, cmd.OutOrStdout()}, args)
	}
	return cmd
}

// ask asks the daemon what the CRI does not carry.
func (s *session) ask(ctx context.Context, path string, into any) error {
	return ask(ctx, s.adminSocket(), path, into)
}

// ask is a request on an admin socket.
func ask(ctx context.Context, socket, path string, into any) error {
	c := admin.NewClient(socket)
	defer c.Close()
	return unreachable(socket, c.Get(ctx, path, into))
}

func (s *session) adminSocket() string { return nodeSocket(s.cfg) }

func (s *session) explain(err error) error { return unreachable(s.adminSocket(), err) }

// unreachable is the error of a request on an admin socket in words, if it is about the
// connection.
func unreachable(socket string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return client.Explain(socket, err)
	}
	return err
}

// listing is a command that prints objects, in a format of the user's choice.
func listing(cmd *cobra.Command, run func(ctx context.Context, s *session, f format, args []string) error) *cobra.Command {
	var f format
	withDaemon(cmd, func(ctx context.Context, s *session, args []string) error { return run(ctx, s, f, args) })
	cmd.Flags().VarP(&f, "output", "o", "the `FORMAT`: table, wide, json, yaml or go-template=TEMPLATE")
	return cmd
}

// terminal is the descriptor of a stream that is a terminal on which text can move
// and have colors.
func terminal(stream any) (fd int, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile || os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "" {
		return 0, false
	}
	return int(f.Fd()), term.IsTerminal(int(f.Fd()))
}
