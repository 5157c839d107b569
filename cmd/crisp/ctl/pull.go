package ctl

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/admin"
	"crisp/cri/rpcerr"
	"crisp/image"
)

// pullCommand is the command pull.
func pullCommand() *cobra.Command {
	var errs io.Writer
	var file *string
	cmd := withDaemon(&cobra.Command{
		Use: "pull [FLAGS] IMAGE...", Short: "Pull images",
		Long: "Pull images, and print their references by digest. On a terminal the progress is shown.",
		Args: cli.AtLeast(1, "images"),
	}, func(ctx context.Context, s *session, args []string) error {
		return each(args, func(ref string) error {
			auth, err := authFor(ref, *file)
			if err != nil {
				return err
			}
			return s.pull(ctx, ref, auth, errs)
		})
	})

	file = authFlag(cmd.Flags())
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { errs = cmd.ErrOrStderr() }
	return cmd
}

// pull pulls an image and prints its reference by digest.
func (s *session) pull(ctx context.Context, ref string, auth *image.Auth, errs io.Writer) error {
	stop := s.showProgress(ctx, ref, errs)
	request := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}
	if auth != nil {
		request.Auth = &runtimeapi.AuthConfig{
			Username: auth.Username, Password: auth.Password, Auth: auth.Auth, ServerAddress: auth.ServerAddress,
			IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
		}
	}
	r, err := s.Images.PullImage(ctx, request)
	stop()
	if err != nil {
		return fmt.Errorf("pull %s: %s", ref, rpcerr.Message(err))
	}
	_, err = fmt.Fprintln(s.out, r.GetImageRef())
	return err
}

// lookTime is how often progress is shown.
const lookTime = 200 * time.Millisecond

// showProgress shows the progress of a pull on a terminal, until stop.
func (s *session) showProgress(ctx context.Context, ref string, errs io.Writer) (stop func()) {
	began := time.Now()
	return redraw(ctx, errs, func() string {
		var pulls []image.Progress
		if s.ask(ctx, admin.PullsPath, &pulls) != nil || len(pulls) == 0 {
			return ""
		}
		// The name may be short, and the daemon's is not.
		return progressLine(choose(pulls, ref, began), time.Now())
	})
}

// redraw shows a line on a terminal again and again, until stop. An empty one leaves
// what is there.
func redraw(ctx context.Context, errs io.Writer, line func() string) (stop func()) {
	if _, ok := terminal(errs); !ok {
		return func() {}
	}

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-time.After(lookTime):
			case <-ctx.Done():
				_, _ = io.WriteString(errs, "\r\x1b[K")
				return
			}
			if text := line(); text != "" {
				_, _ = io.WriteString(errs, "\r\x1b[K"+text)
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// choose returns the pull of a reference, as far as it can be recognized: the one of
// that name, or else the one that was begun at about that time.
func choose(pulls []image.Progress, ref string, began time.Time) image.Progress {
	best := pulls[0]
	for _, p := range pulls {
		if p.Ref == ref {
			return p
		}
		if p.Began.Sub(began).Abs() < best.Began.Sub(began).Abs() {
			best = p
		}
	}
	return best
}

// progressLine is the progress of a pull: layers, bytes, rate and time left.
func progressLine(p image.Progress, now time.Time) string {
	line := p.Ref
	if p.Layers == 0 {
		return line + ": asking the registry" + hop(p, now)
	}
	line += fmt.Sprintf(": %d of %d layers, %s of %s", p.Present, p.Layers, bytesOf(uint64(p.Bytes)), bytesOf(uint64(p.Size)))

	took := now.Sub(p.Began).Seconds()
	if rate := float64(p.Bytes) / took; took > 0 && rate >= 1 {
		line += fmt.Sprintf(", %s/s", bytesOf(uint64(rate)))
		if left := float64(p.Size-p.Bytes) / rate; left >= 1 {
			line += fmt.Sprintf(", %s left", duration(time.Duration(left*float64(time.Second))))
		}
	}
	return line
}
