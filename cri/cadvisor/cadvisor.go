// Package cadvisor tells cAdvisor, which is built into kubelet, which cgroup
// belongs to which container.
//
// cAdvisor finds every cgroup by itself and reads its statistics, but it
// attributes them to pods only for runtimes that it knows. One of the two that
// it knows is containerd. It makes just three calls about a cgroup whose name
// has 64 hexadecimal digits: Version once, Containers.Get to see whether there
// is such a container, and Tasks.Get for its process. A [Server] serves these
// three from the records of pods, on the socket where cAdvisor expects
// containerd. All are read-only, and any other call is Unimplemented.
//
// cAdvisor reads a pod's network in the namespace of the process of a container
// that is labelled as the pod's sandbox, when it first sees the cgroup.
// So a pod needs a process that lives as long as the pod; see
// [crisp/cri/pod.Options].
//
// The messages are those of containerd's API, containers/v1, tasks/v1 and
// version/v1. Few of their fields are used, so they are encoded manually here
// instead of with 200 generated types.
package cadvisor

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

// ErrRequest means that a request cannot be decoded, or has no container ID.
var ErrRequest = errors.New("invalid request")

// ErrNotStarted means that the container has no process yet, from which
// cAdvisor reads limits or a pod's network. It asks again for three seconds;
// after that, once a minute.
var ErrNotStarted = errors.New("not started yet")

// Container describes a container, or a pod's sandbox, to cAdvisor.
type Container struct {
	ID     string
	Labels map[string]string
	Image  string
	// Sandbox means that Pid is in the pod's network namespace, whose statistics
	// are the pod's.
	Sandbox bool
	// CreatedAt is in nanoseconds since the epoch.
	CreatedAt int64
	// Pid is the first process, 0 before it has been started.
	Pid int
	// Exited means that the process has exited, with ExitCode.
	Exited   bool
	ExitCode int32
	// Spec is the runtime-spec as JSON.
	Spec []byte
}

// Source returns a container by its full ID.
type Source func(id string) (Container, error)

// Server serves cAdvisor.
type Server struct {
	Version string
	Source  Source
}

// Options are the options of the gRPC server for [Server.Register]; intercept
// maps errors to codes. Because of their codec that server can serve nothing
// else.
func Options(intercept grpc.UnaryServerInterceptor) []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(frames{}), grpc.MaxRecvMsgSize(maxRequest), grpc.UnaryInterceptor(intercept)}
}

// maxRequest is ample for an ID.
const maxRequest = 4 << 10

// Register adds the three calls to a gRPC server.
func (s *Server) Register(g *grpc.Server) {
	g.RegisterService(service("containerd.services.version.v1.Version", "Version", func([]byte) ([]byte, error) {
		return versionMessage(s.Version), nil
	}), s)
	g.RegisterService(service("containerd.services.containers.v1.Containers", "Get", func(request []byte) ([]byte, error) {
		c, err := s.named(request)
		if err != nil {
			return nil, err
		}
		return containerMessage(c), nil
	}), s)

	g.RegisterService(service("containerd.services.tasks.v1.Tasks", "Get", func(request []byte) ([]byte, error) {
		c, err := s.named(request)
		if err == nil && c.Pid == 0 && !c.Exited {
			err = fmt.Errorf("find the process of %s: %w", c.ID, ErrNotStarted)
		}
		if err != nil {
			return nil, err
		}
		return taskMessage(c), nil
	}), s)
}

// named returns the container whose ID is in a request's first field.
func (s *Server) named(request []byte) (Container, error) {
	id, err := firstField(request)
	if err != nil {
		return Container{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return s.Source(id)
}

// service describes a service with one call.
func service(name, call string, answer func(request []byte) ([]byte, error)) *grpc.ServiceDesc {
	handle := func(s any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		var request frame
		if err := decode(&request); err != nil {
			return nil, err
		}

		info := &grpc.UnaryServerInfo{Server: s, FullMethod: "/" + name + "/" + call}
		return intercept(ctx, &request, info, func(context.Context, any) (any, error) {
			data, err := answer(request)
			return (*frame)(&data), err
		})
	}
	return &grpc.ServiceDesc{
		ServiceName: name, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: call, Handler: handle}},
	}
}

// frame is an encoded message.
type frame []byte

// frames is a codec that leaves messages as they are.
type frames struct{}

// Name returns the content subtype of the messages.
func (frames) Name() string { return "proto" }

// Marshal returns a frame's bytes.
func (frames) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("encode %T: only frames are sent", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*f)}, nil
}

// Unmarshal copies a message into a frame.
func (frames) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("decode %T: only frames are received", v)
	}
	*f = data.Materialize()
	return nil
}
