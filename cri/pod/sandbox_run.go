package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crisp/cri/spec"
	"crisp/cri/spec/selinux"
	"crisp/network"
	"crisp/network/netns"
	"crisp/runtime/cgroup"
	"crisp/runtime/durable"
	"crisp/runtime/failpoint"
	"crisp/runtime/keeper/client"
	"crisp/runtime/keeper/table"
	"crisp/runtime/launch"
)

// sandboxSteps are the effects of a sandbox on the machine, in order.
var sandboxSteps = []step[*pod]{
	{name: "make files", do: (*pod).makeFiles, undo: (*pod).removeFiles},
	{name: "make cgroup", do: (*pod).makeCgroup, undo: (*pod).removeCgroup},
	{name: "make namespaces", do: (*pod).makeNamespaces, undo: (*pod).dropNamespaces},
	{name: "pin network namespace", do: (*pod).pinNetwork, undo: (*pod).unpinNetwork},
	{name: "attach network", sync: true, do: (*pod).attachNetwork, undo: (*pod).detachNetwork},
	{name: "ask plugins", do: (*pod).askRun, undo: (*pod).tellSandboxStopped},
}

// RunSandbox creates and starts a sandbox and returns its id. A call for a
// sandbox that exists, or is being created, with the same metadata and
// configuration returns the id of that one.
func (m *Manager) RunSandbox(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	if err := spec.ValidateSandbox(cfg); err != nil {
		return "", err
	}
	if !m.HasHandler(handler) {
		return "", fmt.Errorf("%w: no runtime handler %q (there are %q)", ErrInvalid, handler, m.Handlers())
	}
	return m.join(ctx, sandboxKey(cfg.GetMetadata()), Operation{What: "run pod", Pod: sandboxName(cfg.GetMetadata())}, func(ctx context.Context) (string, error) {
		return m.runSandbox(ctx, cfg, handler, nil)
	})
}

