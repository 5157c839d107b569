package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"crisp/cmd/crisp/cli"
	"crisp/cri"
	"crisp/cri/admin"
	"crisp/cri/audit"
	"crisp/cri/cadvisor"
	"crisp/cri/config"
	"crisp/cri/node"
	"crisp/cri/nri"
	"crisp/cri/pod"
	"crisp/cri/rpcerr"
	"crisp/cri/rpcerr/rules"
	"crisp/cri/spec"
	"crisp/cri/spec/apparmor"
	"crisp/cri/spec/cdi"
	"crisp/cri/spec/selinux"
	"crisp/cri/stats"
	"crisp/cri/stream"
	"crisp/cri/telemetry"
	"crisp/image"
	"crisp/image/folder"
	"crisp/network"
	"crisp/network/netns"
	"crisp/runtime/cgroup"
	"crisp/runtime/criu"
	"crisp/runtime/host"
	"crisp/runtime/keeper/client"
	"crisp/runtime/launch"
	"crisp/runtime/orphan"
	"crisp/runtime/resctrl"
	"crisp/runtime/spawn"
)

const (
	// stopTimeout is how long running calls may take when the daemon stops,
	// closeTimeout how long its services may take after that.
	stopTimeout  = 4 * time.Second
	closeTimeout = 4 * time.Second
)

// serveCommand is the command serve.
func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve [FLAGS]", Short: "Serve the CRI: the daemon",
		Args: cli.Exactly(0, "no arguments"), DisableFlagsInUseLine: true,
	}
	s := cli.NewSettings(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), s.Load) }
	return cmd
}

// gcPercent is how much garbage the daemon's heap may have, in percent of what is
// used. Go's default of 100 costs 13 MB with 1,000 pods.
const gcPercent = 50

// serve runs the daemon until ctx ends. Pods keep running without it.
func serve(ctx context.Context, load func() (*config.Config, error)) error {
	// Files and directories get exactly the modes in the code.
	unix.Umask(0o022)
	spawn.RaiseFiles()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}

	cfg, err := load()
	if err != nil {
		return err
	}

	if err := setUpLog(cfg); err != nil {
		return err
	}
	defer klog.Flush()

	if os.Geteuid() != 0 {
		return errors.New("serve creates namespaces, mounts and cgroups, which requires root: run it as root, or as a service (systemctl start crisp)")
	}
	for _, dir := range []string{cfg.Root, cfg.State} {
		l, err := lock(dir)
		if err != nil {
			return err
		}
		defer l.Close()
	}

	for _, path := range []string{cfg.Socket(), cfg.CAdvisorSocket} {
		if path == "" {
			continue
		}
		if _, err := replaceable(path); err != nil {
			return err
		}
	}

	if err := examine(cfg); err != nil {
		return fmt.Errorf("%w\ncrisp config check reports this, too; crisp config default documents each key", err)
	}
	if err := orphan.Adopt(); err != nil {
		return err
	}

	d := &services{cfg: cfg, facts: host.Probe()}
	if err := d.facts.TooOld(); err != nil {
		return err
	}
	d.applied.Store(cfg)
	defer d.close()
	// Those that come before all is open are not lost.
	reloads := make(chan os.Signal, 1)
	signal.Notify(reloads, unix.SIGHUP)
	if err := d.open(ctx); err != nil {
		return err
	}
	d.goUntilClose(func(ctx context.Context) { d.followReloads(ctx, reloads, load) })
	return d.serve(ctx)
}

// services are the parts of the daemon, in the order of opening.
type services struct {
	cfg     *config.Config
	facts   host.Facts
	closers []func()

	cgroups *cgroup.Node
	images  *image.Service
	network *network.Network
	keeper  *client.Link
	pods    *pod.Manager
	stats   *stats.Collector
	streams *stream.Server
	metrics *telemetry.Metrics // nil without an address for them
	scrapes metricsServer
	traces  *telemetry.Traces
	audit   *audit.Log
	admin   *admin.Server

	applied  atomic.Pointer[config.Config] // cfg, with what was reloaded
	checking sync.Mutex                    // held during a check of the images
}

