package rpcerr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
	"k8s.io/klog/v2"
)

var (
	errNotFound    = errors.New("not found")
	errUnavailable = errors.New("registry unavailable")
	errSpecial     = fmt.Errorf("special: %w", errNotFound)
)

const (
	pull       = "/runtime.v1.ImageService/PullImage"
	statusCall = "/runtime.v1.RuntimeService/ContainerStatus"
)

func testMapper() *Mapper {
	return New([]Rule{
		{Err: errSpecial, Code: codes.AlreadyExists},
		{Err: errNotFound, Code: codes.NotFound},
		{Err: errUnavailable, Code: codes.Unavailable, Token: crierrors.ErrRegistryUnavailable},
	})
}

func TestStatus(t *testing.T) {
	m := testMapper()
	for _, tt := range []struct {
		name, method string
		err          error
		code         codes.Code
		message      string
	}{
		{"rule", statusCall, fmt.Errorf("container x: %w", errNotFound), codes.NotFound, "container x: not found"},
		{"first rule counts", statusCall, errSpecial, codes.AlreadyExists, "special: not found"},
		{"joined", statusCall, errors.Join(io.EOF, errNotFound), codes.NotFound, "EOF\nnot found"},
		{"unmapped", statusCall, io.ErrUnexpectedEOF, codes.Internal, "unexpected EOF"},
		{"deadline", statusCall, fmt.Errorf("exec: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "exec: context deadline exceeded"},
		{"canceled", statusCall, context.Canceled, codes.Canceled, "context canceled"},
		{"rule beats context", statusCall, fmt.Errorf("%w: %w", errNotFound, context.Canceled), codes.NotFound, "not found: context canceled"},
		{"disk read-only", statusCall, &os.PathError{Op: "open", Path: "/x", Err: syscall.EROFS}, codes.FailedPrecondition, "open /x: read-only file system"},
		{"disk full", statusCall, &os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, codes.ResourceExhausted, "write /x: no space left on device"},
		{"too many files", statusCall, fmt.Errorf("pipe: %w", syscall.EMFILE), codes.ResourceExhausted, "pipe: too many open files"},
		{"too many processes", statusCall, fmt.Errorf("clone: %w", syscall.EAGAIN), codes.ResourceExhausted, "clone: resource temporarily unavailable"},
		{"name too long", statusCall, &os.PathError{Op: "mkdir", Path: "/x", Err: syscall.ENAMETOOLONG}, codes.InvalidArgument, "mkdir /x: file name too long"},
		{"file in a path", statusCall, &os.PathError{Op: "mkdir", Path: "/x/y", Err: syscall.ENOTDIR}, codes.FailedPrecondition, "mkdir /x/y: not a directory"},
		{"links in a circle", statusCall, &os.PathError{Op: "open", Path: "/x", Err: syscall.ELOOP}, codes.FailedPrecondition, "open /x: too many levels of symbolic links"},
		{"read-only disk", statusCall, fmt.Errorf("write: %w", syscall.EROFS), codes.FailedPrecondition, "write: read-only file system"},
		{"no memory to ask a registry", pull, fmt.Errorf("%w: dial: %w", errUnavailable, syscall.ENOMEM), codes.ResourceExhausted, "registry unavailable: dial: cannot allocate memory"},
		{"no descriptor for a file that is asked for", statusCall, fmt.Errorf("%w: %w", errNotFound, syscall.EMFILE), codes.ResourceExhausted, "not found: too many open files"},
		{"token elsewhere", statusCall, errUnavailable, codes.Unavailable, "registry unavailable"},
		{"token", pull, fmt.Errorf("pull x: %w", errUnavailable), codes.Unknown, "RegistryUnavailable: pull x: registry unavailable"},
		{"token is there", pull, fmt.Errorf("%w: %w", crierrors.ErrRegistryUnavailable, errUnavailable), codes.Unknown, "RegistryUnavailable: registry unavailable"},
		{"pull without token", pull, errNotFound, codes.NotFound, "not found"},
		{"pull unmapped", pull, io.EOF, codes.Internal, "EOF"},
		{"status", statusCall, status.Error(codes.Unimplemented, "no"), codes.Unimplemented, "no"},
		{"wrapped status", statusCall, fmt.Errorf("x: %w", status.Error(codes.Aborted, "no")), codes.Aborted, "x: rpc error: code = Aborted desc = no"},
		{"unknown status", statusCall, status.Error(codes.Unknown, "no"), codes.Internal, "no"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, ok := status.FromError(m.Status(tt.method, tt.err))
			if !ok || s.Code() != tt.code || s.Message() != tt.message {
				t.Errorf("Status() = %v %q, want %v %q", s.Code(), s.Message(), tt.code, tt.message)
			}
		})
	}

	if err := m.Status(statusCall, nil); err != nil {
		t.Errorf("Status(nil) = %v", err)
	}
}

// TestKubeletFindsToken does what kubelet does with an error of PullImage.
func TestKubeletFindsToken(t *testing.T) {
	err := testMapper().Status(pull, fmt.Errorf("pull docker.io/x: %w", errUnavailable))
	message := err.Error()
	if s, ok := status.FromError(err); ok && s.Code() == codes.Unknown {
		message = s.Message()
	}
	if !strings.HasPrefix(message, crierrors.ErrRegistryUnavailable.Error()) {
		t.Errorf("message %q", message)
	}
}

// TestBegins requires the text that kubelet expects at the beginning of a
// message.
func TestBegins(t *testing.T) {
	m := New([]Rule{{Err: errNotFound, Code: codes.FailedPrecondition, Begins: true}})
	for text, err := range map[string]error{
		"%s: create: %s: at /x": fmt.Errorf("create: %w: at /x", errNotFound),
		"%s: at /x":             fmt.Errorf("%w: at /x", errNotFound),
	} {
		want := strings.ReplaceAll(text, "%s", errNotFound.Error())
		if s, _ := status.FromError(m.Status("/runtime.v1.RuntimeService/CreateContainer", err)); s.Message() != want || s.Code() != codes.FailedPrecondition {
			t.Errorf("%v: %q, want %q", s.Code(), s.Message(), want)
		}
	}
}

func TestNewCopiesTheTable(t *testing.T) {
	table := make([]Rule, 1, 8)
	table[0] = Rule{Err: errNotFound, Code: codes.NotFound}
	m := New(table)
	table[0].Code = codes.Aborted
	if code := status.Code(m.Status(statusCall, errNotFound)); code != codes.NotFound {
		t.Errorf("code %v changed with the caller's table", code)
	}
	if table[:2][1].Err != nil {
		t.Error("the caller's array was written to")
	}
}

// captureLog returns what is logged while do runs.
func captureLog(t *testing.T, do func()) string {
	t.Helper()
	var b bytes.Buffer
	klog.LogToStderr(false)
	klog.SetOutput(&b)
	defer func() {
		klog.Flush()
		klog.SetOutput(io.Discard)
		klog.LogToStderr(true)
	}()

	var level klog.Level
	if err := level.Set("9"); err != nil {
		t.Fatal(err)
	}
	defer level.Set("0")

	do()
	klog.Flush()
	return b.String()
}

func unary(m *Mapper, method string, req any, handler grpc.UnaryHandler) (any, error) {
	return m.Unary()(context.Background(), req, &grpc.UnaryServerInfo{FullMethod: method}, handler)
}

func TestUnary(t *testing.T) {
	m := testMapper()
	answer, err := unary(m, statusCall, nil, func(context.Context, any) (any, error) { return "yes", nil })
	if err != nil || answer != "yes" {
		t.Errorf("response %v, %v", answer, err)
	}
	_, err = unary(m, statusCall, nil, func(context.Context, any) (any, error) { return nil, errNotFound })
	if status.Code(err) != codes.NotFound {
		t.Errorf("err = %v", err)
	}
}

func TestPanicIsInternal(t *testing.T) {
	m := testMapper()
	log := captureLog(t, func() {
		_, err := unary(m, statusCall, nil, func(context.Context, any) (any, error) { panic("boom") })
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "boom") {
			t.Errorf("err = %v", err)
		}
		err = m.Stream()(nil, nil, &grpc.StreamServerInfo{FullMethod: "/x/GetContainerEvents"}, func(any, grpc.ServerStream) error { panic(io.EOF) })
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "EOF") {
			t.Errorf("err = %v", err)
		}
	})

	if !strings.Contains(log, "TestPanicIsInternal") {
		t.Errorf("the log has no stack:\n%s", log)
	}
}

