package ctl

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/client"
	"crisp/cri/rpcerr"
)

// Pod is a pod in the output of crisp pods.
type Pod struct {
	Namespace  string   `json:"namespace"`
	Name       string   `json:"name"`
	ID         string   `json:"id"`
	UID        string   `json:"uid"`
	Attempt    uint32   `json:"attempt"`
	Ready      bool     `json:"ready"`
	CreatedAt  string   `json:"createdAt"`
	IPs        []string `json:"ips"`
	Handler    string   `json:"handler"`
	Running    int      `json:"running"`
	Containers int      `json:"containers"`

	created int64
}

// Container is a container in the output of crisp ps.
type Container struct {
	Namespace  string `json:"namespace"`
	Pod        string `json:"pod"`
	Name       string `json:"name"`
	ID         string `json:"id"`
	PodID      string `json:"podID"`
	Attempt    uint32 `json:"attempt"`
	State      string `json:"state"`
	Image      string `json:"image"`
	ImageID    string `json:"imageID"`
	CreatedAt  string `json:"createdAt"`
	StartedAt  string `json:"startedAt,omitempty"`
	FinishedAt string `json:"finishedAt,omitempty"`
	ExitCode   int32  `json:"exitCode"`
	Reason     string `json:"reason,omitempty"`
	Message    string `json:"message,omitempty"`

	status *runtimeapi.ContainerStatus
}

// podsCommand is the command pods.
func podsCommand() *cobra.Command {
	quiet := false
	cmd := listing(&cobra.Command{
		Use: "pods [FLAGS] [POD]", Short: "List pods",
		Args: cli.UpTo(1, "one pod"),
	}, func(ctx context.Context, s *session, f format, args []string) error {
		pods, err := s.pods(ctx, args)
		if err != nil {
			return err
		}

		list := []Pod{}
		for _, p := range pods {
			item := podOf(p)
			if !quiet {
				if item.IPs, err = s.addresses(ctx, p.GetId()); err != nil {
					return err
				}
			}
			list = append(list, item)
		}
		if quiet {
			return printIDs(s, list, func(p Pod) string { return p.ID })
		}
		return f.print(s.out, list, func() *table { return podTable(list, f.wide(), time.Now()) })
	})
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	return cmd
}

// pods are those that a command is about: all, or the one named.
func (s *session) pods(ctx context.Context, args []string) (client.Pods, error) {
	all, err := s.List(ctx)
	if err != nil || len(args) == 0 {
		return all, err
	}
	p, err := all.Pod(args[0])
	return client.Pods{p}, err
}

func podOf(p *client.Pod) Pod {
	md := p.GetMetadata()
	return Pod{
		Namespace: md.GetNamespace(), Name: md.GetName(), ID: p.GetId(), UID: md.GetUid(), Attempt: md.GetAttempt(),
		Ready: p.Ready(), CreatedAt: timestamp(p.GetCreatedAt()), Handler: p.GetRuntimeHandler(),
		Running: p.Running(), Containers: len(p.Containers), IPs: []string{}, created: p.GetCreatedAt(),
	}
}

