package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/client"
)

// details is the output of crisp inspect: the status as the CRI has it, and the
// daemon's own information.
type details struct {
	Status json.RawMessage            `json:"status"`
	Info   map[string]json.RawMessage `json:"info,omitempty"`
}

// inspectCommand is the command inspect.
func inspectCommand() *cobra.Command {
	return listing(&cobra.Command{
		Use: "inspect [FLAGS] POD|CONTAINER|IMAGE", Short: "Show all that is known of a pod, a container or an image",
		Args: cli.Exactly(1, "one pod, container or image"),
	}, func(ctx context.Context, s *session, f format, args []string) error {
		d, err := s.inspect(ctx, args[0])
		if err != nil {
			return err
		}
		if f.isTable() {
			f.name = "json"
		}
		return f.print(s.out, d, nil)
	})
}

func (s *session) inspect(ctx context.Context, name string) (*details, error) {
	pods, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	o, err := pods.Find(name)
	if errors.Is(err, client.ErrNotFound) {
		return s.inspectImage(ctx, name)
	}
	if err != nil {
		return nil, err
	}

	if o.Container != nil {
		r, err := s.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: o.ID(), Verbose: true})
		if err != nil {
			return nil, refused("inspect", o, err)
		}
		return detailsOf(r.GetStatus(), r.GetInfo())
	}
	r, err := s.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: o.ID(), Verbose: true})
	if err != nil {
		return nil, refused("inspect", o, err)
	}
	return detailsOf(r.GetStatus(), r.GetInfo())
}

func (s *session) inspectImage(ctx context.Context, name string) (*details, error) {
	r, err := s.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}, Verbose: true})
	if err != nil || r.GetImage() == nil {
		return nil, fmt.Errorf("%w: there is no pod, container or image %s; crisp ps -a and crisp images list all", client.ErrNotFound, name)
	}
	return detailsOf(r.GetImage(), r.GetInfo())
}

// detailsOf has a status, and information of which each value is JSON.
func detailsOf(status proto.Message, info map[string]string) (*details, error) {
	data, err := protojson.Marshal(status)
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	d := &details{Status: data, Info: map[string]json.RawMessage{}}
	for key, value := range info {
		raw := json.RawMessage(value)
		if !json.Valid(raw) {
			if raw, err = json.Marshal(value); err != nil {
				return nil, fmt.Errorf("encode %s: %w", key, err)
			}
		}
		d.Info[key] = raw
	}
	return d, nil
}
