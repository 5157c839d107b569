package cri

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/audit"
	"crisp/cri/pod"
	"crisp/cri/rpcerr"
	"crisp/cri/rpcerr/rules"
	"crisp/cri/stats"
	"crisp/image"
	"crisp/runtime/host"
)

// The response of the Version RPC. Kubelet uses the runtime's name as the
// prefix of container IDs, so it must never change.
const (
	runtimeName    = "crisp"
	kubeletVersion = "0.1.0"
	apiVersion     = "v1"
)

// Streamer issues URLs for streaming sessions, to who calls.
type Streamer interface {
	GetExec(issuer any, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	GetAttach(issuer any, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	GetPortForward(issuer any, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
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
	// Audit gets a line for each command; nil for none.
	Audit *audit.Log
	Host  host.Facts
	// CgroupDriver is "systemd" or "cgroupfs".
	CgroupDriver string
	// Settings returns what the verbose Status shows of the configuration.
	Settings func() any
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