// onClose registers the function that stops a service.
func (d *services) onClose(f func()) { d.closers = append(d.closers, f) }

// close stops the services, the last opened first. An operation that does not
// end, such as one that waits for a plugin, is left to the next daemon, as
// after a crash.
func (d *services) close() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := len(d.closers) - 1; i >= 0; i-- {
			d.closers[i]()
		}
	}()
	select {
	case <-done:
	case <-time.After(closeTimeout):
		klog.InfoS("Exiting with operations in progress, the next daemon resumes them")
	}
}

// goUntilClose runs f in the background until the service is closed.
func (d *services) goUntilClose(f func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f(ctx) }()
	d.onClose(func() { cancel(); <-done })
}

// open starts everything that the server needs.
func (d *services) open(ctx context.Context) error {
	for _, p := range d.facts.Problems {
		klog.InfoS("Probe of the machine was inconclusive", "reason", p)
	}
	var err error
	if d.cgroups, err = cgroup.New(d.cfg.CgroupDriver, d.cfg.CgroupParent); err != nil {
		return err
	}
	d.onClose(func() { d.cgroups.Close() })

	for _, w := range d.cgroups.Degraded() {
		klog.InfoS("Cgroup support is incomplete", "missing", w)
	}
	d.newMetrics()
	if err := d.startTraces(ctx); err != nil {
		return err
	}
	if err := d.startAudit(ctx); err != nil {
		return err
	}
	options := imageOptions(d.cfg, d.facts)
	if d.metrics != nil {
		options.Meter = d.metrics
	}
	if d.images, err = image.Open(options); err != nil {
		return err
	}
	d.onClose(func() { d.images.Close() })
	if err := d.checkFileSystem(ctx); err != nil {
		return err
	}

	archives := folder.New(d.cfg.ImportDir(), filepath.Join(d.cfg.Root, "imports.json"), d.images)
	d.goUntilClose(archives.Watch)

	d.admin = &admin.Server{Version: version, Images: d.images, Facts: d.facts, CgroupDriver: d.cgroups.Driver(), Root: d.cfg.Root}
	d.goUntilClose(func(ctx context.Context) { dumpOnSignal(ctx, d.admin) })
	if err := d.serveAdmin(); err != nil {
		klog.ErrorS(err, "Could not serve commands, images can only be checked while no daemon runs")
	}
	o := networkOptions(d.cfg)
	if d.metrics != nil {
		o.Meter = d.metrics.Plugin
	}
	if d.network, err = network.Open(o); err != nil {
		return err
	}
	d.onClose(d.network.Close)
	if d.keeper, err = client.OpenLink(ctx, d.cfg.State, ""); err != nil {
		return err
	}
	d.onClose(func() { d.keeper.Close() })

	return d.openPods(ctx)
}

// networkOptions are the options of a configuration.
func networkOptions(cfg *config.Config) network.Options {
	cluster, _ := cfg.Cluster() // it is valid: Load has checked it
	return network.Options{
		ConfDir: cfg.CNIConfDir, BinDirs: cfg.CNIBinDirs, CacheDir: filepath.Join(cfg.Root, "cni"),
		Own: true, Default: cfg.DefaultNetwork, Cluster: cluster, Builtins: cfg.BuiltinPlugins,
	}
}

// checkFileSystem fails if containers can never be stored where images are. What
// may pass, such as a full disk, does not keep the daemon from the calls that free
// it.
func (d *services) checkFileSystem(ctx context.Context) error {
	if d.facts.Overlay == host.No {
		return errors.New("the kernel has no overlayfs, which containers' root file systems need: load its module, overlay")
	}
	err := d.images.CheckFileSystem(ctx)
	if errors.Is(err, image.ErrUnsupported) {
		return err
	}
	if err != nil {
		klog.ErrorS(err, "Could not check the file system for images and containers", "root", d.cfg.Root)
	}
	return nil
}

// imageOptions are the options of a configuration.
func imageOptions(cfg *config.Config, facts host.Facts) image.Options {
	return image.Options{
		Root: filepath.Join(cfg.Root, "image"), Choices: imageChoices(cfg),
		Compat32: facts.Compat32.OK(), UserAgent: "crisp/" + version,
		Sync: syncApart,
	}
}

