package ctl

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/rpcerr"
)

// pullCommand is the command pull.
func pullCommand() *cobra.Command {
	return withDaemon(&cobra.Command{
		Use: "pull [FLAGS] IMAGE...", Short: "Pull images",
		Args: cli.AtLeast(1, "images"),
	}, func(ctx context.Context, s *session, args []string) error {
		return each(args, func(ref string) error { return s.pull(ctx, ref) })
	})
}

// pull pulls an image and prints its reference by digest.
func (s *session) pull(ctx context.Context, ref string) error {
	r, err := s.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return fmt.Errorf("pull %s: %s", ref, rpcerr.Message(err))
	}
	_, err = fmt.Fprintln(s.out, r.GetImageRef())
	return err
}
