package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/pace"
)

const (
	readyTime  = 20 * time.Second // for the daemon to respond
	retryTime  = 5 * time.Millisecond
	keeperTime = 20 * time.Second // for the keeper to exit when it holds nothing
)

// Options configure a lab. The zero value is a complete one.
type Options struct {
	// Dir is its directory; a new one in /tmp if empty. Close removes it.
	Dir string
	// NoRegistry omits the registry, so that no images are needed.
	NoRegistry bool
	// Storage, if not empty, is a directory with images that the lab serves by
	// itself, instead of the registry and the images for tests.
	Storage string
	// Config is added to the daemon's configuration file (TOML).
	Config string
	// Env is added to the daemon's environment.
	Env []string
	// Crisp, if not empty, is the daemon to run instead of the checkout's.
	Crisp string
	// Below is a command that the daemon is started with, such as nsenter.
	Below []string
	// Second distinguishes the lab from another of the same process.
	Second bool
	// Routed disables masquerading: other nodes reach pods at their addresses,
	// and pods use them as source addresses.
	Routed bool
	// Own uses crisp's own network in this mode, "routed" or "bridge", for which
	// neither CNI plugins nor iptables are needed. If empty, CRISP_TEST_NETWORK is
	// used, and if that is empty too, the reference plugins are.
	Own string
	// NoNetwork writes no network configuration: see [Lab.Configure].
	NoNetwork bool
	// PluginDir, if not empty, is searched for CNI plugins first.
	PluginDir string
	// CgroupDriver is systemd or cgroupfs; if empty, CRISP_CGROUP_DRIVER
	// is used, and if that is empty too, cgroupfs.
	CgroupDriver string
}

// Lab is a node to test crisp on.
type Lab struct {
	// Dir is its directory and Name a name that only this lab uses: its cgroups
	// are below a parent of that name.
	Dir, Name string
	// Endpoint is the daemon's socket, as "unix://…".
	Endpoint string
	// Registry is nil if there is none.
	Registry *Registry
	// Runtime and Images call the daemon.
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient

	opt    Options
	cache  Cache
	conn   *grpc.ClientConn
	daemon *Process
	before inventory.Inventory
}

// New sets up a lab and starts its daemon.
func New(ctx context.Context, opt Options) (_ *Lab, err error) {
	if !opt.NoNetwork {
		opt.Own = cmp.Or(opt.Own, os.Getenv("CRISP_TEST_NETWORK"))
	}
	l := &Lab{opt: opt, before: inventory.Take()}
	if l.cache, err = Find(); err != nil {
		return nil, err
	}

	if l.Dir = opt.Dir; l.Dir == "" {
		if l.Dir, err = os.MkdirTemp("", "crisp-lab-"); err != nil {
			return nil, err
		}
	}

	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close(context.WithoutCancel(ctx)))
		}
	}()

	// No dashes: systemd interprets those in a slice's name as levels.
	l.Name = strings.ReplaceAll(fmt.Sprintf("crisp_lab_%d_%s", os.Getpid(), strings.TrimPrefix(filepath.Base(l.Dir), "crisp-lab-")), "-", "_")
	l.Endpoint = "unix://" + l.path("crisp.sock")
	if err := l.configure(ctx); err != nil {
		return nil, err
	}

	// A restarted daemon is reconnected to immediately.
	retry := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: retryTime, MaxDelay: retryTime, Multiplier: 1}, MinConnectTimeout: pace.Scale(readyTime)}
	l.conn, err = grpc.NewClient(l.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(retry))
	if err != nil {
		return nil, err
	}

	l.Runtime, l.Images = runtimeapi.NewRuntimeServiceClient(l.conn), runtimeapi.NewImageServiceClient(l.conn)
	return l, l.Start(ctx)
}

// Run calls f with a lab, which is closed afterwards. The daemon's log is kept
// in the file.
func Run(ctx context.Context, opt Options, log string, f func(*Lab) error) error {
	l, err := New(ctx, opt)
	if err != nil {
		return err
	}
	err = f(l)
	return errors.Join(err, os.WriteFile(log, []byte(l.Log()), 0o644), l.Close(context.WithoutCancel(ctx)))
}