// labels returns the container labels of the SELinux policy, nil if it defines
// none or labels are disabled.
func (d *services) labels() (*selinux.Policy, error) {
	if !d.cfg.SELinux || !d.facts.SELinux.OK() {
		return nil, nil
	}
	labels, err := selinux.Load(os.DirFS("/"))
	if errors.Is(err, selinux.ErrNoTypes) {
		klog.InfoS("Containers get no SELinux labels", "reason", err)
		return nil, nil
	}
	return labels, err
}

// openPods starts what depends on the other services.
func (d *services) openPods(ctx context.Context) error {
	if d.facts.AppArmor.OK() && d.cfg.AppArmorProfile == apparmor.DefaultName {
		if err := apparmor.Load(ctx, apparmor.DefaultName); err != nil {
			klog.ErrorS(err, "Could not load the AppArmor profile, containers with RuntimeDefault are not confined by it")
		}
	}

	labels, err := d.labels()
	if err != nil {
		return err
	}

	// Agents in pods see namespaces that are pinned there later; those in the
	// state directory are private.
	if !strings.HasPrefix(d.cfg.NetNSDir, filepath.Clean(d.cfg.State)+"/") {
		if err := netns.Share(d.cfg.NetNSDir); err != nil {
			return err
		}
	}

	devices := cdi.New(d.cfg.CDISpecDirs)
	plugins, err := d.newPlugins(devices)
	if err != nil {
		return err
	}
	options := pod.Options{
		Root: d.cfg.Root, NetNSDir: d.cfg.NetNSDir,
		Keeper: d.keeper, Launcher: launch.New(d.keeper, d.facts), Cgroups: d.cgroups,
		Images: d.images, Network: d.network,
		Host: spec.HostOf(d.facts, os.DirFS("/")), Node: node.Node{}, Choices: podChoices(d.cfg),
		SELinux:    labels,
		CDI:        devices.Inject,
		StateDir:   d.cfg.State,
		ResctrlDir: resctrl.Root,
		Observe:    d.cfg.CAdvisorSocket != "",
		MaxLogLine: d.cfg.MaxContainerLogLineSize,
		CRIU:       criu.NewFinder(d.cfg.CRIUPath),
		ReadPages:  readPages,
		Refill:     []string{"/proc/self/exe", refillCommand},
	}
	if d.metrics != nil {
		options.Meter = d.metrics
	}
	if plugins != nil {
		options.Plugins, options.PluginWait = plugins, time.Duration(d.cfg.NRIRequiredWait)
	}
	if d.pods, err = pod.Open(ctx, options); err != nil {
		return err
	}

	d.onClose(d.pods.Close)
	d.goUntilClose(func(ctx context.Context) { careFor(ctx, d.network, d.cfg) })
	d.admin.Plugins = d.network.Running
	d.admin.SetPods(d.pods)
	if err := d.startPlugins(plugins); err != nil {
		return err
	}
	if err := d.serveCAdvisor(); err != nil {
		return err
	}

	d.stats = stats.New(pod.StatsSource{Manager: d.pods, UpperDir: d.images.UpperDir}, stats.Options{Mountpoint: d.cfg.Root})
	d.goUntilClose(d.stats.Run)
	d.streams, err = stream.Start(stream.Options{
		Addr: d.cfg.StreamAddress, IdleTimeout: time.Duration(d.cfg.StreamIdleTimeout),
	}, cri.Sessions{Pods: d.pods, Audit: d.audit})
	if err != nil {
		return err
	}
	d.onClose(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := d.streams.Stop(ctx); err != nil {
			klog.ErrorS(err, "Could not stop streaming")
		}
	})

	return nil
}

