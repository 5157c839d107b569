package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/client"
	"crisp/cri/config"
	"crisp/runtime/checkpoint"
)

// checkpointCommand is the command checkpoint.
func checkpointCommand() *cobra.Command {
	timeout, key, root, image, push := time.Duration(0), false, "", "", ""
	var file *string
	cmd := withDaemon(&cobra.Command{
		Use: "checkpoint [FLAGS] POD|CONTAINER PATH", Short: "Write the state of a running container or pod to files",
		Long: `Write the state of a running container to the archive PATH, or that of all running
containers of a pod, at one moment, to the directory PATH, which must be empty if
it exists. They are frozen meanwhile and then go on. It needs CRIU.

With --image the state of a container becomes an image of that name instead, which pods can
use on this node, and crisp images export writes for others. A container of it goes on
where the saved one was; the image that that one had must be there. With --push that
image is then sent to the registry that its name says, for other nodes to pull, and its
reference by digest is printed. Whoever may pull it can read the memory of the container.

With --key it prints the node's public key instead, for restore_from in the
configuration of nodes that are to restore this one's checkpoints.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if key {
				return cli.Exactly(0, "no arguments with --key")(cmd, args)
			}
			if image != "" || push != "" {
				return cli.Exactly(1, "a container, with --image or --push")(cmd, args)
			}
			return cli.Exactly(2, "a pod or container, and a path")(cmd, args)
		},
	}, func(ctx context.Context, s *session, args []string) error {
		if push != "" {
			return s.made(ctx, push, *file, func(s *session) error { return s.checkpointImage(ctx, args[0], push, timeout) })
		}
		if image != "" {
			return s.checkpointImage(ctx, args[0], image, timeout)
		}
		return s.checkpoint(ctx, args[0], args[1], timeout)
	})
	write := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if key {
			return printKey(cmd, root)
		}
		return write(cmd, args)
	}
	cmd.Flags().BoolVar(&key, "key", false, "print the key that the node's checkpoints are signed with")
	cmd.Flags().StringVar(&root, "root", "", "with --key, the daemon's root `DIR` instead of the configuration's")
	cmd.Flags().StringVar(&image, "image", "", "make an image of this `NAME` of a container's checkpoint")
	cmd.Flags().StringVar(&push, "push", "", "make an image of this `NAME`, and send it to its registry")
	file = authFlag(cmd.Flags())
	cmd.MarkFlagsMutuallyExclusive("image", "push", "key")
	cmd.Flags().DurationVarP(&timeout, "timeout", "t", time.Minute, "how long they may be frozen: `DURATION`")
	return cmd
}

// printKey prints the public key of the node, which needs no daemon.
func printKey(cmd *cobra.Command, root string) error {
	cfg, err := config.Load(cmd.Flag("config").Value.String())
	if err != nil {
		return err
	}
	k, err := checkpoint.OpenKey(cmp.Or(root, cfg.Root))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), k.Public())
	return err
}

func (s *session) checkpoint(ctx context.Context, name, path string, timeout time.Duration) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	pods, err := s.List(ctx)
	if err != nil {
		return err
	}
	o, err := pods.Find(name)
	if err != nil {
		return err
	}

	if o.Container != nil {
		err = s.checkpointContainer(ctx, o, path, timeout)
	} else {
		err = s.checkpointPod(ctx, o, path, timeout)
	}
	if err != nil {
		return refused("checkpoint", o, err)
	}
	_, err = fmt.Fprintln(s.out, path)
	return err
}

// checkpointImage makes an image of a container's checkpoint.
func (s *session) checkpointImage(ctx context.Context, name, image string, timeout time.Duration) (err error) {
	pods, err := s.List(ctx)
	if err != nil {
		return err
	}
	o, err := pods.Find(name)
	if err != nil {
		return err
	}
	if o.Container == nil {
		return fmt.Errorf("%s is a pod: an image is of one container", name)
	}

	// Not where anybody else looks: it has the memory of the container.
	dir, err := os.MkdirTemp("/var/tmp", "crisp-checkpoint-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "checkpoint.tar")
	if err := s.checkpointContainer(ctx, o, file, timeout); err != nil {
		return refused("checkpoint", o, err)
	}

	archive, err := os.Open(file)
	if err != nil {
		return err
	}
	defer archive.Close()
	packed := pack(func(w io.Writer) error { return checkpoint.WriteImage(w, archive, o.Container.GetMetadata().GetName()) })
	defer packed.Close()
	return s.sendArchive(ctx, image, packed, url.Values{"name": {image}, "pin": {"false"}}, io.Discard)
}

func (s *session) checkpointContainer(ctx context.Context, o client.Object, file string, timeout time.Duration) error {
	seconds := int64((timeout + time.Second - 1) / time.Second)
	_, err := s.Runtime.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: o.ID(), Location: file, Timeout: seconds})
	return err
}

func (s *session) checkpointPod(ctx context.Context, o client.Object, dir string, timeout time.Duration) error {
	made := false
	if err := os.Mkdir(dir, 0o700); err == nil {
		made = true
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}

	r := &runtimeapi.CheckpointPodRequest{PodSandboxId: o.ID(), OutputPath: dir}
	for _, c := range o.Pod.Containers {
		if c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.ContainerIds = append(r.ContainerIds, c.GetId())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err := s.Runtime.CheckpointPod(ctx, r)
	if err != nil && made {
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}
