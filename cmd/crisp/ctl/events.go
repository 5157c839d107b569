package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/client"
	"crisp/cri/rpcerr"
)

// Event is a change of a pod or container, a line in the output of crisp events.
type Event struct {
	Time     string `json:"time"`
	Change   string `json:"change"`
	Object   string `json:"object"`
	ID       string `json:"id"`
	PodID    string `json:"podID"`
	ExitCode *int32 `json:"exitCode,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

// eventsCommand is the command events.
func eventsCommand() *cobra.Command {
	asJSON := false
	cmd := withDaemon(&cobra.Command{
		Use: "events [--json] [FLAGS]", Short: "Print changes of pods and containers as they happen",
		Args: cli.Exactly(0, "no arguments"),
	}, func(ctx context.Context, s *session, _ []string) error {
		stream, err := s.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		if err != nil {
			return fmt.Errorf("follow events: %s", rpcerr.Message(err))
		}

		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return errors.New("the daemon has ended the stream of events: it stops")
			}
			if err != nil {
				return unlessInterrupted(ctx, fmt.Errorf("follow events: %s", rpcerr.Message(err)))
			}
			if err := eventOf(r).print(s.out, asJSON); err != nil {
				return err
			}
		}
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object of JSON a line")
	return cmd
}

func eventOf(r *runtimeapi.ContainerEventResponse) Event {
	pod := r.GetPodSandboxStatus()
	e := Event{
		Time: timestamp(r.GetCreatedAt()), ID: r.GetContainerId(), PodID: pod.GetId(),
		Change: strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(r.GetContainerEventType().String(), "CONTAINER_"), "_EVENT")),
		Object: pod.GetMetadata().GetNamespace() + "/" + pod.GetMetadata().GetName(),
	}

	for _, c := range r.GetContainersStatuses() {
		if c.GetId() != e.ID {
			continue
		}
		e.Object += "/" + c.GetMetadata().GetName()
		if c.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			code := c.GetExitCode()
			e.ExitCode, e.Reason = &code, c.GetReason()
		}
	}
	return e
}

func (e Event) print(out io.Writer, asJSON bool) error {
	if asJSON {
		data, err := encode(e, "")
		if err == nil {
			_, err = out.Write(data)
		}
		return err
	}

	end := ""
	if e.ExitCode != nil {
		end = fmt.Sprintf(" %s (%d)", e.Reason, *e.ExitCode)
	}
	at := e.Time
	if t, err := time.Parse(time.RFC3339Nano, e.Time); err == nil {
		at = t.Local().Format("15:04:05.000")
	}
	_, err := fmt.Fprintf(out, "%s  %-8s  %s  %s%s\n", at, e.Change, client.Short(e.ID), e.Object, end)
	return err
}
