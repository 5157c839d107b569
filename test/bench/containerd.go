package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// containerdConfig has the defaults except for paths, the registry, and the right
// to lower an oom_score_adj, which the lab's node may lack. NRI, which crisp does
// not have, is off.
const containerdConfig = `version = 3
root = %[1]q
state = %[2]q
[grpc]
  address = %[3]q
[ttrpc]
  address = %[4]q
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = %[5]q
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "registry.k8s.io/pause:3.10"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [%[9]q, %[6]q]
  conf_dir = %[7]q
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = %[8]q
[plugins."io.containerd.nri.v1.nri"]
  disable = true
`

// startTime bounds how long containerd may take to start.
const startTime = 30 * time.Second

// containerd runs on the lab's node next to crisp, with the same registry and
// network and everything else of its own.
type containerd struct {
	dir, bin string // its data, its programs
	conn     *grpc.ClientConn
	proc     *lab.Process
	runtime  runtimeapi.RuntimeServiceClient
	before   []string // cgroups of its default parent that existed before
}

// defaultParent is the parent of pods without a cgroup parent, such as critest's.
// containerd does not remove it with the pods.
const defaultParent = "/k8s.io"

// newContainerd starts a containerd from the programs in bin. It looks for
// plugins in pluginDir first.
func newContainerd(ctx context.Context, l *lab.Lab, bin, pluginDir string) (_ *containerd, _ *target, err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return nil, nil, err
	}

	cache, err := lab.Find()
	if err != nil {
		return nil, nil, err
	}

	plugins, err := cache.Plugins()
	if err != nil {
		return nil, nil, err
	}

	c := &containerd{dir: filepath.Join(l.Dir, "containerd"), bin: bin, before: inventory.Cgroups(defaultParent)}
	if err := os.MkdirAll(c.dir, 0o711); err != nil {
		return nil, nil, err
	}

	config := fmt.Sprintf(containerdConfig, c.path("root"), c.path("state"), c.path("sock"), c.path("ttrpc"),
		filepath.Join(l.Dir, "certs.d"), plugins, filepath.Join(l.Dir, "net.d"), filepath.Join(bin, "runc"), pluginDir)
	if err := os.WriteFile(c.path("config.toml"), []byte(config), 0o644); err != nil {
		return nil, nil, err
	}

	retry := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, MaxDelay: 5 * time.Millisecond, Multiplier: 1}, MinConnectTimeout: startTime}
	c.conn, err = grpc.NewClient("unix://"+c.path("sock"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(retry))
	if err != nil {
		return nil, nil, err
	}

	c.runtime = runtimeapi.NewRuntimeServiceClient(c.conn)
	t := &target{
		name: theirs, endpoint: "unix://" + c.path("sock"), runtime: c.runtime, images: runtimeapi.NewImageServiceClient(c.conn), daemon: c,
		// Without the pause processes: the test image's is larger than a node's.
		programs: []string{"containerd", "containerd-shim-runc-v2", "runc"},
	}

	if err := c.Start(ctx); err != nil {
		return nil, nil, errors.Join(err, c.Close(context.WithoutCancel(ctx)))
	}
	return c, t, nil
}

func (c *containerd) path(name string) string { return filepath.Join(c.dir, name) }

// Start starts the daemon and waits until it responds.
func (c *containerd) Start(ctx context.Context) (err error) {
	env := []string{"PATH=" + c.bin + ":" + os.Getenv("PATH")}
	c.proc, err = lab.StartProcess(c.path("log"), env, filepath.Join(c.bin, "containerd"), "--config", c.path("config.toml"))
	if err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}

	ready := func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
		return err == nil
	}
	if err := c.proc.WaitUntil(ctx, startTime, ready); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}

	return nil
}

// Stop stops the daemon. Pods keep running.
func (c *containerd) Stop() error { return c.proc.Stop() }

// Close removes all pods and stops the daemon.
func (c *containerd) Close(ctx context.Context) error {
	var errs []error
	if c.proc != nil {
		errs = append(errs, c.removePods(ctx), c.Stop())
	}
	for _, dir := range slices.Backward(inventory.Cgroups(defaultParent)) {
		if !slices.Contains(c.before, dir) {
			_ = os.Remove(dir) // it may be in use by others
		}
	}
	return errors.Join(append(errs, c.conn.Close())...)
}

func (c *containerd) removePods(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	pods, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	var errs []error
	for _, p := range pods.GetItems() {
		_, stop := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id})
		_, remove := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
		errs = append(errs, stop, remove)
	}
	return errors.Join(append(errs, err)...)
}
