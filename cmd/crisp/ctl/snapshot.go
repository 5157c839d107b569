package ctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"crisp/cmd/crisp/cli"
	"crisp/cri/admin"
	"crisp/cri/pod"
)

// snapshotCommand is the command snapshot.
func snapshotCommand() *cobra.Command {
	timeout := time.Duration(0)
	cmd := withDaemon(&cobra.Command{
		Use: "snapshot [FLAGS] POD NAME", Short: "Keep the state of a running pod, to make clones of it",
		Long: `Keep the state of all running containers of a pod, at one moment, as a snapshot of this
NAME on the node. They are frozen meanwhile and then go on. It needs CRIU.

crisp clone makes pods of it; the CRI's RestorePod takes the path that is printed.`,
		Args: cli.Exactly(2, "a pod, and a name"),
	}, func(ctx context.Context, s *session, args []string) error {
		id, err := s.podID(ctx, args[0])
		if err != nil {
			return err
		}
		query := url.Values{"pod": {id}, "name": {args[1]}, "limit": {timeout.String()}}
		if _, err := s.tell(ctx, http.MethodPost, admin.SnapshotsPath, query); err != nil {
			return fmt.Errorf("snapshot %s: %w", args[0], err)
		}
		list, err := s.snapshots(ctx)
		if err != nil {
			return err
		}
		for _, made := range list {
			if made.Name == args[1] {
				_, err = fmt.Fprintln(s.out, made.Path)
			}
		}
		return err
	})
	cmd.Flags().DurationVarP(&timeout, "timeout", "t", time.Minute, "how long they may be frozen: `DURATION`")
	return cmd
}

// snapshotsCommand is the command snapshots.
func snapshotsCommand() *cobra.Command {
	cmd := listing(&cobra.Command{
		Use: "snapshots [FLAGS]", Short: "List the snapshots of pods", Args: cli.Exactly(0, "no arguments"),
	}, func(ctx context.Context, s *session, f format, _ []string) error {
		list, err := s.snapshots(ctx)
		if err != nil {
			return err
		}
		return f.print(s.out, list, func() *table {
			t := newTable("SNAPSHOT", "POD", "CONTAINERS", "SIZE", "AGE")
			for _, one := range list {
				t.add(one.Name, one.Pod, strings.Join(one.Containers, ","), bytesOf(uint64(one.Bytes)), since(one.CreatedAt.UnixNano(), time.Now()))
			}
			return t
		})
	})
	cmd.AddCommand(withDaemon(&cobra.Command{
		Use: "rm SNAPSHOT...", Short: "Remove snapshots; pods that were made of them stay", Args: cli.AtLeast(1, "a snapshot"),
	}, func(ctx context.Context, s *session, args []string) error {
		var failed error
		for _, name := range args {
			_, err := s.tell(ctx, http.MethodDelete, admin.SnapshotsPath, url.Values{"name": {name}})
			failed = errors.Join(failed, err)
		}
		return failed
	}))
	return cmd
}

// cloneCommand is the command clone.
func cloneCommand() *cobra.Command {
	count, o := 1, pod.CloneOptions{}
	cmd := withDaemon(&cobra.Command{
		Use: "clone [-n COUNT] [FLAGS] SNAPSHOT", Short: "Make running pods of a snapshot",
		Long: `Make running pods of a snapshot, and print their names and IDs. They go on where the pod
was, each with an address, a UID and logs of its own, and with the same volumes. They have
none of its ports of the node.`,
		Args: cli.Exactly(1, "a snapshot"),
	}, func(ctx context.Context, s *session, args []string) error {
		if count < 1 {
			return fmt.Errorf("%d pods cannot be made", count)
		}
		return s.clone(ctx, args[0], o, count)
	})
	cmd.Flags().IntVarP(&count, "count", "n", 1, "how many `PODS`")
	cmd.Flags().StringVar(&o.Name, "name", "", "the `NAME` of the pod, or with -n what a number is added to (default: the snapshot's)")
	cmd.Flags().BoolVar(&o.Merge, "merge", false, "have the kernel merge equal pages of clones (KSM, which must run)")
	return cmd
}

// clone makes pods, as many at a time as there are processors.
func (s *session) clone(ctx context.Context, snapshot string, o pod.CloneOptions, count int) error {
	name := cmp.Or(o.Name, snapshot)
	names, ids := make([]string, count), make([]string, count)
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i := range count {
		names[i] = name
		if count > 1 {
			names[i] += "-" + strconv.Itoa(i+1)
		}
		group.Go(func() error {
			done, err := s.tell(ctx, http.MethodPost, admin.ClonePath, url.Values{"snapshot": {snapshot}, "name": {names[i]}, "merge": {strconv.FormatBool(o.Merge)}})
			ids[i] = done.ID
			return err
		})
	}

	err := group.Wait()
	for i, id := range ids {
		if id != "" {
			_, e := fmt.Fprintln(s.out, names[i], id)
			err = errors.Join(err, e)
		}
	}
	return err
}

func (s *session) snapshots(ctx context.Context) (list []pod.Snapshot, err error) {
	return list, s.ask(ctx, admin.SnapshotsPath, &list)
}

// podID finds a pod by its name or ID.
func (s *session) podID(ctx context.Context, name string) (string, error) {
	pods, err := s.List(ctx)
	if err != nil {
		return "", err
	}
	o, err := pods.Find(name)
	if err != nil {
		return "", err
	}
	if o.Container != nil {
		return "", fmt.Errorf("%s is a container: name its pod", name)
	}
	return o.ID(), nil
}

// tell has the daemon change something, and returns what it made.
func (s *session) tell(ctx context.Context, method, path string, query url.Values) (admin.Done, error) {
	return s.tellBy(ctx, method, path, query, nil)
}

// tellBy is tell with a body, nil for none.
func (s *session) tellBy(ctx context.Context, method, path string, query url.Values, content io.Reader) (admin.Done, error) {
	c := admin.NewClient(s.adminSocket())
	defer c.Close()
	done, err := c.ChangeBy(ctx, method, path+"?"+query.Encode(), content)
	if err == nil && done.Error != "" {
		err = errors.New(done.Error)
	}
	return done, s.explain(err)
}
