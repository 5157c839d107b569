package cri

import (
	"context"
	"io"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"crisp/cri/audit"
	"crisp/cri/pod"
	"crisp/cri/pod/stdio"
	"crisp/cri/stream"
	"crisp/network/portforward"
)

// Sessions runs streaming sessions for the streaming server.
type Sessions struct {
	Pods *pod.Manager
	// Audit gets a line for each session; nil for none.
	Audit *audit.Log
}

// Exec runs a command for a client of the streaming server.
func (s Sessions) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	end := s.begin(ctx, audit.Record{Call: audit.Exec, ContainerID: id, TTY: tty, Stdin: in != nil}, cmd)
	st, stop := streams(in, out, errw, tty, resize)
	defer stop()
	code, err := s.Pods.Exec(ctx, id, cmd, st)
	end(code, err)
	if err != nil {
		return err
	}
	if code != 0 {
		return &stream.ExitError{Code: code}
	}
	return nil
}

// Attach connects a client of the streaming server to a container.
func (s Sessions) Attach(ctx context.Context, id string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	end := s.begin(ctx, audit.Record{Call: audit.Attach, ContainerID: id, TTY: tty, Stdin: in != nil}, nil)
	st, stop := streams(in, out, errw, tty, resize)
	defer stop()
	err := s.Pods.Attach(ctx, id, st)
	end(0, err)
	return err
}

// PortForward connects a stream to a port in a pod's network namespace.
func (s Sessions) PortForward(ctx context.Context, id string, port int32, conn io.ReadWriteCloser) (err error) {
	end := s.begin(ctx, audit.Record{Call: audit.PortForward, PodID: id, Port: port}, nil)
	defer func() { end(0, err) }()
	ns, err := s.Pods.OpenNetwork(id)
	if err != nil {
		return err
	}
	defer ns.Close()
	return portforward.Forward(ctx, ns, int(port), conn)
}

// begin begins a line about a session.
func (s Sessions) begin(ctx context.Context, r audit.Record, cmd []string) (end func(int, error)) {
	if !s.Audit.On() {
		return func(int, error) {}
	}
	of := stream.SessionOf(ctx)
	r.Caller, _ = of.Issuer.(*audit.Caller)
	r.Client = of.Client
	identify(s.Pods, &r)
	return s.Audit.Begin(r, cmd)
}

// identify adds the names of what an ID is about.
func identify(pods *pod.Manager, r *audit.Record) {
	of, err := (*pod.Record)(nil), error(nil)
	if r.ContainerID != "" {
		var c *pod.Container
		if c, of, err = pods.Container(r.ContainerID); err == nil {
			r.ContainerID, r.Container = c.ID, c.Config.Msg.GetMetadata().GetName()
		}
	} else {
		of, err = pods.Sandbox(r.PodID)
	}
	if err != nil {
		return // there is none; the call says so
	}
	md := of.Config.Msg.GetMetadata()
	r.PodID, r.Namespace, r.Pod = of.ID, md.GetNamespace(), md.GetName()
}

// streams converts a session's streams; stop ends the conversion.
func streams(in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) (stdio.Streams, func()) {
	st := stdio.Streams{Stdin: in, TTY: tty}
	if out != nil {
		st.Stdout = out
	}

	if errw != nil && !tty {
		st.Stderr = errw
	}
	if resize == nil {
		return st, func() {}
	}

	sizes, quit := make(chan stdio.TerminalSize), make(chan struct{})
	st.Resize = sizes
	go func() {
		for {
			select {
			case r, ok := <-resize:
				if !ok {
					return
				}
				select {
				case sizes <- stdio.TerminalSize{Width: r.Width, Height: r.Height}:
				case <-quit:
					return
				}
			case <-quit:
				return
			}
		}
	}()

	return st, func() { close(quit) }
}