// runSandbox runs a pod, whose containers are to follow of a checkpoint if it is restored.
func (m *Manager) runSandbox(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string, from *RestoreRequest) (string, error) {
	if id, err := m.existing(ctx, cfg); id != "" || err != nil {
		return id, err
	}
	if spec.NamespaceMode(cfg, spec.Network) != runtimeapi.NamespaceMode_NODE {
		if err := m.Network.Ready(); err != nil {
			return "", fmt.Errorf("run sandbox %s: %w", sandboxName(cfg.GetMetadata()), err)
		}
	}

	p, err := m.newSandbox(ctx, cfg, handler, from)
	if err != nil {
		return "", err
	}

	id := p.record().ID
	m.activity.identify(ctx, id)
	release, err := p.lock(ctx)
	if err != nil {
		return "", err
	}
	defer release()

	m.register(p)
	defer p.starting.Store(false)

	err = walk(ctx, sandboxSteps, p, p.recorder())
	if err == nil {
		m.events.sandbox(p.record(), runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
		m.events.sandbox(p.record(), runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
		return id, nil
	}

	err = fmt.Errorf("run sandbox %s: %w", sandboxName(cfg.GetMetadata()), err)
	if leftOver(err) {
		// It stays listed, so that its removal retries.
		p.noteLeft(err)
		return "", err
	}
	return "", errors.Join(err, p.forget(ctx))
}

// existing finds the sandbox that already has a configuration's metadata, and
// removes it if its creation failed.
func (m *Manager) existing(ctx context.Context, cfg *runtimeapi.PodSandboxConfig) (string, error) {
	m.mu.RLock()
	p := m.pods[m.names[sandboxKey(cfg.GetMetadata())]]
	m.mu.RUnlock()
	if p == nil {
		return "", nil
	}

	r := p.record()
	switch {
	case r.begun():
		return "", p.undo(ctx)
	case r.Restoring: // interrupted: one that is under way has the same key
		return "", m.RemoveSandbox(ctx, r.ID)
	case !r.Ready():
		return "", fmt.Errorf("%s is sandbox %s, which is not ready: remove it first: %w", sandboxKey(cfg.GetMetadata()), r.ID, ErrExists)
	case !proto.Equal(r.Config.Msg, cfg):
		return "", fmt.Errorf("%s is sandbox %s with another configuration: %w", sandboxKey(cfg.GetMetadata()), r.ID, ErrExists)
	}

	return r.ID, nil
}

// undo removes a pod whose creation failed, unless the running operation has
// already done so.
func (p *pod) undo(ctx context.Context) error {
	release, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer release()

	if p.isGone() {
		return nil
	}
	if err := unwind(ctx, sandboxSteps, p.phase(), p); err != nil {
		err = fmt.Errorf("undo the creation of sandbox %s: %w", p.record().ID, err)
		p.noteLeft(err)
		return err
	}

	return p.forget(ctx)
}

// noteLeft records why a sandbox that should have been removed is still listed.
func (p *pod) noteLeft(why error) {
	warn(p.update(func(r *Record) { r.Reason = why.Error() }), "record why a sandbox is left", "sandbox", p.record().ID)
}

// newSandbox creates the pod's directory and its first record. A pod that is restored has
// from, others nil.
func (m *Manager) newSandbox(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string, from *RestoreRequest) (*pod, error) {
	cfg = proto.Clone(cfg).(*runtimeapi.PodSandboxConfig)
	r := &Record{
		Version: recordVersion, BootID: m.bootID, ID: newID(), Config: message(cfg), Handler: handler, Restoring: from != nil,
		CreatedAt: time.Now().UnixNano(), Phase: sandboxSteps[0].name,
	}

	if from != nil {
		r.Merge = from.merge
	}
	if from != nil && from.arrival != nil {
		r.WantIPs, r.Arrived = from.arrival.addresses, from.arrival.token
	}
	if spec.NamespaceMode(cfg, spec.Network) != runtimeapi.NamespaceMode_NODE {
		r.NetNS = m.netNSPath(r.ID)
		r.Observed = m.Observe
	}

	var err error
	if r.SELinuxLevel, err = m.takeLevel(cfg); err != nil {
		return nil, err
	}

	p := newPod(m, r, nil)
	p.starting.Store(true)
	if err := failpoint.Between("make directory", func() error { return os.Mkdir(m.store.podDir(r.ID), 0o700) }); err != nil {
		m.levels.Drop(r.SELinuxLevel)
		return nil, errors.Join(fmt.Errorf("create directory of sandbox %s: %w", r.ID, err), p.forget(ctx))
	}
	return p, nil
}

// netNSPath is where a pod's network namespace is pinned.
func (m *Manager) netNSPath(id string) string {
	return filepath.Join(m.NetNSDir, "crisp-"+id[:min(20, len(id))])
}

// sandboxName is NAMESPACE/NAME.
func sandboxName(md *runtimeapi.PodSandboxMetadata) string {
	return md.GetNamespace() + "/" + md.GetName()
}

// makeFiles writes the files that all containers of the pod share, and creates
// the directory for their logs.
func (p *pod) makeFiles(context.Context) error {
	r := p.record()
	cfg := r.Config.Msg
	if dir := cfg.GetLogDirectory(); dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create log directory: %w", err)
		}
	}

	files, err := spec.SharedFiles(cfg)
	if err != nil {
		return err
	}

	uid, gid := spec.RootIDs(cfg)
	labels, err := p.labels()
	if err != nil {
		return err
	}

	for name, data := range files {
		path := p.sharedFile(name)
		if err := durable.CreateFile(path, data, 0o644); err != nil {
			return err
		}

		if err := selinux.LabelFile(path, labels.Mount); err != nil {
			return err
		}
		if uid != 0 || gid != 0 {
			if err := os.Chown(path, uid, gid); err != nil {
				return err
			}
		}
	}

	return nil
}

// sharedFile is the path of one of the files that the pod's containers share.
func (p *pod) sharedFile(name string) string {
	return filepath.Join(p.m.store.podDir(p.record().ID), name)
}

