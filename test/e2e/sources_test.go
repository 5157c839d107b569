package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"crisp/test/testkit/lab"
)

// TestSources is about host resources of containers that are missing, come and
// go, or have a size.
func TestSources(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "host path that vanishes", func(t *testing.T) { testVanishingSource(t, n) })
	n.run(t, "image volumes that fail", func(t *testing.T) { testFailingImageVolumes(t, n) })
	n.run(t, "devices that come and go", func(t *testing.T) { testDeviceChurn(t, n) })
	n.run(t, "size of shared memory", func(t *testing.T) { testSharedMemory(t, n) })
}

// testVanishingSource removes a host path between a container's creation and its
// start. It is the source of other mounts too, or not.
func testVanishingSource(t *testing.T, n *node) {
	p := n.pod(t)
	for name, changes := range map[string][]change{
		"alone":  nil,
		"beside": {mount(t.TempDir(), "/mnt/below")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "source")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}

			c := p.create(t, append([]change{named(name), mount(dir, "/mnt")}, changes...)...)
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}

			err := failure(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id})
			wantCode(t, err, codes.FailedPrecondition, dir, "does not exist on the host", "/mnt")
			if st := c.status(t); st.Reason != "StartError" || !strings.Contains(st.Message, dir) {
				t.Errorf("the container is %v", st)
			}
			c.remove(t)
		})
	}
}

// testFailingImageVolumes requires CreateContainer to fail with the token where
// kubelet expects it, at the beginning of the message.
func testFailingImageVolumes(t *testing.T, n *node) {
	p := n.pod(t)
	for name, m := range map[string]*runtimeapi.Mount{
		"missing image":      {Image: &runtimeapi.ImageSpec{Image: "localhost/nothing:1"}},
		"missing sub path":   {Image: &runtimeapi.ImageSpec{Image: busybox}, ImageSubPath: "no/such"},
		"file as a sub path": {Image: &runtimeapi.ImageSpec{Image: busybox}, ImageSubPath: "etc/passwd/x"},
	} {
		t.Run(name, func(t *testing.T) {
			m.ContainerPath, m.Readonly = "/volume", true
			cfg := p.config(named("failing"), func(c *runtimeapi.ContainerConfig) { c.Mounts = append(c.Mounts, m) })
			err := failure(t, n.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.cfg})
			if text := status.Convert(err).Message(); !strings.HasPrefix(text, crierrors.ErrImageVolumeMountFailed.Error()) {
				t.Errorf("the message does not begin with %s: %q", crierrors.ErrImageVolumeMountFailed, text)
			}
			wantCode(t, err, codes.FailedPrecondition, "/volume")
		})
	}
}

// testDeviceChurn creates and starts privileged containers, which have all of the
// node's devices, while nodes and directories below /dev come and go.
func testDeviceChurn(t *testing.T, n *node) {
	dir, err := os.MkdirTemp("/dev", "crisp-e2e-")
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var churn sync.WaitGroup
	defer func() {
		cancel()
		churn.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}()

	for worker := range 2 {
		churn.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				sub := filepath.Join(dir, fmt.Sprintf("%d-%d", worker, i%3))
				name := filepath.Join(sub, "null")
				_ = os.Mkdir(sub, 0o755)
				_ = unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
				_ = unix.Mknod(sub+"-link", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5)))
				_ = os.Remove(name)
				_ = os.Remove(sub)
				_ = os.Remove(sub + "-link")
			}
		})
	}

	p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	for i := range 40 {
		c := p.start(t, named(fmt.Sprint("privileged-", i)), sh(": >/dev/null && ls /dev/zero"), func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Privileged = true
		})
		if st := c.wait(t); st.ExitCode != 0 {
			t.Errorf("container %d ended with %v", i, st)
		}
		c.remove(t)
	}
}

// testSharedMemory sizes a pod's /dev/shm by annotations, and by a volume in
// memory as kubelet mounts it.
func testSharedMemory(t *testing.T, n *node) {
	const size = "df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2"
	annotated := func(name, key, value string) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) {
			c.Metadata.Name, c.Annotations = name, map[string]string{key: value}
		}
	}

	for name, c := range map[string]struct{ key, value, want string }{
		"usual":   {"other", "1Mi", "65536"},
		"crisp's": {"crisp.runtime/shm-size", "128Mi", "131072"},
		"cri-o's": {"io.kubernetes.cri-o.ShmSize", "32m", "32768"},
	} {
		if got := strings.TrimSpace(n.pod(t, annotated(name, c.key, c.value)).start(t).sh(t, size)); got != c.want {
			t.Errorf("%s: %s KiB, want %s", name, got, c.want)
		}
	}

	for _, value := range []string{"0", "-1", "lots", "64Ti", "64Mi; touch /tmp/x"} {
		cfg := n.podConfig(t)
		annotated("refused", "crisp.runtime/shm-size", value)(cfg)
		wantCode(t, failure(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg}), codes.InvalidArgument, "crisp.runtime/shm-size")
	}

	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()

	p := n.pod(t, annotated("volume", "crisp.runtime/shm-size", "128Mi"))
	if got := strings.TrimSpace(p.start(t, mount(dir, "/dev/shm")).sh(t, size+" && touch /dev/shm/x")); got != "49152" {
		t.Errorf("with a volume in memory: %s KiB, want its 49152", got)
	}
}
