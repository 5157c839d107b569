package ctl

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cmd/crisp/cli"
	"crisp/cri/client"
)

// logOptions are the flags of crisp logs.
type logOptions struct {
	follow, previous, timestamps bool
	tail                         int
	since                        time.Duration
}

// logsCommand is the command logs.
func logsCommand() *cobra.Command {
	var o logOptions
	var errs io.Writer
	cmd := withDaemon(&cobra.Command{
		Use: "logs [FLAGS] POD|CONTAINER...", Short: "Print the output of containers",
		Long: `Print the output of containers, of a pod that of all its containers. With several,
each line begins with the name of its container, and they are in the order of their
times, for which --follow lets a line wait a fraction of a second.`,
		Args: cli.AtLeast(1, "pods and containers"),
	}, func(ctx context.Context, s *session, args []string) error {
		return s.logs(ctx, errs, o, args)
	})
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { errs = cmd.ErrOrStderr() }

	fs := cmd.Flags()
	fs.BoolVarP(&o.follow, "follow", "f", false, "go on until the containers exit")
	fs.BoolVarP(&o.previous, "previous", "p", false, "print the output of the attempt before the last")
	fs.BoolVar(&o.timestamps, "timestamps", false, "begin each line with its time")
	fs.IntVar(&o.tail, "tail", -1, "`NUMBER` of lines to begin with, counted from the end; negative for all")
	fs.DurationVar(&o.since, "since", 0, "omit what is older than this `DURATION`")
	return cmd
}

func (s *session) logs(ctx context.Context, errs io.Writer, o logOptions, names []string) error {
	objects, err := s.logged(ctx, o, names)
	if err != nil {
		return err
	}
	w := &mixer{out: s.out, errs: errs, timestamps: o.timestamps, open: map[string]bool{}}
	if len(objects) > 1 {
		w.prefix, w.colors = true, colorsFor(s.out)
	}

	logs := make([]source, len(objects))
	for i, c := range objects {
		logs[i] = source{write: w.of(i, c), read: func(ctx context.Context, line func(client.Line) error, end func(time.Time) error) error {
			return s.readLog(ctx, o, c, line, end)
		}}
	}
	return unlessInterrupted(ctx, merge(ctx, logs))
}

// logged are the containers whose output is printed: of each name only the newest
// attempt, or the one before.
func (s *session) logged(ctx context.Context, o logOptions, names []string) ([]client.Object, error) {
	pods, err := s.List(ctx)
	if err != nil {
		return nil, err
	}

	var list []client.Object
	err = each(names, func(name string) error {
		found, err := pods.Find(name)
		if err != nil {
			return err
		}
		before := len(list)
		for _, c := range slices.Backward(found.Pod.Containers) { // in the order of their creation
			one := client.Object{Pod: found.Pod, Container: c}
			if found.Container != nil && one.Name() != found.Name() {
				continue
			}
			exact := found.Container != nil && name == c.GetId()
			if chosen := attempt(found.Pod, c.GetMetadata().GetName(), o.previous); chosen == c && (found.Container == nil || found.Container == c || o.previous) || exact {
				list = append(list, one)
			}
		}
		switch {
		case len(list) > before:
			return nil
		case o.previous:
			return fmt.Errorf("%w: %s has no attempt before the present one", client.ErrNotFound, found.Name())
		}
		return fmt.Errorf("%w: %s has no containers", client.ErrNotFound, found.Name())
	})
	return list, err
}

// attempt is the newest container of a name in a pod, or the one before that.
func attempt(p *client.Pod, name string, previous bool) *runtimeapi.Container {
	var newest *runtimeapi.Container
	for _, c := range p.Containers {
		switch {
		case c.GetMetadata().GetName() != name:
		case newest == nil && previous:
			newest = c
		default:
			return c
		}
	}
	return nil
}

// readLog reads the log of a container, and calls end each time that it has come to
// the end of one that is followed.
func (s *session) readLog(ctx context.Context, o logOptions, src client.Object, line func(client.Line) error, end func(time.Time) error) error {
	st, err := s.status(ctx, src.ID())
	if err != nil {
		return err
	}
	if st.GetLogPath() == "" {
		return fmt.Errorf("container %s has no log", src.Name())
	}

	l := client.Log{Path: st.GetLogPath(), Tail: o.tail, Started: st.GetStartedAt() > 0 && st.GetReason() != startError}
	if o.since > 0 {
		l.Since = time.Now().Add(-o.since)
	}
	if o.follow {
		l.End = end
		l.Alive = func(ctx context.Context) bool {
			st, err := s.status(ctx, src.ID())
			// If the daemon is away, as for an upgrade, containers go on.
			return err != nil || st != nil && st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED
		}
	}
	return l.Read(ctx, line)
}

// mixer writes the lines of several containers, each as a whole, one after the other.
type mixer struct {
	out, errs          io.Writer
	prefix, timestamps bool
	colors             bool
	open               map[string]bool // streams in the middle of a line
}

// hues are the colors of prefixes.
func hue(i int) style { return style(fmt.Sprintf("\x1b[3%dm", 1+i%6)) }

// of returns the function that writes lines of a container.
func (m *mixer) of(i int, src client.Object) func(client.Line) error {
	name := "[" + src.Name() + "] "
	if m.colors {
		name = hue(i).in(name)
	}
	return func(l client.Line) error {
		w := m.out
		if l.Stream == "stderr" {
			w = m.errs
		}

		key, text := src.ID()+l.Stream, []byte{}
		if !m.open[key] || m.prefix { // others may have written in between
			if m.prefix {
				text = append(text, name...)
			}
			if m.timestamps {
				text = append(l.Time.AppendFormat(text, time.RFC3339Nano), ' ')
			}
		}
		text = append(text, l.Text...)
		if m.open[key] = l.Partial; !l.Partial || m.prefix {
			text = append(text, '\n')
		}
		_, err := w.Write(text)
		return err
	}
}
