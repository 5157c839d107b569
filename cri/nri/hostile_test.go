package nri

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/pod"
	"crisp/cri/spec"
	"crisp/cri/spec/cdi"
	"crisp/test/testkit/pace"
)

// node is what plugins look at.
type node struct {
	pods       []*pod.Record
	containers []pod.View
	// apply makes updates, if not nil.
	apply func(ctx context.Context, updates []pod.Update) []int
}

func (n *node) Known() ([]*pod.Record, []pod.View) { return n.pods, n.containers }

func (n *node) ApplyUpdates(ctx context.Context, updates []pod.Update) []int {
	if n.apply == nil {
		return nil
	}
	return n.apply(ctx, updates)
}

// waits of the tests' hosts.
const registration, request = 500 * time.Millisecond, 500 * time.Millisecond

var setLog sync.Once // the library's logger is one for the whole process

// newHost starts a host for a node.
func newHost(t testing.TB, n *node) *Host {
	t.Helper()
	return patientHost(t, n, request)
}

// patientHost starts one whose plugins have some time for a request.
func patientHost(t testing.TB, n *node, wait time.Duration) *Host {
	t.Helper()
	setLog.Do(LogLibrary)
	h, err := New(Options{Version: "test", Stage: filepath.Join(t.TempDir(), "stage"), Socket: filepath.Join(t.TempDir(), "nri.sock"), RegistrationTimeout: registration, RequestTimeout: wait, CDI: cdi.New(nil).Inject})
	if err == nil {
		err = h.Start(n)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// honest is a plugin that answers as it should.
type honest struct {
	create func() (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	synced chan int // how many pods and containers it was told of
	closed chan struct{}
}

func (p *honest) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.synced <- len(pods) + len(containers)
	return nil, nil
}

func (p *honest) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if p.create == nil {
		return nil, nil, nil
	}
	return p.create()
}

// join connects a plugin, and returns when it is synchronised.
func (h *Host) join(t testing.TB, name string, p *honest) stub.Stub {
	t.Helper()
	p.synced, p.closed = make(chan int, 1), make(chan struct{})
	s, err := stub.New(p, stub.WithPluginName(name), stub.WithPluginIdx("10"), stub.WithSocketPath(h.opt.Socket), stub.WithOnClose(func() { close(p.closed) }))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(10*time.Second))
	defer cancel()
	if err := s.Start(ctx); err != nil {
		t.Fatalf("connect %s: %v", name, err)
	}
	t.Cleanup(s.Stop)
	until(t, "plugin "+name+" is synchronised", func() bool { return len(p.synced) == 1 })
	return s
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(pace.Scale(10 * time.Second)); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// example is a container that plugins are asked about.
func example() (pod.View, *spec.Result) {
	s := &specs.Spec{
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"}, Root: &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{
			Resources:  &specs.LinuxResources{},
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace, Path: "/x"}},
		},
	}
	r := &pod.Record{ID: strings.Repeat("a", 64), Config: pod.Message[*runtimeapi.PodSandboxConfig]{Msg: &runtimeapi.PodSandboxConfig{}}}
	c := &pod.Container{ID: strings.Repeat("c", 64), Config: pod.Message[*runtimeapi.ContainerConfig]{Msg: &runtimeapi.ContainerConfig{}}}
	return pod.View{Pod: r, Container: c, Spec: s}, &spec.Result{Spec: s}
}

// ask asks the plugins about a container, which takes no longer than their time.
func (h *Host) ask(t testing.TB) (pod.Adjustment, *spec.Result, error) {
	t.Helper()
	v, out := example()
	begin := time.Now()
	a, err := h.Create(t.Context(), v, out)
	if took := time.Since(begin); took > pace.Scale(4*request) {
		t.Errorf("a creation took %v", took)
	}
	return a, out, err
}

// dial connects to the host without speaking its protocol.
func (h *Host) dial(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", h.opt.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ended reports whether the host has closed a connection.
func ended(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(pace.Scale(10 * time.Second))) // it is open
	_, err := bytes.NewBuffer(nil).ReadFrom(c)
	var late net.Error
	return err == nil || !errors.As(err, &late) || !late.Timeout()
}

// rude is a plugin that calls and answers as it likes.
type rude struct {
	api.PluginService // nil: calls that the test does not expect fail it
	conn              net.Conn
	host              api.RuntimeService
	mux               multiplex.Mux
	create            func() (*api.CreateContainerResponse, error)
}

func (*rude) Configure(context.Context, *api.ConfigureRequest) (*api.ConfigureResponse, error) {
	return &api.ConfigureResponse{Events: int32(api.MustParseEventMask("CreateContainer"))}, nil
}