func (l *Lab) path(name string) string { return filepath.Join(l.Dir, name) }

// Bridge is the name of the lab's bridge, which the kernel limits to 15 bytes. Close
// removes it.
func (l *Lab) Bridge() string {
	if l.opt.Second {
		return fmt.Sprintf("crisp%db", os.Getpid())
	}
	return fmt.Sprintf("crisp%d", os.Getpid())
}

// Subnet has the pods' addresses, 4,093 of them. Labs of other processes do not use
// it at the same time.
func (l *Lab) Subnet() string {
	pid, first := os.Getpid(), 128
	if l.opt.Second {
		first += 64
	}
	return fmt.Sprintf("10.%d.%d.0/20", first+pid%64, pid/64%16*16)
}

// CgroupDriver is the daemon's.
func (l *Lab) CgroupDriver() string {
	return cmp.Or(l.opt.CgroupDriver, os.Getenv("CRISP_CGROUP_DRIVER"), "cgroupfs")
}

// CgroupParent is the parent of the pods' cgroups in the driver's notation.
func (l *Lab) CgroupParent() string {
	if l.CgroupDriver() == "systemd" {
		return l.Name + ".slice"
	}
	return "/" + l.Name
}

// configure writes the files that the daemon reads and starts the registry that
// they refer to.
func (l *Lab) configure(ctx context.Context) error {
	// Like /var/lib it is accessible to all: a pod's user namespace must be
	// able to traverse it.
	if err := errors.Join(os.MkdirAll(l.Dir, 0o755), os.Chmod(l.Dir, 0o755)); err != nil {
		return err
	}

	write := writeNetwork
	switch {
	case l.opt.NoNetwork:
		write = noNetwork
	case l.opt.Own != "":
		write = ownNetwork(l.opt.Own)
	}
	if err := write(l.path("net.d"), l.IPAM(), l.Bridge(), l.Subnet(), !l.opt.Routed); err != nil {
		return err
	}
	config := fmt.Sprintf("cgroup_driver = %q\ncgroup_parent = %q\nnri_socket = %q\nnri_plugin_dir = %q\nnri_plugin_config_dir = %q\n%s\n",
		l.CgroupDriver(), l.CgroupParent(), l.path("nri.sock"), l.path("nri/plugins"), l.path("nri/conf.d"), l.opt.Config)
	if err := os.WriteFile(l.path("config.toml"), []byte(config), 0o644); err != nil {
		return err
	}

	if l.opt.NoRegistry {
		return os.MkdirAll(l.path("certs.d"), 0o755)
	}
	if err := l.startRegistry(ctx); err != nil {
		return err
	}
	return l.Registry.WriteHosts(l.path("certs.d"))
}

func (l *Lab) startRegistry(ctx context.Context) (err error) {
	if l.opt.Storage != "" {
		l.Registry, err = ServeStorage(l.opt.Storage)
		return err
	}

	binary, err := l.cache.Tool("registry")
	if err != nil {
		return err
	}

	images, err := l.cache.Images()
	if err != nil {
		return err
	}
	l.Registry, err = StartRegistry(ctx, RegistryOptions{Binary: binary, Storage: images, Work: l.Dir})
	return err
}

// Start starts the daemon and waits until it responds. [New] has done so.
func (l *Lab) Start(ctx context.Context) error {
	binary := l.opt.Crisp
	if binary == "" {
		var err error
		if binary, err = l.cache.Crisp(); err != nil {
			return err
		}
	}

	plugins := l.path("plugins") // there are none
	if l.opt.Own == "" {
		var err error
		if plugins, err = l.cache.Plugins(); err != nil {
			return err
		}
	}

	if l.opt.PluginDir != "" {
		plugins = l.opt.PluginDir + "," + plugins
	}
	command := append(slices.Clone(l.opt.Below), binary, "serve",
		"--config", l.path("config.toml"), "--root", l.path("root"), "--state", l.path("state"), "--listen", l.Endpoint,
		"--cni-conf-dir", l.path("net.d"), "--cni-bin-dir", plugins, "--registry-config-dir", l.path("certs.d"))

	var err error
	l.daemon, err = StartProcess(l.path("crisp.log"), l.opt.Env, command[0], command[1:]...)
	if err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}

	ready := func() bool {
		ctx, cancel := context.WithTimeout(ctx, pace.Scale(time.Second))
		defer cancel()
		_, err := l.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
		return err == nil
	}
	if err := l.daemon.WaitUntil(ctx, pace.Scale(readyTime), ready); err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}

	return nil
}

