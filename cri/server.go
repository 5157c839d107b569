package cri

import (
	"context"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"crisp/cri/pod"
	"crisp/cri/pod/stdio"
	"crisp/cri/rpcerr"
	"crisp/cri/rpcerr/rules"
	"crisp/cri/stats"
	"crisp/cri/stream"
	"crisp/image"
	"crisp/network/portforward"
	"crisp/runtime/host"
)

// The response of the Version RPC. Kubelet uses the runtime's name as the
// prefix of container IDs, so it must never change.
const (
	runtimeName    = "crisp"
	kubeletVersion = "0.1.0"
	apiVersion     = "v1"
)

// Streamer issues URLs for streaming sessions.
type Streamer interface {
	GetExec(*runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	GetAttach(*runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	GetPortForward(*runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// NetworkStatus reports the state of the network for Status, and receives the subnets of pods.
type NetworkStatus interface {
	// Status returns nil when pods can be connected.
	Status(ctx context.Context) error
	// Info returns details, which are encoded as JSON, for verbose responses.
	Info() any
	// SetPodCIDR sets the subnets of new pods, if that is for the runtime to decide.
	SetPodCIDR(cidrs string) error
}

// Server implements the RuntimeService and the ImageService.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	// RuntimeVersion is crisp's semantic version.
	RuntimeVersion string

	Pods    *pod.Manager
	Images  *image.Service
	Network NetworkStatus
	Stats   *stats.Collector
	Streams Streamer
	Host    host.Facts
	// CgroupDriver is "systemd" or "cgroupfs".
	CgroupDriver string
	// Handlers are the runtime handlers in addition to the default, "".
	Handlers []string
	// Settings are shown in the verbose Status.
	Settings any
}

// maxMessage bounds a message in either direction, in bytes; kubelet's client
// accepts 16 MiB.
const maxMessage = 16 << 20

// Interceptors see all calls.
type Interceptors interface {
	Unary() grpc.UnaryServerInterceptor
	Stream() grpc.StreamServerInterceptor
}

// ServerOptions returns the options of the gRPC server: message sizes, the
// codec, and the interceptors that map errors and log calls. Those of outer, the first
// of which is called first, see the calls as clients do.
func ServerOptions(outer ...Interceptors) []grpc.ServerOption {
	var unary []grpc.UnaryServerInterceptor
	var stream []grpc.StreamServerInterceptor
	for _, o := range append(slices.Clip(outer), rpcerr.New(rules.All())) {
		unary, stream = append(unary, o.Unary()), append(stream, o.Stream())
	}

	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(stream...),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), Codec(),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	}
}

// Register adds both services to a gRPC server.
func (s *Server) Register(g *grpc.Server) {
	runtimeapi.RegisterRuntimeServiceServer(g, s)
	runtimeapi.RegisterImageServiceServer(g, s)
}

// Sessions runs streaming sessions for the streaming server.
type Sessions struct{ Pods *pod.Manager }

// Exec runs a command for a client of the streaming server.
func (s Sessions) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	st, stop := streams(in, out, errw, tty, resize)
	defer stop()
	code, err := s.Pods.Exec(ctx, id, cmd, st)
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
	st, stop := streams(in, out, errw, tty, resize)
	defer stop()
	return s.Pods.Attach(ctx, id, st)
}

// PortForward connects a stream to a port in a pod's network namespace.
func (s Sessions) PortForward(ctx context.Context, id string, port int32, conn io.ReadWriteCloser) error {
	ns, err := s.Pods.OpenNetwork(id)
	if err != nil {
		return err
	}
	defer ns.Close()
	return portforward.Forward(ctx, ns, int(port), conn)
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
