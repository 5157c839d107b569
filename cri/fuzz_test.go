package cri

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
	"k8s.io/klog/v2"
)

const (
	// answerTime is how long a call may take.
	answerTime = 5 * time.Second
	// maxErrorText is how long the text of an error may be: it travels in a header.
	maxErrorText = 16 << 10
	// quietTime is how long to wait for a message on a stream.
	quietTime = 20 * time.Millisecond
)

// The ways to make a request of bytes.
const (
	asTheyAre byte = iota
	asksLittle
	asksMuch
	modes
)

// rpc is one call of the API.
type rpc struct {
	path    string
	stream  bool
	request protoreflect.MessageType
	answer  protoreflect.MessageType
}

func (r rpc) name() string { return r.path[strings.LastIndexByte(r.path, '/')+1:] }

// rpcs finds all calls that the server implements.
func (s *scene) rpcs(t testing.TB) (list []rpc) {
	t.Helper()
	for service, info := range s.info {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		if err != nil {
			t.Fatal(err)
		}

		for _, m := range info.Methods {
			of := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(m.Name))
			request, err := protoregistry.GlobalTypes.FindMessageByName(of.Input().FullName())
			if err != nil {
				t.Fatal(err)
			}

			answer, err := protoregistry.GlobalTypes.FindMessageByName(of.Output().FullName())
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, rpc{"/" + service + "/" + m.Name, m.IsServerStream, request, answer})
		}
	}

	slices.SortFunc(list, func(a, b rpc) int { return strings.Compare(a.path, b.path) })
	return list
}

// FuzzCalls makes every call of both services with arbitrary requests: with raw
// bytes (mode 0), and with valid requests, minimal or rich, in which the bytes
// change some fields. The server is the daemon's; its keeper, images and
// cgroups are fakes, see [scene]. Each call must return in time, with a code
// chosen for its error, and leave behind only what it was asked to create.
func FuzzCalls(f *testing.F) {
	klog.SetLogger(logr.Discard())
	f.Cleanup(klog.ClearLogger)
	s := newScene(f)
	list := s.rpcs(f)
	random := rand.New(rand.NewPCG(1, 2))
	for i, r := range list {
		data, err := proto.Marshal(s.request(r, true).Interface())
		if err != nil {
			f.Fatal(err)
		}

		for _, raw := range []string{"", "\x0a\x01\xff\xff", string(data)} {
			f.Add(byte(i), asTheyAre, []byte(raw))
		}
		f.Add(byte(i), asksLittle, []byte{})
		f.Add(byte(i), asksMuch, []byte{})

		for range 16 * min(r.request.Descriptor().Fields().Len(), 4) {
			changes := make([]byte, 6+random.IntN(30))
			for i := range changes {
				changes[i] = byte(random.Uint32())
			}
			f.Add(byte(i), asksMuch, changes)
		}
	}

	outside := places(f)
	f.Fuzz(func(t *testing.T, which, mode byte, data []byte) {
		r, before := list[int(which)%len(list)], runtime.NumGoroutine()
		if mode %= modes; mode != asTheyAre {
			m := s.request(r, mode == asksMuch)
			(&changer{s: s, data: data}).change(m)
			s.confine(m)
			var err error
			if data, err = proto.Marshal(m.Interface()); err != nil {
				t.Fatal(err)
			}
		} else {
			data = s.confined(t, r, data)
		}

		s.follow(t, r, s.try(t, r, data))

		s.restore(t)
		settle(t, before)
		if now := places(t); !slices.Equal(now, outside) {
			t.Errorf("made outside of the test's directory: there is %q, there was %q", now, outside)
		}
	})
}

// try makes a call and checks its response. It returns the first message of the
// response, if there is one.
func (s *scene) try(t *testing.T, r rpc, data []byte) proto.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*answerTime)
	defer cancel()
	start := time.Now()
	answers, err := s.call(ctx, r, data)

	if took := time.Since(start); took > answerTime {
		t.Errorf("%s took %v (%v)", r.name(), took, err)
	}
	checkError(t, r, err)
	var first proto.Message
	for _, a := range answers {
		m := r.answer.New().Interface()
		if err := proto.Unmarshal(a, m); err != nil {
			t.Errorf("%s returns an invalid %s: %v", r.name(), r.answer.Descriptor().Name(), err)
		}
		if first == nil {
			first = m
		}
	}

	return first
}