func (*rude) Synchronize(context.Context, *api.SynchronizeRequest) (*api.SynchronizeResponse, error) {
	return &api.SynchronizeResponse{}, nil
}

func (r *rude) CreateContainer(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	return r.create()
}

// intrude connects a rude plugin and registers it.
func (h *Host) intrude(t testing.TB) *rude {
	t.Helper()
	r := &rude{conn: h.dial(t)}
	r.mux = multiplex.Multiplex(r.conn)
	t.Cleanup(func() { r.mux.Close() })
	listener, err := r.mux.Listen(multiplex.PluginServiceConn)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	api.RegisterPluginService(server, r)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(context.Background(), listener) }) // it ends with the connection
	t.Cleanup(func() { server.Close(); wg.Wait() })

	up, err := r.mux.Open(multiplex.RuntimeServiceConn)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(up)
	t.Cleanup(func() { client.Close() })
	r.host = api.NewRuntimeClient(client)
	before := h.active.Load()
	if err := r.register(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the rude plugin is connected", func() bool { return h.active.Load() > before })
	return r
}

func (r *rude) register(ctx context.Context) error {
	_, err := r.host.RegisterPlugin(ctx, &api.RegisterPluginRequest{PluginName: "rude", PluginIdx: "00"})
	return err
}

// TestHostileConnections connects what is no plugin: others connect all the same,
// and containers are made.
func TestHostileConnections(t *testing.T) {
	frame := func(id multiplex.ConnID, size uint32, payload ...byte) []byte {
		head := binary.BigEndian.AppendUint32(nil, uint32(id))
		return append(binary.BigEndian.AppendUint32(head, size), payload...)
	}
	noise := make([]byte, 1<<16)
	rng := rand.NewChaCha8([32]byte{7})
	_, _ = rng.Read(noise) // it never fails
	for name, bytes := range map[string][]byte{
		"silent": nil, "noise": noise, "zeros": make([]byte, 1<<16), "HTTP": []byte("GET / HTTP/1.1\r\n\r\n"),
		"huge frame":        frame(multiplex.RuntimeServiceConn, 1<<32-1),
		"huge message":      frame(multiplex.RuntimeServiceConn, headerSize, 255, 255, 255, 255, 0, 0, 0, 1, 1, 0),
		"unknown type":      frame(multiplex.RuntimeServiceConn, headerSize, 0, 0, 0, 0, 0, 0, 0, 1, 99, 0),
		"even stream":       frame(multiplex.RuntimeServiceConn, headerSize, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0),
		"no protobuf":       frame(multiplex.RuntimeServiceConn, headerSize+4, 0, 0, 0, 4, 0, 0, 0, 1, 1, 0, 255, 255, 255, 255),
		"answer to nothing": frame(multiplex.PluginServiceConn, headerSize, 0, 0, 0, 0, 0, 0, 0, 77, 2, 0),
		"half a frame":      frame(multiplex.RuntimeServiceConn, 100, 1, 2, 3),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, &node{})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c := h.dial(t)
			if _, err := c.Write(bytes); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
				t.Fatal(err)
			}

			if _, _, err := h.ask(t); err != nil {
				t.Error(err)
			}
			h.join(t, "honest", &honest{})
			if !ended(c) {
				t.Error("the connection is still open")
			}
			runtime.ReadMemStats(&after)
			if more := int64(after.TotalAlloc - before.TotalAlloc); more > 32<<20 {
				t.Errorf("%d bytes allocated for it", more)
			}
		})
	}
}

// floodTime is how long a plugin floods.
const floodTime = 2 * time.Second

// TestFloodOfRegistrations has a plugin register without end: what it has begun ends,
// and it is asked all the same.
func TestFloodOfRegistrations(t *testing.T) {
	h := newHost(t, &node{})
	before := runtime.NumGoroutine()
	r := h.intrude(t)
	var asked atomic.Bool
	r.create = func() (*api.CreateContainerResponse, error) {
		asked.Store(true)
		return &api.CreateContainerResponse{}, nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), floodTime)
	defer cancel()
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() { _ = r.register(ctx) })
	}
	wg.Wait()

	// Its first registration may still be under way.
	until(t, "it is asked", func() bool {
		_, _, err := h.ask(t)
		return err == nil && asked.Load()
	})
	until(t, "most of what it has begun has ended", func() bool { return runtime.NumGoroutine() < before+3*maxRequests })
}