// newPlugins returns the host of the node's plugins, nil if they are disabled.
func (d *services) newPlugins(devices *cdi.Registry) (*nri.Host, error) {
	if !d.cfg.NRI {
		return nil, nil
	}
	nri.LogLibrary()
	return nri.New(nri.Options{
		Version: version, Socket: d.cfg.NRISocket, PluginDir: d.cfg.NRIPluginDir, ConfigDir: d.cfg.NRIPluginConfigDir, Stage: filepath.Join(d.cfg.State, "nri"),
		RegistrationTimeout: time.Duration(d.cfg.NRIRegistrationTimeout), RequestTimeout: time.Duration(d.cfg.NRIRequestTimeout),
		Required: d.cfg.NRIRequiredPlugins, Reject: d.cfg.NRIReject,
		CDI: devices.Inject,
	})
}

// startPlugins lets plugins connect until the daemon closes. Without a socket for
// them the daemon serves all the same, unless a plugin is required.
func (d *services) startPlugins(h *nri.Host) error {
	if h == nil {
		return nil
	}

	err := h.Start(d.pods)
	if err != nil && len(d.cfg.NRIRequiredPlugins) > 0 {
		return err
	}
	if err != nil {
		klog.ErrorS(err, "Could not start plugins, pods run without them", "socket", d.cfg.NRISocket)
	}
	d.onClose(h.Close)
	return nil
}

// serveCAdvisor serves cAdvisor, if configured, until the daemon closes.
func (d *services) serveCAdvisor() error {
	path := d.cfg.CAdvisorSocket
	if path == "" {
		return nil
	}

	l, err := listen(path)
	if err != nil {
		return fmt.Errorf("serve cAdvisor (cadvisor_socket): %w", err)
	}

	g := grpc.NewServer(cadvisor.Options(rpcerr.New(rules.All()).Unary())...)
	s := &cadvisor.Server{Version: version, Source: d.pods.Observed}
	s.Register(g)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := g.Serve(l); err != nil {
			klog.ErrorS(err, "Stopped serving cAdvisor", "socket", path)
		}
	}()
	d.onClose(func() { g.Stop(); <-done })

	return nil
}

// serve handles calls until ctx ends.
func (d *services) serve(ctx context.Context) error {
	l, err := listen(d.cfg.Socket())
	if err != nil {
		return err
	}

	outer := []cri.Interceptors{d.traces}
	if d.metrics != nil {
		outer = append(outer, d.metrics)
	}
	g := grpc.NewServer(cri.ServerOptions(outer...)...)
	s := &cri.Server{
		RuntimeVersion: version, Pods: d.pods, Images: d.images, Network: d.network, Stats: d.stats, Streams: d.streams, Audit: d.audit,
		Host: d.facts, CgroupDriver: d.cgroups.Driver(), Settings: func() any { return d.applied.Load() },
	}

	s.Register(g)
	if err := d.serveMetrics(ctx); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- g.Serve(l) }()
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		klog.ErrorS(err, "Could not notify the service manager that crisp is ready")
	}
	d.goUntilClose(func(closing context.Context) {
		serving, cancel := context.WithCancel(closing)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		watch(serving, d.cfg.Socket())
	})

	var lost []string
	for _, f := range d.facts.Lacks() {
		if f.Lost != "" {
			lost = append(lost, f.Name+": "+f.Lost)
		}
	}
	if len(lost) > 0 {
		klog.InfoS("The kernel lacks features, see docs/kernels.md", "kernel", d.facts.Kernel, "lost", lost)
	}

	klog.InfoS("Serving", "socket", d.cfg.Listen, "version", version, "cgroupDriver", d.cgroups.Driver(), "kernel", d.facts.Kernel)
	select {
	case err := <-ended:
		return fmt.Errorf("serve on %s: %w", d.cfg.Listen, err)
	case <-ctx.Done():
	}

	daemon.SdNotify(false, daemon.SdNotifyStopping)
	klog.InfoS("Stopping, pods keep running")
	d.stopServer(g)
	<-ended
	return nil
}

// stopServer gives running calls time to finish. Streams of events would
// never end by themselves, so the pods are closed to new ones first.
func (d *services) stopServer(g *grpc.Server) {
	d.pods.EndEvents()
	done := make(chan struct{})
	go func() { g.GracefulStop(); close(done) }()
	select {
	case <-done:
	case <-time.After(stopTimeout):
		g.Stop()
		<-done
	}
}
