package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/config"
	"crisp/cri/node"
	"crisp/cri/pod"
	"crisp/cri/spec"
	"crisp/cri/spec/cdi"
	"crisp/cri/stats"
	"crisp/cri/stream"
	"crisp/image"
	"crisp/network"
	"crisp/runtime/cgroup"
	"crisp/runtime/host"
	"crisp/runtime/launch"
	"crisp/runtime/seccomp"
)

// fixtureImage is the only image that containers can have.
const fixtureImage = "docker.io/library/busybox:latest"

// fakeImages has one image, whose root file system is an empty directory.
type fakeImages struct{ rootfs string }

func (f fakeImages) Get(ref string) (image.Image, error) {
	if ref != fixtureImage {
		return image.Image{}, fmt.Errorf("image %s: %w", ref, image.ErrNotFound)
	}
	img := image.Image{ID: fixtureImage, RepoTags: []string{fixtureImage}}
	img.Config.Config = ocispec.ImageConfig{Cmd: []string{"sleep"}, Env: []string{"PATH=/bin"}, Volumes: map[string]struct{}{"/data": {}}}
	return img, nil
}

func (fakeImages) Prepare(string, string, []specs.LinuxIDMapping, []specs.LinuxIDMapping) error {
	return nil
}

func (f fakeImages) Mount(context.Context, string, image.View) (*os.File, error) {
	return os.Open(f.rootfs)
}

func (f fakeImages) MountImage(context.Context, string, string, image.View) (*os.File, error) {
	return os.Open(f.rootfs)
}

func (fakeImages) Hold(string, string) error      { return nil }
func (fakeImages) Discard(string) error           { return nil }
func (fakeImages) Upper(string) (*os.File, error) { return nil, errors.New("no upper") }
func (fakeImages) Lower(context.Context, string) (*os.File, error) {
	return nil, errors.New("no lower")
}
func (fakeImages) Commit(context.Context, string, image.CommitOptions, func(context.Context, io.Writer) (bool, error)) (image.Image, error) {
	return image.Image{}, errors.New("no commit")
}
func (fakeImages) Export(context.Context, []string, io.Writer) error { return errors.New("no export") }
func (fakeImages) Import(context.Context, io.Reader, image.ImportOptions) ([]image.Imported, error) {
	return nil, errors.New("no import")
}
func (fakeImages) Containers() []string { return nil }

func (fakeImages) Reserve(context.Context, int64) (func(), error) { return func() {}, nil }

// scene is the daemon's server, with everything below it that needs no root,
// and a client. As root it has a pod with a container that runs and one that
// does not.
type scene struct {
	dir    string
	server *Server
	client *grpc.ClientConn
	info   map[string]grpc.ServiceInfo

	sandbox, running, created string
}

// newScene opens everything; it is closed at the end of the test.
func newScene(t testing.TB) *scene {
	t.Helper()
	s := &scene{dir: t.TempDir()}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var background sync.WaitGroup
	t.Cleanup(func() { cancel(); background.Wait() })

	facts := host.Probe()
	facts.CgroupV2 = host.Yes // whose paths are built without any existing cgroup
	images, nets := s.openImages(t), s.openNetwork(t)
	pods := s.openPods(t, facts, nets)
	collector := stats.New(pod.StatsSource{Manager: pods, UpperDir: images.UpperDir}, stats.Options{Mountpoint: s.dir})
	background.Go(func() { collector.Run(ctx) })

	streams, err := stream.Start(stream.Options{}, Sessions{Pods: pods})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := streams.Stop(ctx); err != nil {
			t.Error(err)
		}
	})

	s.server = &Server{
		RuntimeVersion: "0.0.0", Pods: pods, Images: images, Network: nets, Stats: collector, Streams: streams,
		Host: facts, CgroupDriver: cgroup.Cgroupfs, Settings: func() any { return config.Default() },
	}
	s.serve(t)
	s.furnish(t)
	return s
}