// TestFloodOfConnections registers plugins without end, and has them come and go.
func TestFloodOfConnections(t *testing.T) {
	h := newHost(t, &node{})
	for i := range 200 {
		s, err := stub.New(&honest{synced: make(chan int, 1)}, stub.WithPluginName("brief"), stub.WithPluginIdx("20"), stub.WithSocketPath(h.opt.Socket), stub.WithOnClose(func() {}))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(t.Context()); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		s.Stop()
	}

	for i := range maxPlugins {
		h.join(t, fmt.Sprintf("plugin-%d", i), &honest{})
	}
	until(t, "those that are gone are forgotten", func() bool { return h.active.Load() == maxPlugins })
	over := &honest{synced: make(chan int, 1), closed: make(chan struct{})}
	s, err := stub.New(over, stub.WithPluginName("over"), stub.WithPluginIdx("30"), stub.WithSocketPath(h.opt.Socket), stub.WithOnClose(func() { close(over.closed) }))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err == nil {
		defer s.Stop()
		select {
		case <-over.closed:
		case <-time.After(pace.Scale(10 * time.Second)):
			t.Errorf("plugin number %d stays connected", maxPlugins+1)
		}
	}
	if _, _, err := h.ask(t); err != nil {
		t.Error(err)
	}
}

// TestFloodOfUpdates has a plugin ask for updates that take long, without waiting
// for answers: they end long before their own deadline, and another one is served.
func TestFloodOfUpdates(t *testing.T) {
	var mu sync.Mutex
	running, most := 0, 0
	n := &node{apply: func(ctx context.Context, updates []pod.Update) []int {
		if updates[0].Container == "quick" {
			return nil
		}

		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		<-ctx.Done()
		mu.Lock()
		running--
		mu.Unlock()
		return nil
	}}
	h := newHost(t, n)
	r, good := h.intrude(t), h.join(t, "honest", &honest{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			update := &api.ContainerUpdate{ContainerId: strings.Repeat("x", 1<<20)}
			_, _ = r.host.UpdateContainers(ctx, &api.UpdateContainersRequest{Update: []*api.ContainerUpdate{update}})
		})
	}
	until(t, "its updates have begun and ended", func() bool { mu.Lock(); defer mu.Unlock(); return most > 0 && running == 0 })
	cancel()
	wg.Wait()

	// Those that waited for their turn may begin only now.
	mu.Lock()
	if most > maxUpdates {
		t.Errorf("%d updates at a time, want at most %d", most, maxUpdates)
	}
	mu.Unlock()
	if _, err := good.UpdateContainers([]*api.ContainerUpdate{{ContainerId: "quick"}}); err != nil {
		t.Errorf("another plugin's update: %v", err)
	}
}

// TestHostileAnswers has a plugin hang, die and answer nonsense when it is asked
// about a container, which is made without it.
func TestHostileAnswers(t *testing.T) {
	for name, answer := range map[string]func(r *rude) (*api.CreateContainerResponse, error){
		"hangs":     func(*rude) (*api.CreateContainerResponse, error) { time.Sleep(4 * request); return nil, nil },
		"dies":      func(r *rude) (*api.CreateContainerResponse, error) { r.conn.Close(); return nil, nil },
		"half dies": func(r *rude) (*api.CreateContainerResponse, error) { return nil, r.conn.(*net.UnixConn).CloseWrite() },
		"other size": func(r *rude) (*api.CreateContainerResponse, error) {
			_, err := r.conn.Write(make([]byte, 4096))
			return nil, err
		},
		"no answer but a flood": func(r *rude) (*api.CreateContainerResponse, error) {
			for range 1000 {
				if _, err := r.conn.Write(append([]byte{0, 0, 0, 1, 0, 0, 16, 0}, make([]byte, 4096)...)); err != nil {
					return nil, err
				}
			}
			return nil, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, &node{})
			r := h.intrude(t)
			r.create = func() (*api.CreateContainerResponse, error) {
				_, _ = answer(r)
				time.Sleep(2 * request)
				return &api.CreateContainerResponse{}, nil
			}
			other := &honest{create: func() (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
				a := &api.ContainerAdjustment{}
				a.AddEnv("OTHER", "asked")
				return a, nil, nil
			}}
			h.join(t, "honest", other)
			until(t, "both are connected", func() bool { return h.active.Load() == 2 })

			_, out, err := h.ask(t)
			if err != nil || !slices.Contains(out.Spec.Process.Env, "OTHER=asked") {
				t.Errorf("environment %q, %v", out.Spec.Process.Env, err)
			}
			until(t, "it is disconnected", func() bool { _, _, err := h.ask(t); return err == nil && h.active.Load() == 1 })
		})
	}
}