// removeFiles keeps the record: it is removed last, with the directory, in
// [pod.forget].
func (p *pod) removeFiles(context.Context) error {
	var errs []error
	for _, name := range spec.SharedFileNames() {
		if err := os.Remove(p.sharedFile(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// cgroupPath is the cgroup of the pod's first process.
func (p *pod) cgroupPath() (string, error) {
	r := p.record()
	path, err := p.m.Cgroups.Path(r.Config.Msg.GetLinux().GetCgroupParent(), r.ID)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return path, nil
}

// makeCgroup creates a cgroup for the pod's first process, if it has one. The
// name is checked in any case, so that an invalid one fails before a container
// uses it.
func (p *pod) makeCgroup(ctx context.Context) error {
	path, err := p.cgroupPath()
	if err != nil || !p.hasPause() {
		return err
	}
	_, err = p.m.Cgroups.Create(ctx, path, &specs.LinuxResources{})
	return err
}

func (p *pod) removeCgroup(ctx context.Context) error {
	if !p.hasPause() && !p.record().Refilled {
		return nil
	}
	path, err := p.cgroupPath()
	if err != nil {
		return nil // none was created
	}
	return p.m.removeCgroup(ctx, path)
}

// hasPause reports whether the pod has its own first process.
func (p *pod) hasPause() bool {
	r := p.record()
	return r.Observed || spec.NamespaceMode(r.Config.Msg, spec.PID) == runtimeapi.NamespaceMode_POD
}

// pauseCgroup creates the cgroup of the pod's first process.
func (p *pod) pauseCgroup(ctx context.Context) (*cgroup.Group, error) {
	path, err := p.cgroupPath()
	if err != nil {
		return nil, err
	}
	return p.m.Cgroups.Create(ctx, path, &specs.LinuxResources{})
}

// makeNamespaces runs the sandbox's plan; the keeper holds the namespaces.
func (p *pod) makeNamespaces(ctx context.Context) error {
	r := p.record()
	o, err := spec.SandboxOptions(r.Config.Msg)
	if err != nil {
		return err
	}

	node, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read the node's host name: %w", err)
	}

	o.PidNS = o.PidNS || r.Observed
	o.Hostname = spec.Hostname(r.Config.Msg, node)
	o.Name = "make namespaces of " + r.Name()
	labels, err := p.labels()
	if err != nil {
		return err
	}

	o.MountLabel, o.ProcessLabel = labels.Mount, labels.Process
	o.ApparmorProfile, err = spec.SandboxAppArmor(r.Config.Msg, spec.Input{Host: p.m.Host, Node: p.m.Node, Defaults: p.m.choices.Load().Defaults})
	if err != nil {
		return err
	}

	request := launch.SandboxRequest{ID: r.ID, Options: o}
	p.hold(p.m.table.Begin(r.ID, client.Sandbox, p.sandboxHooks()), o.PidNS)
	if o.PidNS {
		group, err := p.pauseCgroup(ctx)
		if err != nil {
			return fmt.Errorf("create cgroup: %w", err)
		}
		request.Group = group
	}

	return p.startSandbox(ctx, request)
}

// startSandbox has the keeper create the pod's namespaces, and records them.
func (p *pod) startSandbox(ctx context.Context, request launch.SandboxRequest) error {
	started, err := p.m.Launcher.Sandbox(ctx, request)
	if err != nil {
		return err
	}

	p.setNamespaces(started.Namespaces)
	if started.PidFD != nil && !request.Options.PidNS {
		if err := started.PidFD.Close(); err != nil {
			return err
		}
		started.Pid, started.PidFD = 0, nil
	}
	if err := p.row.Started(p.m.ctx, started); err != nil || started.PidFD == nil {
		return err
	}

	pause, err := identify(started.Pid)
	if err != nil {
		return fmt.Errorf("identify the pod's first process: %w", err)
	}
	return p.update(func(r *Record) { r.Pause, r.Procfs = pause, true })
}

// dropNamespaces lets the kernel free the namespaces: nothing else holds them
// once the containers have exited.
func (p *pod) dropNamespaces(ctx context.Context) error {
	if err := p.killFirst(); err != nil {
		return fmt.Errorf("kill the pod's first process: %w", err)
	}

	p.mu.Lock()
	row, ended := p.row, p.firstEnded
	p.mu.Unlock()
	if row != nil {
		row.Abandon()
	}
	p.setNamespaces(nil)

	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := p.m.forgetDying(ctx, p.record().ID, ended); err != nil {
		return err
	}
	if row != nil {
		row.Drop()
	}
	return nil
}

// hold sets the pod's row; with first, the pod has its own first process.
func (p *pod) hold(row *table.Row, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.row, p.firstEnded = row, nil
	if first {
		p.firstEnded = make(chan struct{})
	}
}

// killFirst kills the pod's first process, whether its start was recorded or not.
func (p *pod) killFirst() error {
	p.mu.Lock()
	row := p.row
	p.mu.Unlock()
	if row != nil && row.PidFD() != nil {
		return row.Signal(unix.SIGKILL)
	}
	if r := p.record(); r.Pause != nil && r.BootID == p.m.bootID {
		return killProcess(r.Pause)
	}
	return nil
}

func (p *pod) pinNetwork(context.Context) error {
	if path := p.record().NetNS; path != "" {
		return netns.Pin(p.namespace("net"), path)
	}
	return nil
}

func (p *pod) unpinNetwork(context.Context) error {
	if path := p.record().NetNS; path != "" {
		return netns.Unpin(path)
	}
	return nil
}

func (p *pod) attachNetwork(ctx context.Context) error {
	r := p.record()
	if r.NetNS == "" {
		return nil
	}

	a, err := attachment(r)
	if err != nil {
		return err
	}

	if len(r.WantIPs) > 0 {
		if err := p.holdNetwork(); err != nil {
			return err
		}
	}
	result, err := p.m.Network.Attach(ctx, a)
	if err != nil {
		return err
	}

	if len(result.Unserved) > 0 {
		klog.InfoS("No network plugin provides a requested feature", "sandbox", r.ID, "missing", result.Unserved)
	}
	err = p.update(func(r *Record) {
		for _, ip := range result.IPs {
			r.IPs = append(r.IPs, ip.String())
		}
	})
	if err != nil {
		return err
	}
	if err := wantAddresses(r.WantIPs, p.record().IPs); err != nil {
		return err
	}
	return p.setNetworkSysctls()
}

func (p *pod) detachNetwork(ctx context.Context) error {
	r := p.record()
	if r.NetNS == "" {
		return nil
	}
	if err := p.returnDevices(); err != nil {
		return err
	}
	a, err := attachment(r)
	if err != nil {
		return err
	}
	if _, err := os.Stat(a.NetNS); r.BootID != p.m.bootID || err != nil {
		a.NetNS = "" // plugins release addresses without it
	}
	return p.m.Network.Detach(ctx, a)
}

// attachment describes the pod to the network.
func attachment(r *Record) (network.Attachment, error) {
	cfg := r.Config.Msg
	a := network.Attachment{
		ID: r.ID, NetNS: r.NetNS,
		Name: cfg.GetMetadata().GetName(), Namespace: cfg.GetMetadata().GetNamespace(), UID: cfg.GetMetadata().GetUid(),
		Annotations: cfg.GetAnnotations(), CgroupParent: cfg.GetLinux().GetCgroupParent(),
		IPs: r.WantIPs,
	}

	if d := cfg.GetDnsConfig(); d != nil {
		a.DNS = &network.DNS{Servers: d.GetServers(), Searches: d.GetSearches(), Options: d.GetOptions()}
	}
	for _, pm := range cfg.GetPortMappings() {
		if pm.GetHostPort() <= 0 {
			continue
		}
		a.PortMappings = append(a.PortMappings, network.PortMapping{
			HostPort: pm.GetHostPort(), ContainerPort: pm.GetContainerPort(),
			Protocol: pm.GetProtocol().String(), HostIP: pm.GetHostIp(),
		})
	}

	return a, nil
}

// forget removes the pod's directory, and the pod from memory. Without a record
// there is no pod: the rest of the directory is removed at the next start.
func (p *pod) forget(ctx context.Context) error {
	p.tellSandboxRemoved(ctx)
	id := p.record().ID
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return nil
	}

	if err := failpoint.Between("remove directory", func() error { return removeTree(ctx, p.m.store.podDir(id)) }); err != nil {
		if _, lost := os.Stat(p.m.store.recordPath(id)); lost == nil {
			return fmt.Errorf("remove directory of sandbox: %w", err)
		}
		klog.ErrorS(err, "Could not remove the rest of a sandbox's directory", "sandbox", id)
	}

	p.gone = true
	p.m.unregister(p)
	return nil
}
