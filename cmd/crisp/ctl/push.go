package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"crisp/cmd/crisp/cli"
	"crisp/cri/admin"
	"crisp/image"
	"crisp/image/registry"
	"crisp/runtime/rootpath"
)

// maxAuthFile bounds a file with credentials, in bytes.
const maxAuthFile = 1 << 20

// authFlag adds the flag for a file with credentials.
func authFlag(flags *pflag.FlagSet) *string {
	return flags.String("auth-file", "", "the `FILE` with credentials for the registry, as docker login and podman login write it")
}

// authFor reads the credentials for an image, nil for none, from a file, "" for none.
func authFor(ref, file string) (*image.Auth, error) {
	if file == "" {
		return nil, nil
	}
	parsed, err := registry.ParseReference(ref)
	if err != nil {
		return nil, err
	}

	data, err := rootpath.ReadNodeFile(file, maxAuthFile)
	if err != nil {
		return nil, err
	}
	auth, err := registry.AuthFrom(data, parsed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if auth == nil {
		return nil, fmt.Errorf("%s has no credentials for %s", file, parsed.Name())
	}
	return auth, nil
}

// pushCommand is the command images push.
func pushCommand() *cobra.Command {
	var file *string
	cmd := withDaemon(&cobra.Command{
		Use: "push [--auth-file FILE] [FLAGS] IMAGE...", Short: "Send images to their registries",
		Long: `Send images to the registries that their names say, under those names, and print their
references by digest. What a registry has is not sent again, and the digests stay the
same: an image that was pulled for one of several platforms is sent with the index of
all, and the registry must have the others. The configuration of registries is that of
pulls; a host that is not the registry itself is only pushed to if it has the
capability to push there.`,
		Args: cli.AtLeast(1, "images"),
	}, func(ctx context.Context, s *session, args []string) error {
		return each(args, func(ref string) error {
			if err := s.exists(ctx, ref); err != nil { // it has an exit code of its own
				return err
			}
			auth, err := authFor(ref, *file)
			if err != nil {
				return err
			}
			return s.push(ctx, ref, auth)
		})
	})

	file = authFlag(cmd.Flags())
	return cmd
}

// push has the daemon push an image, and prints its reference by digest.
func (s *session) push(ctx context.Context, ref string, auth *image.Auth) error {
	done, err := s.askPush(ctx, url.Values{"name": {ref}}, auth)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.out, done.Name)
	return err
}

// tryPush has the daemon find out whether a registry would take an image.
func (s *session) tryPush(ctx context.Context, ref string, auth *image.Auth) error {
	_, err := s.askPush(ctx, url.Values{"name": {ref}, "try": {"true"}}, auth)
	return err
}

func (s *session) askPush(ctx context.Context, query url.Values, auth *image.Auth) (admin.Done, error) {
	var content io.Reader
	if auth != nil {
		data, err := json.Marshal(auth)
		if err != nil {
			return admin.Done{}, err
		}
		content = bytes.NewReader(data)
	}
	return s.tellBy(ctx, http.MethodPost, admin.PushPath, query, content)
}

// made makes an image of a name and then pushes it. Whether the registry would take it is
// found out before: the container need not be frozen in vain.
func (s *session) made(ctx context.Context, ref, file string, build func(s *session) error) error {
	auth, err := authFor(ref, file)
	if err != nil {
		return err
	}
	if err := s.tryPush(ctx, ref, auth); err != nil {
		return err
	}

	quiet := *s
	quiet.out = io.Discard
	if err := build(&quiet); err != nil {
		return err
	}
	if err := s.push(ctx, ref, auth); err != nil {
		return fmt.Errorf("%w; the image is on this node, and crisp images push %s sends it again", err, ref)
	}
	return nil
}