func checkError(t *testing.T, r rpc, err error) {
	t.Helper()
	if err == nil {
		return
	}

	st := status.Convert(err)
	text := st.Message()
	switch {
	case strings.HasPrefix(text, "internal error in "):
		t.Errorf("%s panicked: %s", r.name(), text)
	case st.Code() == codes.Unknown && !(r.name() == "PullImage" && hasToken(text)):
		t.Errorf("%s failed without a code: %s", r.name(), text)
	case st.Code() == codes.Internal && strings.HasPrefix(text, "grpc: failed to unmarshal"): // before any of crisp's code
	case st.Code() == codes.Internal && os.Geteuid() != 0 && strings.Contains(text, "operation not permitted"):
	case st.Code() == codes.Internal:
		t.Errorf("%s holds the request's fault for ours: %s", r.name(), text)
	}

	if len(text) > maxErrorText || !utf8.ValidString(text) {
		t.Errorf("%s failed with %d bytes of text, valid: %t", r.name(), len(text), utf8.ValidString(text))
	}
}

// hasToken reports whether kubelet finds one of its tokens in an error of
// PullImage.
func hasToken(text string) bool {
	return strings.HasPrefix(text, crierrors.ErrRegistryUnavailable.Error()) ||
		strings.HasPrefix(text, crierrors.ErrSignatureValidationFailed.Error())
}

// call makes a call and returns the encoded responses.
func (s *scene) call(ctx context.Context, r rpc, data []byte) (answers [][]byte, err error) {
	if !r.stream {
		var answer []byte
		if err := s.client.Invoke(ctx, r.path, &data, &answer, grpc.ForceCodecV2(plain{})); err != nil {
			return nil, err
		}
		return [][]byte{answer}, nil
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := s.client.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, r.path, grpc.ForceCodecV2(plain{}))
	if err == nil {
		err = errors.Join(st.SendMsg(&data), st.CloseSend())
	}
	if err != nil {
		return nil, err
	}

	defer time.AfterFunc(quietTime, cancel).Stop()
	for {
		var answer []byte
		err := st.RecvMsg(&answer)
		if errors.Is(err, io.EOF) {
			return answers, nil
		}
		if err != nil {
			return answers, err
		}
		answers = append(answers, answer)
	}
}

// plain sends and receives messages as bytes.
type plain struct{}

func (plain) Name() string { return "proto" }

func (plain) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (plain) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// follow uses what a call has created.
func (s *scene) follow(t *testing.T, r rpc, answer proto.Message) {
	t.Helper()
	var steps []proto.Message
	switch a := answer.(type) {
	case *runtimeapi.RunPodSandboxResponse:
		steps = []proto.Message{
			&runtimeapi.PodSandboxStatusRequest{PodSandboxId: a.PodSandboxId, Verbose: true},
			&runtimeapi.CreateContainerRequest{PodSandboxId: a.PodSandboxId, Config: containerConfig("following")},
			&runtimeapi.StopPodSandboxRequest{PodSandboxId: a.PodSandboxId},
		}
	case *runtimeapi.CreateContainerResponse:
		steps = []proto.Message{
			&runtimeapi.StartContainerRequest{ContainerId: a.ContainerId},
			&runtimeapi.ExecSyncRequest{ContainerId: a.ContainerId, Cmd: []string{"true"}},
			&runtimeapi.ContainerStatusRequest{ContainerId: a.ContainerId, Verbose: true},
			&runtimeapi.StopContainerRequest{ContainerId: a.ContainerId},
		}
	case *runtimeapi.UpdateContainerResourcesResponse:
		steps = []proto.Message{
			&runtimeapi.ContainerStatusRequest{ContainerId: s.running, Verbose: true},
			&runtimeapi.StartContainerRequest{ContainerId: s.created},
		}
	}

	for _, req := range steps {
		data, err := proto.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}

		for _, next := range s.rpcs(t) {
			if next.request.Descriptor() == req.ProtoReflect().Descriptor() {
				s.follow(t, next, s.try(t, next, data))
			}
		}
	}
}

// settle waits until everything that a call has started has ended.
func settle(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(answerTime); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			t.Errorf("%d goroutines, there were %d:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
			return
		}
	}
}

// places lists where a path that escapes from the test's directory would create
// something.
func places(t testing.TB) (list []string) {
	t.Helper()
	for _, dir := range []string{"/", "."} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "testdata" { // where the fuzz engine writes
				list = append(list, filepath.Join(dir, e.Name()))
			}
		}
	}
	return list
}
