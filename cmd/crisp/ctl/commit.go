package ctl

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"crisp/cmd/crisp/cli"
	"crisp/cri/admin"
)

// commitCommand is the command commit.
func commitCommand() *cobra.Command {
	query := url.Values{}
	pin, live, push, comment, timeout := false, false, false, "", time.Duration(0)
	var file *string
	cmd := withDaemon(&cobra.Command{
		Use: "commit [--pin] [--no-freeze] [--push] [FLAGS] CONTAINER IMAGE", Short: "Make an image of a container's files",
		Long: `Make an image of a container's image and of the files that the container has changed,
and print its name. Its volumes and its memory are no part of it. The container may be
created, running or ended; a running one is frozen while its files are read. Pods with
the pull policies IfNotPresent and Never find the image, on this node. With --push it is
then sent to the registry that its name says, and its reference by digest is printed.`,
		Args: cli.Exactly(2, "a container, and the name of an image"),
	}, func(ctx context.Context, s *session, args []string) error {
		query.Set("name", args[1])
		query.Set("pin", fmt.Sprint(pin))
		query.Set("live", fmt.Sprint(live))
		query.Set("comment", comment)
		query.Set("limit", timeout.String())
		if push {
			return s.made(ctx, args[1], *file, func(s *session) error { return s.commit(ctx, args[0], query) })
		}
		return s.commit(ctx, args[0], query)
	})

	cmd.Flags().BoolVar(&pin, "pin", false, "keep the image from kubelet's garbage collection, until it is removed by name")
	cmd.Flags().BoolVar(&live, "no-freeze", false, "let the container go on meanwhile: its files are then not all of the same moment")
	cmd.Flags().BoolVar(&push, "push", false, "send the image to its registry")
	file = authFlag(cmd.Flags())
	cmd.Flags().StringVarP(&comment, "message", "m", "", "what the image's history says of it: `TEXT`")
	cmd.Flags().DurationVarP(&timeout, "timeout", "t", time.Minute, "how long it may be frozen: `DURATION`")
	return cmd
}

// commit has the daemon make an image of a container.
func (s *session) commit(ctx context.Context, name string, query url.Values) error {
	pods, err := s.List(ctx)
	if err != nil {
		return err
	}
	o, err := pods.Container(name)
	if err != nil {
		return err
	}
	query.Set("container", o.ID())

	done, err := s.tell(ctx, http.MethodPost, admin.CommitPath, query)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.out, done.Name)
	return err
}
