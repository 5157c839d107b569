package ctl

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/admin"
)

// debugCommand is the command debug.
func debugCommand() *cobra.Command {
	return cli.Group("debug", "Look into the daemon", debugStateCommand(), debugGoroutinesCommand(), debugProfileCommand())
}

// debugStateCommand is the command debug state.
func debugStateCommand() *cobra.Command {
	return listing(&cobra.Command{
		Use: "state [FLAGS]", Short: "Print the daemon's state: pods, operations, pulls, what happened last",
		Args: cli.Exactly(0, "no arguments"),
	}, func(ctx context.Context, s *session, f format, _ []string) error {
		var state admin.State
		if err := s.ask(ctx, admin.StatePath, &state); err != nil {
			return err
		}
		if f.isTable() {
			f.name = "json"
		}
		return f.print(s.out, state, nil)
	})
}

// debugGoroutinesCommand is the command debug goroutines.
func debugGoroutinesCommand() *cobra.Command {
	return withDaemon(&cobra.Command{
		Use: "goroutines [FLAGS]", Short: "Print the stacks of the daemon's goroutines",
		Long: "Print the stacks of the daemon's goroutines. On SIGUSR1 the daemon logs them, with its state.",
		Args: cli.Exactly(0, "no arguments"),
	}, func(ctx context.Context, s *session, _ []string) error { return s.copy(ctx, admin.GoroutinesPath) })
}

// debugProfileCommand is the command debug profile.
func debugProfileCommand() *cobra.Command {
	duration := time.Duration(0)
	cmd := withDaemon(&cobra.Command{
		Use: "profile [--duration DURATION] [FLAGS] cpu|heap|allocs|goroutine|block|mutex|trace", Short: "Write a profile of the daemon for go tool pprof, or go tool trace",
		Args:      cobra.MatchAll(cli.Exactly(1, "one profile"), cobra.OnlyValidArgs),
		ValidArgs: []string{"cpu", "heap", "allocs", "goroutine", "block", "mutex", "trace"},
	}, func(ctx context.Context, s *session, args []string) error {
		name, query := args[0], url.Values{}
		if name == "cpu" {
			name = "profile"
		}

		if name == "profile" || name == "trace" {
			query.Set("seconds", fmt.Sprint(max(1, int(duration.Seconds()))))
		}
		if _, ok := terminal(s.out); ok {
			return fmt.Errorf("a profile is not for a terminal: crisp debug profile %s > FILE", args[0])
		}
		return s.copy(ctx, admin.ProfilePath+name+"?"+query.Encode())
	})
	cmd.Flags().DurationVar(&duration, "duration", 10*time.Second, "how long to look at cpu and trace: `DURATION`")
	return cmd
}

// copy prints the answer to a request on the admin socket.
func (s *session) copy(ctx context.Context, path string) error {
	c := admin.NewClient(s.adminSocket())
	defer c.Close()
	answer, err := c.Do(ctx, http.MethodGet, path)
	if err != nil {
		return s.explain(err)
	}
	defer answer.Close()
	_, err = io.Copy(s.out, answer)
	return err
}