// TestSecretsAreNotLogged searches the log for the content of a request, at the
// highest verbosity, for calls that succeed, fail and panic.
func TestSecretsAreNotLogged(t *testing.T) {
	m := testMapper()
	secrets := []string{"hunter2", "dXNlcg", "tok-id", "tok-reg", "env-secret"}
	auth := &runtimeapi.AuthConfig{Username: "u", Password: secrets[0], Auth: secrets[1], IdentityToken: secrets[2], RegistryToken: secrets[3]}
	requests := map[string]any{
		pull: &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "busybox:1"}, Auth: auth},
		"/runtime.v1.RuntimeService/CreateContainer": &runtimeapi.CreateContainerRequest{
			PodSandboxId: "sandbox-1",
			Config:       &runtimeapi.ContainerConfig{Envs: []*runtimeapi.KeyValue{{Key: "A", Value: []byte(secrets[4])}}},
		},
	}

	log := captureLog(t, func() {
		for method, req := range requests {
			for _, handler := range []grpc.UnaryHandler{
				func(context.Context, any) (any, error) { return nil, nil },
				func(context.Context, any) (any, error) { return nil, io.EOF },
				func(context.Context, any) (any, error) { panic("x") },
			} {
				_, _ = unary(m, method, req, handler)
			}
		}
	})

	for _, s := range secrets {
		if strings.Contains(log, s) {
			t.Errorf("%q is in the log:\n%s", s, log)
		}
	}

	for _, want := range []string{"PullImage", "busybox:1", "CreateContainer", "sandbox-1", "took="} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}

func TestStream(t *testing.T) {
	m := testMapper()
	info := &grpc.StreamServerInfo{FullMethod: "/runtime.v1.RuntimeService/StreamContainers"}
	err := m.Stream()(nil, nil, info, func(any, grpc.ServerStream) error { return errNotFound })
	if status.Code(err) != codes.NotFound {
		t.Errorf("err = %v", err)
	}
	if err := m.Stream()(nil, nil, info, func(any, grpc.ServerStream) error { return nil }); err != nil {
		t.Errorf("err = %v", err)
	}
}

func TestIsRead(t *testing.T) {
	for method, want := range map[string]bool{
		"ListContainers": true, "Status": true, "GetContainerEvents": true, "StreamImages": true, "ImageStatus": true,
		"StartContainer": false, "PullImage": false, "StopPodSandbox": false, "UpdateRuntimeConfig": false, "Exec": false,
	} {
		if isRead(method) != want {
			t.Errorf("isRead(%s) = %v", method, !want)
		}
	}
}
