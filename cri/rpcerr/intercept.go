package rpcerr

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// Levels of verbosity at which calls are logged.
const (
	levelChange klog.Level = 2 // calls that change state
	levelRead   klog.Level = 5 // read-only calls, which kubelet repeats every second
)

// Unary returns the interceptor of unary calls: it maps errors to codes, turns
// a panic into an error and logs the call. A request is never logged as a
// whole, because it may carry registry credentials and environments; only the
// ID that it names is.
func (m *Mapper) Unary() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		c := begin(info.FullMethod, req)
		defer func() { c.end(err) }()
		defer m.guard(info.FullMethod, &err)
		return handler(ctx, req)
	}
}

// Stream returns the interceptor of streaming calls.
func (m *Mapper) Stream() grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		c := begin(info.FullMethod, nil)
		defer func() { c.end(err) }()
		defer m.guard(info.FullMethod, &err)
		return handler(srv, ss)
	}
}

// guard is deferred by a handler: it recovers from a panic and maps the error.
func (m *Mapper) guard(method string, err *error) {
	if p := recover(); p != nil {
		klog.ErrorS(nil, "Call panicked", "method", path.Base(method), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "internal error in %s: %v", path.Base(method), p)
		return
	}
	*err = m.Status(method, *err)
}

// call is a call in progress.
type call struct {
	method string
	id     string
	start  time.Time
}

func begin(method string, req any) call {
	return call{method: path.Base(method), id: identify(req), start: time.Now()}
}

// identify returns the ID or the image that a request names, if any.
func identify(req any) string {
	switch r := req.(type) {
	case interface{ GetContainerId() string }:
		return r.GetContainerId()
	case interface{ GetPodSandboxId() string }:
		return r.GetPodSandboxId()
	case interface{ GetImage() *runtimeapi.ImageSpec }:
		return r.GetImage().GetImage()
	}
	return ""
}

func (c call) end(err error) {
	took := time.Since(c.start).Round(time.Microsecond)
	switch code := status.Code(err); {
	case code == codes.OK && isRead(c.method):
		klog.V(levelRead).InfoS("Call", "method", c.method, "id", c.id, "took", took)
	case code == codes.OK:
		klog.V(levelChange).InfoS("Call", "method", c.method, "id", c.id, "took", took)
	case code == codes.Internal:
		klog.ErrorS(err, "Call failed", "method", c.method, "id", c.id, "took", took)
	default:
		klog.InfoS("Call refused", "method", c.method, "id", c.id, "took", took, "err", err)
	}
}

// isRead reports whether a call is read-only.
func isRead(method string) bool {
	switch method {
	case "Version", "Status", "RuntimeConfig", "PodSandboxStatus", "ContainerStatus", "ImageStatus",
		"ContainerStats", "PodSandboxStats", "ImageFsInfo":
		return true
	}
	return strings.HasPrefix(method, "List") || strings.HasPrefix(method, "Stream") || strings.HasPrefix(method, "Get")
}