// PID is the daemon's process ID.
func (l *Lab) PID() int { return l.daemon.cmd.Process.Pid }

// Stop stops the daemon as a service manager does. Pods keep running.
func (l *Lab) Stop() error { return l.daemon.Stop() }

// Upgrade stops the daemon and starts another program in its place, which has
// its keeper next to it; an empty name is the checkout's. Pods keep running.
func (l *Lab) Upgrade(ctx context.Context, crisp string) error {
	l.opt.Crisp = crisp
	if err := l.Stop(); err != nil {
		return err
	}
	return l.Start(ctx)
}

// Kill kills the daemon. Pods keep running.
func (l *Lab) Kill() {
	_ = l.daemon.cmd.Process.Kill() // it may have exited already
	<-l.daemon.done
}

// Log is the daemon's log.
func (l *Lab) Log() string {
	data, err := os.ReadFile(l.path("crisp.log"))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Close removes the pods, stops everything and removes the directory. What
// crisp has leaked is in the error.
func (l *Lab) Close(ctx context.Context) error {
	var errs []error
	if l.daemon != nil {
		errs = append(errs, l.RemovePods(ctx), l.Stop())
	}
	if l.conn != nil {
		errs = append(errs, l.conn.Close())
	}
	if l.Registry != nil {
		errs = append(errs, l.Registry.Close())
	}

	// A plugin does not remove the bridge, nor the daemon the parent of its
	// cgroups.
	errs = append(errs, RemoveLink(l.Bridge()), RemoveCgroups(l.Name))
	if left := l.before.Settle(pace.Scale(keeperTime), l.scope()); len(left) > 0 {
		errs = append(errs, fmt.Errorf("left behind: %s", strings.Join(left, ", ")), l.removeByForce())
	}

	return errors.Join(append(errs, os.RemoveAll(l.Dir))...)
}

// RemovePods removes every pod, through the daemon.
func (l *Lab) RemovePods(ctx context.Context) error {
	select {
	case <-l.daemon.done:
		return nil // a test killed it, or it failed to start
	default:
	}

	ctx, cancel := context.WithTimeout(ctx, pace.Scale(time.Minute))
	defer cancel()
	pods, err := l.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}

	var errs []error
	for _, p := range pods.Items {
		if _, err := l.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			errs = append(errs, fmt.Errorf("stop pod %s: %w", p.Id, err))
		}
		if _, err := l.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			errs = append(errs, fmt.Errorf("remove pod %s: %w", p.Id, err))
		}
	}

	return errors.Join(errs...)
}

func (l *Lab) scope() inventory.Scope {
	// The first lab may have restarted its daemon; at its own end it counts all of them.
	return inventory.Scope{Namespaced: Isolated() && !l.opt.Second, NotOwn: l.opt.Second, Marks: []string{l.Dir, l.Name, l.Bridge()}}
}

// removeByForce kills the processes below this one that were not there before,
// and removes mounts and cgroups of the lab.
func (l *Lab) removeByForce() error {
	for _, p := range inventory.Descendants(os.Getpid()) {
		if !l.before.HasProcess(p) && !l.opt.Second {
			_ = unix.Kill(p.PID, unix.SIGKILL) // it may have exited already
		}
	}

	left := l.before.Settle(pace.Scale(keeperTime), inventory.Scope{NotOwn: l.opt.Second})
	var errs []error
	for _, point := range inventory.MountsBelow(l.Dir) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}

	if len(left) > 0 {
		errs = append(errs, fmt.Errorf("could not kill: %s", strings.Join(left, ", ")))
	}
	return errors.Join(append(errs, RemoveCgroups(l.Name))...)
}

// RemoveCgroups removes the cgroups with name in their path, the deepest first.
func RemoveCgroups(name string) error {
	var errs []error
	for _, dir := range slices.Backward(inventory.Cgroups(name)) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}