// TestBigNode connects a plugin to a node whose containers have more to tell than
// fits into a message, in numbers for which the library has no good split.
func TestBigNode(t *testing.T) {
	for _, tt := range []struct{ pods, containers, env, annotations int }{
		{2, 12, 1 << 20, 0}, {1, 11, 500 << 10, 0}, {17, 2, 10, 300 << 10}, {1, 1, 6 << 20, 6 << 20}, {40, 300, 30 << 10, 0},
		{1, 100, 100 << 10, 0}, {4, 160, 120 << 10, 0}, {100, 1, 10, 100 << 10},
	} {
		n := &node{}
		for i := range tt.pods {
			v, _ := example()
			v.Pod.ID = fmt.Sprint("pod", i)
			v.Pod.Config.Msg.Annotations = map[string]string{"a": strings.Repeat("x", tt.annotations)}
			n.pods = append(n.pods, v.Pod)
		}
		for i := range tt.containers {
			v, _ := example()
			v.Container.ID = fmt.Sprint("container", i)
			v.Spec.Process.Env = []string{"A=" + strings.Repeat("x", tt.env)}
			n.containers = append(n.containers, v)
		}

		h := patientHost(t, n, pace.Scale(5*time.Second))
		p := &honest{}
		h.join(t, "honest", p)
		if got := <-p.synced; got != tt.pods+tt.containers {
			t.Errorf("told of %d, want %d pods and %d containers", got, tt.pods, tt.containers)
		}
	}
}

// TestStage has what cannot be started, or could be read forever, beside plugins that can
// be started.
func TestStage(t *testing.T) {
	dir := t.TempDir()
	plugins, configs, s := filepath.Join(dir, "plugins"), filepath.Join(dir, "conf.d"), stage{filepath.Join(dir, "stage")}
	if skipped, err := s.fill(plugins, configs); len(skipped) > 0 || err != nil {
		t.Errorf("without a directory: %q, %v", skipped, err)
	}
	if _, err := (stage{}).fill(plugins, configs); err == nil || !strings.Contains(err.Error(), "not absolute") {
		t.Errorf("without a directory of its own: %v", err)
	}
	for _, d := range []string{plugins, configs, filepath.Join(plugins, "12-directory"), filepath.Join(configs, "13-directory.conf")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{
		"10-one": 0o755, "11-one": 0o700, "README": 0o644, "NOTES": 0o755, "1-short": 0o755, "13-directory": 0o755, "14-big": 0o755, "15-loop": 0o755, "17-fifo": 0o755,
	} {
		if err := os.WriteFile(filepath.Join(plugins, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	big := filepath.Join(configs, "big.conf")
	err := errors.Join(
		os.WriteFile(filepath.Join(configs, "one.conf"), []byte("all"), 0o600), os.WriteFile(filepath.Join(configs, "11-one.conf"), []byte("eleven"), 0o600),
		os.WriteFile(big, nil, 0o600), os.Truncate(big, 1<<40),
		os.Symlink("15-loop.conf", filepath.Join(configs, "15-loop.conf")),
		unix.Mkfifo(filepath.Join(configs, "17-fifo.conf"), 0o600), unix.Mkfifo(filepath.Join(plugins, "18-fifo"), 0o700),
		os.Symlink("nowhere", filepath.Join(plugins, "19-dangling")),
	)
	if err != nil {
		t.Fatal(err)
	}

	for range 2 { // as at the next start
		skipped, err := s.fill(plugins, configs)
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint(skipped)
		for _, name := range []string{"NOTES", "1-short", "13-directory", "14-big", "15-loop", "17-fifo", "18-fifo", "19-dangling"} {
			if !strings.Contains(text, filepath.Join(plugins, name)+":") {
				t.Errorf("%s is not named in %s", name, text)
			}
		}
		if len(skipped) != 8 {
			t.Errorf("%d are named, want 8: %s", len(skipped), text)
		}
		if got := names(t, s.plugins()); !slices.Equal(got, []string{"10-one", "11-one"}) {
			t.Errorf("plugins to be started: %q", got)
		}
		for name, want := range map[string]string{"10-one.conf": "all", "11-one.conf": "eleven"} {
			if got, err := os.ReadFile(filepath.Join(s.configs(), name)); string(got) != want || err != nil {
				t.Errorf("%s has %q, %v, want %q", name, got, err, want)
			}
		}
	}
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// FuzzAnswer has a plugin answer anything that can be encoded: the container is made
// or refused.
func FuzzAnswer(f *testing.F) {
	for _, a := range bad() {
		if data, err := proto.Marshal(&api.CreateContainerResponse{Adjust: a}); err == nil && len(data) < 1<<10 {
			f.Add(data)
		}
	}
	setLog.Do(LogLibrary)
	h := newHost(f, &node{})
	r := h.intrude(f)

	f.Fuzz(func(t *testing.T, data []byte) {
		answer := &api.CreateContainerResponse{}
		if proto.Unmarshal(data, answer) != nil {
			return
		}
		asked := false
		r.create = func() (*api.CreateContainerResponse, error) { asked = true; return answer, nil }
		if _, _, err := h.ask(t); !asked {
			t.Errorf("a plugin was not asked any more: %v", err)
		}
	})
}