// addresses are those of a pod; none if it has been removed meanwhile.
func (s *session) addresses(ctx context.Context, id string) ([]string, error) {
	r, err := s.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if rpcerr.Missing(err) {
		return []string{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("status of pod %s: %s", id, rpcerr.Message(err))
	}

	ips := []string{}
	if ip := r.GetStatus().GetNetwork().GetIp(); ip != "" {
		ips = append(ips, ip)
	}
	for _, more := range r.GetStatus().GetNetwork().GetAdditionalIps() {
		ips = append(ips, more.GetIp())
	}
	return ips, nil
}

func podTable(list []Pod, wide bool, now time.Time) *table {
	columns := []string{"POD", "STATE", "CONTAINERS", "ADDRESS", "AGE", "ID"}
	if wide {
		columns = append(columns, "ATTEMPT", "HANDLER", "UID")
	}
	t := newTable(columns...)
	for _, p := range list {
		state, color := "Ready", good
		if !p.Ready {
			state, color = "NotReady", doubt
		}

		row := []string{p.Namespace + "/" + p.Name, state, fmt.Sprintf("%d/%d", p.Running, p.Containers), strings.Join(p.IPs, ","), since(p.created, now), client.Short(p.ID)}
		if wide {
			row[len(row)-1] = p.ID
			row = append(row, fmt.Sprint(p.Attempt), p.Handler, p.UID)
		}
		t.add(row...)
		t.paint(1, color)
	}
	return t
}

// psCommand is the command ps.
func psCommand() *cobra.Command {
	all, quiet := false, false
	cmd := listing(&cobra.Command{
		Use: "ps [FLAGS] [POD]", Short: "List containers that run",
		Args: cli.UpTo(1, "one pod"),
	}, func(ctx context.Context, s *session, f format, args []string) error {
		pods, err := s.pods(ctx, args)
		if err != nil {
			return err
		}

		list, err := s.containers(ctx, pods, all)
		if err != nil {
			return err
		}
		if quiet {
			return printIDs(s, list, func(c Container) string { return c.ID })
		}
		return f.print(s.out, list, func() *table { return containerTable(list, f.wide(), time.Now()) })
	})
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list those that do not run, too")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	return cmd
}

// containers are those of pods that run, or all.
func (s *session) containers(ctx context.Context, pods client.Pods, all bool) ([]Container, error) {
	list := []Container{}
	for _, o := range pods.Objects() {
		c := o.Container
		if c == nil || !all && c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		st, err := s.status(ctx, c.GetId())
		if err != nil {
			return nil, err
		}
		if st == nil {
			continue
		}

		md := o.Pod.GetMetadata()
		list = append(list, Container{
			Namespace: md.GetNamespace(), Pod: md.GetName(), Name: c.GetMetadata().GetName(), ID: c.GetId(), PodID: o.Pod.GetId(),
			Attempt: c.GetMetadata().GetAttempt(), State: stateName(st.GetState()), Image: imageName(st), ImageID: st.GetImageId(),
			CreatedAt: timestamp(st.GetCreatedAt()), StartedAt: timestamp(st.GetStartedAt()), FinishedAt: timestamp(st.GetFinishedAt()),
			ExitCode: st.GetExitCode(), Reason: st.GetReason(), Message: st.GetMessage(), status: st,
		})
	}
	return list, nil
}

// status is that of a container; nil if it has been removed meanwhile.
func (s *session) status(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	r, err := s.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if rpcerr.Missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("status of container %s: %s", id, rpcerr.Message(err))
	}
	return r.GetStatus(), nil
}

// imageName is what the user called a container's image, as far as known.
func imageName(st *runtimeapi.ContainerStatus) string {
	if name := st.GetImage().GetUserSpecifiedImage(); name != "" {
		return name
	}
	return st.GetImage().GetImage()
}

func containerTable(list []Container, wide bool, now time.Time) *table {
	columns := []string{"CONTAINER", "STATE", "SINCE", "RESTARTS", "IMAGE", "ID"}
	if wide {
		columns = append(columns, "POD ID", "IMAGE ID")
	}
	t := newTable(columns...)
	for _, c := range list {
		state, at, color := describe(c.status)
		row := []string{c.Namespace + "/" + c.Pod + "/" + c.Name, state, since(at, now), fmt.Sprint(c.Attempt), c.Image, client.Short(c.ID)}
		if wide {
			row[len(row)-1] = c.ID
			row = append(row, c.PodID, c.ImageID)
		}
		t.add(row...)
		t.paint(1, color)
	}
	return t
}

// describe is a container's state, with its end, and since when it is in that.
func describe(st *runtimeapi.ContainerStatus) (text string, at int64, color style) {
	text = stateName(st.GetState())
	switch st.GetState() {
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return text, st.GetStartedAt(), good
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		if st.GetExitCode() == 0 {
			return st.GetReason(), st.GetFinishedAt(), plain
		}
		return fmt.Sprintf("%s (%d)", st.GetReason(), st.GetExitCode()), st.GetFinishedAt(), bad
	}
	return text, st.GetCreatedAt(), doubt
}

// stateName is a state as kubectl would write it.
func stateName(s runtimeapi.ContainerState) string {
	name := strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_"))
	return strings.ToUpper(name[:1]) + name[1:]
}

// timestamp is a time in nanoseconds for programs, "" for none.
func timestamp(nanoseconds int64) string {
	if nanoseconds <= 0 {
		return ""
	}
	return time.Unix(0, nanoseconds).UTC().Format(time.RFC3339Nano)
}

// printIDs prints an ID a line.
func printIDs[T any](s *session, list []T, id func(T) string) error {
	for _, item := range list {
		if _, err := fmt.Fprintln(s.out, id(item)); err != nil {
			return err
		}
	}
	return nil
}
