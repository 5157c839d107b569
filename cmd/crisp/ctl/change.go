package ctl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/client"
	"crisp/cri/rpcerr"
	"crisp/runtime/untrusted"
)

// each calls f with each word, also after an error.
func each(words []string, f func(string) error) error {
	var errs []error
	for _, word := range words {
		errs = append(errs, f(word))
	}
	return errors.Join(errs...)
}

// stopCommand is the command stop.
func stopCommand() *cobra.Command {
	timeout := time.Duration(0)
	cmd := withDaemon(&cobra.Command{
		Use: "stop [FLAGS] POD|CONTAINER...", Short: "Stop pods and containers",
		Long: `Stop pods and containers. kubelet starts those again that belong to the node's
pods: delete them in Kubernetes to be rid of them.`,
		Args: cli.AtLeast(1, "pods and containers"),
	}, func(ctx context.Context, s *session, args []string) error {
		return s.change(ctx, args, func(o client.Object) error { return s.stop(ctx, o, timeout) })
	})
	cmd.Flags().DurationVarP(&timeout, "timeout", "t", 10*time.Second, "how long containers have, before they are killed: `DURATION`")
	return cmd
}

// stop stops a pod, after its containers, or a container.
func (s *session) stop(ctx context.Context, o client.Object, timeout time.Duration) error {
	if o.Container != nil {
		seconds := int64((timeout + time.Second - 1) / time.Second)
		_, err := s.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: o.ID(), Timeout: seconds})
		return refused("stop", o, err)
	}

	for _, c := range o.Pod.Containers {
		if c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if err := s.stop(ctx, client.Object{Pod: o.Pod, Container: c}, timeout); err != nil {
			return err
		}
	}
	_, err := s.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: o.ID()})
	return refused("stop", o, err)
}

// rmCommand is the command rm.
func rmCommand() *cobra.Command {
	force := false
	cmd := withDaemon(&cobra.Command{
		Use: "rm [--force] [FLAGS] POD|CONTAINER...", Short: "Remove pods and containers",
		Long: `Remove pods, with their containers, and containers. Those that run are only
removed with --force. kubelet starts those again that belong to the node's pods.`,
		Args: cli.AtLeast(1, "pods and containers"),
	}, func(ctx context.Context, s *session, args []string) error {
		return s.change(ctx, args, func(o client.Object) error { return s.remove(ctx, o, force) })
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove what runs, too")
	return cmd
}

func (s *session) remove(ctx context.Context, o client.Object, force bool) error {
	running := o.Pod.Running() > 0 || o.Pod.Ready()
	if o.Container != nil {
		running = o.Container.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	if running && !force {
		return fmt.Errorf("remove %s: it is running; stop it first, or use --force", o.Name())
	}

	if o.Container != nil {
		_, err := s.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: o.ID()})
		return refused("remove", o, err)
	}
	_, err := s.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: o.ID()})
	return refused("remove", o, err)
}

// change calls f with the object of each name, and prints the names of those that
// it has changed. If a name is unknown nothing is changed.
func (s *session) change(ctx context.Context, names []string, f func(client.Object) error) error {
	pods, err := s.List(ctx)
	if err != nil {
		return err
	}

	objects := map[string]client.Object{}
	err = each(names, func(name string) error {
		var err error
		objects[name], err = pods.Find(name)
		return err
	})
	if err != nil {
		return err
	}

	return each(names, func(name string) error {
		if err := f(objects[name]); err != nil {
			return err
		}
		_, err := fmt.Fprintln(s.out, untrusted.Of(objects[name].Name()).Name(maxCell))
		return err
	})
}

// refused is the error of a call that changes an object.
func refused(what string, o client.Object, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %s", what, o.Name(), rpcerr.Message(err))
}