// openImages opens an image service for which every registry is a server on
// loopback that speaks no HTTP.
func (s *scene) openImages(t testing.TB) *image.Service {
	t.Helper()
	hosts := filepath.Join(s.dir, "hosts", "_default")
	conf := fmt.Sprintf("server = %q\n", brokenRegistry(t))
	if err := errors.Join(os.MkdirAll(hosts, 0o700), os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(conf), 0o600)); err != nil {
		t.Fatal(err)
	}

	images, err := image.Open(image.Options{
		Root: filepath.Join(s.dir, "image"), Choices: image.Choices{RegistryConfigDirs: []string{filepath.Dir(hosts)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })

	return images
}

// brokenRegistry responds with nonsense, which is not retried like a temporary
// error.
func brokenRegistry(t testing.TB) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write([]byte("nonsense\r\n\r\n")) // the client may have disconnected
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// openNetwork opens a network that has no configuration: pods with a network of
// their own are refused, as pinning one takes root.
func (s *scene) openNetwork(t testing.TB) *network.Network {
	t.Helper()
	n, err := network.Open(network.Options{ConfDir: filepath.Join(s.dir, "net.d"), CacheDir: filepath.Join(s.dir, "cni")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func (s *scene) openPods(t testing.TB, facts host.Facts, nets *network.Network) *pod.Manager {
	t.Helper()
	keeper, fake := startKeeper(t)
	t.Cleanup(fake.close)
	rootfs := filepath.Join(s.dir, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}

	device := `{"cdiVersion":"0.6.0","kind":"vendor.example/gpu","devices":[{"name":"0","containerEdits":{"env":["X=1"]}}]}`
	devices := filepath.Join(s.dir, "cdi")
	if err := errors.Join(os.MkdirAll(devices, 0o700), os.WriteFile(filepath.Join(devices, "gpu.json"), []byte(device), 0o600)); err != nil {
		t.Fatal(err)
	}

	launcher := launch.New(keeper, facts)
	t.Cleanup(func() { launcher.Close() })
	pods, err := pod.Open(t.Context(), pod.Options{
		Root: s.dir, NetNSDir: filepath.Join(s.dir, "netns"),
		Keeper: keeper, Launcher: launcher, Cgroups: &cgroup.Node{}, Images: fakeImages{rootfs}, Network: nets,
		Host: spec.HostOf(facts, os.DirFS("/")), Node: node.Node{},
		CDI:      cdi.New([]string{devices}).Inject,
		StateDir: s.dir,
		Choices: pod.Choices{
			Seccomp:  spec.Seccomp{Default: seccomp.RuntimeDefault, Load: seccomp.Load},
			Defaults: spec.Defaults{CreateMissingHostPaths: true},
			Handlers: []string{"other"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pods.Close(); keeper.Close() })

	return pods
}

// serve handles calls as the daemon does, but in memory.
func (s *scene) serve(t testing.TB) {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer(ServerOptions()...)
	s.server.Register(g)
	s.info = g.GetServiceInfo()

	ended := make(chan error, 1)
	go func() { ended <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})

	var err error
	s.client, err = grpc.NewClient("passthrough:crisp", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.client.Close() })
}

func (s *scene) sandboxConfig() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "1"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/fuzz", SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: nodeNetwork()},
		},
		LogDirectory: filepath.Join(s.dir, "logs"),
	}
}

func nodeNetwork() *runtimeapi.NamespaceOption {
	return &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}
}

func containerConfig(name string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: fixtureImage}, LogPath: name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: nodeNetwork()}},
	}
}

// furnish creates the pod and its containers. Without root there are none,
// since a pod clones mounts, and calls fail there.
func (s *scene) furnish(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	c := runtimeapi.NewRuntimeServiceClient(s.client)
	// Connects now, so that no goroutine of the connection starts with a later
	// call.
	if _, err := c.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		t.Fatal(err)
	}

	if os.Geteuid() != 0 {
		s.sandbox, s.running, s.created = strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64)
		return
	}

	made, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: s.sandboxConfig()})
	if err != nil {
		t.Fatal(err)
	}

	s.sandbox = made.PodSandboxId
	for name, id := range map[string]*string{"running": &s.running, "created": &s.created} {
		ctr, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.sandbox, Config: containerConfig(name), SandboxConfig: s.sandboxConfig()})
		if err != nil {
			t.Fatal(err)
		}
		*id = ctr.ContainerId
	}

	if _, err := c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: s.running}); err != nil {
		t.Fatal(err)
	}
}

// restore brings the scene back to its state after furnish.
func (s *scene) restore(t testing.TB) {
	t.Helper()
	if s.intact() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	for _, r := range s.server.Pods.Sandboxes() {
		if err := s.server.Pods.RemoveSandbox(ctx, r.ID); err != nil {
			t.Fatalf("remove what calls have made: %v", err)
		}
	}
	s.furnish(t)
}

func (s *scene) intact() bool {
	list := s.server.Pods.Sandboxes()
	if os.Geteuid() != 0 {
		return len(list) == 0
	}
	if len(list) != 1 || list[0].ID != s.sandbox || !list[0].Ready() || len(list[0].Containers) != 2 || list[0].Overhead != nil || list[0].Resources != nil {
		return false
	}
	running, created := list[0].Container(s.running), list[0].Container(s.created)
	return running != nil && created != nil && running.Resources == nil && created.Resources == nil &&
		running.State() == runtimeapi.ContainerState_CONTAINER_RUNNING && created.State() == runtimeapi.ContainerState_CONTAINER_CREATED
}
