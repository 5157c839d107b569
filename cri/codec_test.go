package cri

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/stats"
	"crisp/image"
	"crisp/network/netns"
	"crisp/runtime/untrusted"
)

// serve serves both services on a socket, as the daemon does, and returns a
// connection to it.
func serve(t *testing.T, register func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	g := grpc.NewServer(Codec())
	register(g)
	path := filepath.Join(t.TempDir(), "crisp.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}

	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	return conn
}

const invalid = "bad\xff\xc0text"

// poison fills every field of a message, text with invalid UTF-8.
func poison(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch {
		case fd.IsMap():
			v := m.NewField(fd)
			if value, ok := poisonValue(fd.MapValue(), v.Map().NewValue, depth); ok && fd.MapKey().Kind() == protoreflect.StringKind {
				v.Map().Set(protoreflect.ValueOfString(invalid).MapKey(), value)
				v.Map().Set(protoreflect.ValueOfString("good").MapKey(), value)
				m.Set(fd, v)
			}
		case fd.IsList():
			v := m.NewField(fd)
			for range 2 {
				if value, ok := poisonValue(fd, v.List().NewElement, depth); ok {
					v.List().Append(value)
				}
			}
			m.Set(fd, v)
		default:
			if value, ok := poisonValue(fd, func() protoreflect.Value { return m.NewField(fd) }, depth); ok {
				m.Set(fd, value)
			}
		}
	}
}

func poisonValue(fd protoreflect.FieldDescriptor, fresh func() protoreflect.Value, depth int) (protoreflect.Value, bool) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(invalid), true
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(42), true
	case protoreflect.MessageKind:
		if depth == 0 {
			return protoreflect.Value{}, false
		}
		v := fresh()
		poison(v.Message(), depth-1)
		return v, true
	}
	return protoreflect.Value{}, false
}

// answers are poisoned responses of every call of a service; the calls come
// from the descriptor, so that none is forgotten.
func poisoned(t *testing.T, service protoreflect.ServiceDescriptor, desc *grpc.ServiceDesc) {
	out := &grpc.ServiceDesc{ServiceName: desc.ServiceName, HandlerType: (*any)(nil)}
	methods := service.Methods()
	answer := func(method protoreflect.MethodDescriptor) proto.Message {
		m := dynamicpb.NewMessage(method.Output())
		poison(m, 6)
		return m
	}

	for i := range methods.Len() {
		method := methods.Get(i)
		if method.IsStreamingServer() {
			out.Streams = append(out.Streams, grpc.StreamDesc{StreamName: string(method.Name()), ServerStreams: true,
				Handler: func(_ any, s grpc.ServerStream) error { return s.SendMsg(answer(method)) }})
			continue
		}

		out.Methods = append(out.Methods, grpc.MethodDesc{MethodName: string(method.Name()),
			Handler: func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
				return answer(method), nil
			}})
	}

	conn := serve(t, func(g *grpc.Server) { g.RegisterService(out, struct{}{}) })
	for i := range methods.Len() {
		method := methods.Get(i)
		t.Run(string(method.Name()), func(t *testing.T) {
			got := dynamicpb.NewMessage(method.Output())
			ask(t, conn, "/"+desc.ServiceName+"/"+string(method.Name()), method.IsStreamingServer(), dynamicpb.NewMessage(method.Input()), got)
			want := dynamicpb.NewMessage(method.Output())
			poison(want, 6)
			makeValid(want)
			if !proto.Equal(got, want) || strings.Contains(got.String(), invalid) {
				t.Errorf("got %v", got)
			}
		})
	}
}

// ask makes a call and returns its first response.
func ask(t *testing.T, conn *grpc.ClientConn, method string, stream bool, request, answer any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if !stream {
		if err := conn.Invoke(ctx, method, request, answer); err != nil {
			t.Fatal(err)
		}
		return
	}

	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}

	if err := s.SendMsg(request); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}

	if err := s.RecvMsg(answer); err != nil {
		t.Fatal(err)
	}
}

// Whatever text is in a response, the client receives it.
func TestAnswersAreValid(t *testing.T) {
	services := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	poisoned(t, services.ByName("RuntimeService"), &runtimeapi.RuntimeService_ServiceDesc)
	poisoned(t, services.ByName("ImageService"), &runtimeapi.ImageService_ServiceDesc)
}

// Distinct keys stay distinct.
func TestMapsKeepTheirEntries(t *testing.T) {
	m := &runtimeapi.PodSandbox{Labels: map[string]string{"\xff": "1", "\xfe": "2", "good": "3\xff"}}
	makeValid(m.ProtoReflect())
	if want := map[string]string{`\xff`: "1", `\xfe`: "2", "good": "3\uFFFD"}; !mapsEqual(m.Labels, want) {
		t.Errorf("labels %q", m.Labels)
	}
}

func mapsEqual(a, b map[string]string) bool {
	return proto.Equal(&runtimeapi.PodSandbox{Labels: a}, &runtimeapi.PodSandbox{Labels: b})
}

// hostilePods have interfaces with names chosen by a container, and one pod has
// so many that they would fill the whole response.
type hostilePods struct{}

func (hostilePods) Pods() []stats.Pod {
	pod := func(id string, names ...string) stats.Pod {
		return stats.Pod{
			Attributes: &runtimeapi.PodSandboxAttributes{Id: id}, Ready: true,
			Network: func() ([]netns.InterfaceStats, error) {
				var list []netns.InterfaceStats
				for _, name := range names {
					list = append(list, netns.InterfaceStats{Name: untrusted.Of(name), Rx: netns.Traffic{Bytes: 7}})
				}
				return list, nil
			},
		}
	}
	return []stats.Pod{pod("bad", "lo", "eth0", "\xff", "\xfe", `\xff`, "\x1b[2J"), pod("good", "lo", "eth0")}
}

func TestStatisticsOfHostileNames(t *testing.T) {
	conn := serve(t, (&Server{Stats: stats.New(hostilePods{}, stats.Options{})}).Register)
	client := runtimeapi.NewRuntimeServiceClient(conn)

	listed, err := client.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(listed.GetStats()) != 2 {
		t.Fatalf("%v, %v", listed, err)
	}

	var names []string
	for _, i := range listed.Stats[0].Linux.Network.Interfaces {
		names = append(names, i.Name)
	}

	if got, want := strings.Join(names, " "), `\xff \xfe \\xff \u001b[2J`; got != want {
		t.Errorf("interfaces %s, want %s", got, want)
	}

	metrics, err := client.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(metrics.GetPodMetrics()) != 2 {
		t.Fatalf("%v, %v", metrics, err)
	}

	// A duplicate series would invalidate the whole response.
	seen := map[string]bool{}
	for _, p := range metrics.PodMetrics {
		for _, m := range p.Metrics {
			series := m.Name + "\x00" + strings.Join(m.LabelValues, "\x00")
			if seen[series] {
				t.Errorf("%q is there twice", series)
			}
			seen[series] = true
		}
	}
}

// The user of an image can be any text of any length.
func TestUserOfAnImage(t *testing.T) {
	for user, want := range map[string]string{
		"www\xff:7":                   "www\uFFFD",
		"web:web":                     "web",
		strings.Repeat("u", 1<<20):    strings.Repeat("u", maxUser-3) + "...",
		"99999999999999999999999999:": "99999999999999999999999999",
	} {
		var img image.Image
		img.Config.Config.User = user
		if got := criImage(img).Username; got != want {
			t.Errorf("user %.40q becomes %.300q", user, got)
		}
	}
}
