package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"crisp/network/cni"
	"crisp/network/netns"
	"crisp/network/own"
	"crisp/network/own/lease"
)

// DefaultIfName is the name of a pod's interface.
const DefaultIfName = "eth0"

// Options of a [Network].
type Options struct {
	// ConfDir holds CNI configurations, of which the first is used. It is read
	// anew for each call and need not exist yet.
	ConfDir string
	// BinDirs are searched for plugins, in order.
	BinDirs []string
	// CacheDir keeps the records of attachments. Daemons must not share it. It
	// should survive a reboot, as address leases do.
	CacheDir string
	// IfName names the interface in the pod; "" is eth0.
	IfName string
	// Own serves the plugin type crisp-net (package own) in this process, in the
	// network namespace of the thread that calls Open.
	Own bool
	// Default uses crisp's own network while ConfDir has no configuration. It
	// requires Own.
	Default bool
	// Cluster are the networks of all nodes' pods, of which the default is to have this
	// node's part: with them it waits for [Network.SetPodCIDR], and pods of other nodes
	// are reached without masquerading.
	Cluster []netip.Prefix
	// Builtins are types of the reference plugins that are served in this process, too,
	// of [own.ReferenceTypes], for new pods. They require Own.
	Builtins []string
	// CommonCache is where other runtimes record what they attached, "" where most do.
	CommonCache string
	// Meter, if not nil, measures the calls of plugins.
	Meter cni.Meter
}

// Network attaches pods. It is safe for concurrent use.
type Network struct {
	options Options
	client  *cni.Client
	confDir atomic.Pointer[string] // Options.ConfDir, until it is changed
	own     *own.Plugin            // nil if it is not served

	defaulting sync.Mutex // held to read and replace the default configuration
	adopted    bool       // whether that of an earlier daemon has been looked at

	// attaching is held for reading by each Attach, and for writing while plugins
	// collect garbage: they would release what an Attach has just reserved.
	attaching sync.RWMutex

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

// Attachment is a pod's request to be attached.
type Attachment struct {
	// ID is the pod's ID, NetNS the path to which its namespace is pinned.
	ID, NetNS string
	// Name, Namespace and UID are the pod's in Kubernetes.
	Name, Namespace, UID string
	// Annotations of the pod. Those for bandwidth limits are applied, and all are
	// passed to plugins that declare the capability.
	Annotations map[string]string
	// PortMappings without a host port are ignored.
	PortMappings []PortMapping
	DNS          *DNS
	CgroupParent string
	// IPs and MAC request certain addresses: "10.0.0.7/24".
	IPs []string
	MAC string
}

// PortMapping exposes a port of the pod on a port of the host.
type PortMapping struct {
	// Protocol is tcp, udp or sctp in either case; "" is tcp.
	Protocol                string
	ContainerPort, HostPort int32
	// HostIP restricts the mapping to one address of the host.
	HostIP string
}

// DNS is the resolver configuration of a pod.
type DNS struct{ Servers, Searches, Options []string }

// Result is the outcome of an attachment.
type Result struct {
	// IPs are the addresses of the pod's interface, the primary one first.
	IPs []netip.Addr
	// Raw is the complete result of the plugins, in JSON.
	Raw []byte
	// Unserved lists the capabilities that the pod requested and no plugin of the
	// chain supports: "portMappings", "bandwidth", "ips", "mac".
	Unserved []string
}

// Open returns the network that the options describe. The node need not have a
// network configuration yet: see [Network.Status].
func Open(o Options) (*Network, error) {
	if o.CacheDir == "" {
		return nil, fmt.Errorf("open network: %w: no cache directory", ErrInvalid)
	}
	if o.Default && !o.Own {
		return nil, fmt.Errorf("open network: %w: the own network cannot be the default without being served", ErrInvalid)
	}
	if o.IfName == "" {
		o.IfName = DefaultIfName
	}

	o.BinDirs = slices.Clone(o.BinDirs)
	n := &Network{options: o}
	n.confDir.Store(&o.ConfDir)
	var builtins map[string]cni.Builtin
	var err error
	if o.Own {
		if n.own, err = own.Open(true, o.leases(), lease.DefaultDir); err != nil {
			return nil, fmt.Errorf("open network: %w", err)
		}
		builtins = builtinsOf(n.own, o.Builtins)
	}

	if n.client, err = cni.NewClient(o.BinDirs, o.CacheDir, o.IfName, builtins, o.Meter); err != nil {
		err = fmt.Errorf("open network: %w", err)
		if n.own != nil {
			err = errors.Join(err, n.own.Close())
		}
		return nil, err
	}
	return n, nil
}

// leases is the directory of leases of the default network.
func (o *Options) leases() string { return filepath.Join(o.CacheDir, "leases") }

// builtinsOf are the types that a plugin serves: some for new pods, and all for pods that
// were served when they were attached.
func builtinsOf(plugin *own.Plugin, some []string) map[string]cni.Builtin {
	builtins := map[string]cni.Builtin{own.Type: {Call: callOf(plugin, own.Type), Validate: func(config []byte, _ [][]byte) error { return own.Validate(config) }, New: true}}
	for _, kind := range own.ReferenceTypes() {
		if kind == own.TypeHostLocal {
			continue // not called by itself
		}
		builtins[kind] = cni.Builtin{
			Call:     callOf(plugin, kind),
			Validate: func(config []byte, chain [][]byte) error { return plugin.ValidateReference(kind, config, chain) },
			New:      slices.Contains(some, kind),
		}
	}
	return builtins
}

// callOf passes calls of a type on to crisp's own network.
func callOf(plugin *own.Plugin, kind string) func(context.Context, cni.BuiltinCall) ([]byte, error) {
	return func(ctx context.Context, c cni.BuiltinCall) ([]byte, error) {
		return plugin.Call(ctx, ownCall(kind, c))
	}
}

func ownCall(kind string, c cni.BuiltinCall) own.Call {
	return own.Call{Type: kind, Command: c.Command, ID: c.ID, NetNS: c.NetNS, IfName: c.IfName, Args: c.Args, Config: c.Config}
}

// SetDirs reads configurations from another directory, and looks for plugins in others,
// from now on. Pods that are attached are detached by the configuration that they have.
func (n *Network) SetDirs(confDir string, binDirs []string) {
	n.confDir.Store(&confDir)
	n.client.SetBinDirs(slices.Clone(binDirs))
}

// Running lists the calls of plugins for a pod that go on, the oldest first.
func (n *Network) Running(id string) []cni.Running { return n.client.Running(id) }

// Close waits for the calls in progress. Later calls return [ErrClosed].
func (n *Network) Close() {
	n.mu.Lock()
	closed := n.closed
	n.closed = true
	n.mu.Unlock()
	n.calls.Wait()
	if n.own != nil && !closed {
		// Only its connections to the kernel are closed, and nothing can be done
		// about a failure.
		_ = n.own.Close()
	}
}

// begin counts a call that may run plugins; done ends it.
func (n *Network) begin() (done func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	n.calls.Add(1)
	return n.calls.Done, nil
}

// Attach attaches a pod. If it fails, the attachment is undone; if that fails too,
// the error says so and Detach has to be called.
func (n *Network) Attach(ctx context.Context, a Attachment) (Result, error) {
	result, err := n.attach(ctx, a)
	if err != nil {
		return Result{}, fmt.Errorf("attach network: %w", err)
	}
	return result, nil
}

func (n *Network) attach(ctx context.Context, a Attachment) (Result, error) {
	done, err := n.begin()
	if err != nil {
		return Result{}, err
	}
	defer done()

	want, err := a.cni()
	if err != nil {
		return Result{}, err
	}

	conf, err := n.config()
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrNotReady, err)
	}

	n.attaching.RLock()
	defer n.attaching.RUnlock()
	added, err := n.client.Add(ctx, conf, want)
	if err != nil {
		return Result{}, err
	}

	result, err := n.read(added)
	if err != nil {
		return Result{}, errors.Join(err, n.client.Del(context.WithoutCancel(ctx), conf, want))
	}

	for _, capability := range []string{capPortMappings, capBandwidth, capIPs, capMAC} {
		if _, asked := want.Capabilities[capability]; asked && !conf.Declares(capability) {
			result.Unserved = append(result.Unserved, capability)
		}
	}

	return result, nil
}

// read extracts the pod's addresses from the plugins' result.
func (n *Network) read(added *types100.Result) (Result, error) {
	var result Result
	for at, ip := range added.IPs {
		if ip == nil { // null in JSON
			return Result{}, fmt.Errorf("read result: address %d is null", at)
		}
		own, err := n.isPods(ip, added.Interfaces)
		if err != nil {
			return Result{}, err
		}
		if !own {
			continue
		}

		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return Result{}, fmt.Errorf("read result: address %q", ip.Address.IP)
		}
		result.IPs = append(result.IPs, addr.Unmap())
	}

	if len(result.IPs) == 0 {
		return Result{}, fmt.Errorf("read result: %w for %s", ErrNoAddress, n.options.IfName)
	}
	var err error
	if result.Raw, err = json.Marshal(added); err != nil {
		return Result{}, fmt.Errorf("read result: %w", err)
	}

	return result, nil
}

// isPods reports whether an address belongs to the pod's interface. One without an
// interface does.
func (n *Network) isPods(ip *types100.IPConfig, interfaces []*types100.Interface) (bool, error) {
	if ip.Interface == nil {
		return true, nil
	}

	i := *ip.Interface
	if i < 0 || i >= len(interfaces) {
		return false, fmt.Errorf("read result: address %s is on interface %d of %d", ip.Address.IP, i, len(interfaces))
	}
	on := interfaces[i]
	return on != nil && on.Name == n.options.IfName && on.Sandbox != "", nil
}

// Detach detaches a pod, with the configuration that it was attached with. It
// calls every plugin even if one fails, and is idempotent. Neither the namespace
// nor the attachment needs to exist.
func (n *Network) Detach(ctx context.Context, a Attachment) error {
	done, err := n.begin()
	if err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	defer done()

	// A request that Attach refused as invalid must be detachable too.
	want, err := a.cni()
	if err != nil {
		want = cni.Attachment{ID: a.ID}
	}
	return n.detach(ctx, want, a.NetNS)
}

func (n *Network) detach(ctx context.Context, want cni.Attachment, path string) error {
	var err error
	if want.NetNS, err = livePath(path); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}

	// Without a current configuration, that of the ADD is used alone.
	conf, err := n.config()
	if err != nil {
		conf = nil
	}
	if err := n.client.Del(ctx, conf, want); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	return nil
}

// CheckPod asks the plugins whether a pod's attachment is still intact.
func (n *Network) CheckPod(ctx context.Context, id string) error {
	done, err := n.begin()
	if err != nil {
		return fmt.Errorf("check network: %w", err)
	}
	defer done()
	if err := n.client.Check(ctx, id); err != nil {
		return fmt.Errorf("check network: %w", err)
	}
	return nil
}

// Sweep detaches every pod that has a recorded attachment and is not among the
// valid IDs: leftovers of a crash.
func (n *Network) Sweep(ctx context.Context, valid []string) error {
	done, err := n.begin()
	if err != nil {
		return fmt.Errorf("sweep network: %w", err)
	}
	defer done()

	ids, err := n.client.Attached()
	if err != nil {
		return fmt.Errorf("sweep network: %w", err)
	}

	var errs []error
	for _, id := range ids {
		if !slices.Contains(valid, id) {
			errs = append(errs, n.detach(ctx, cni.Attachment{ID: id}, n.client.NetNS(id)))
		}
	}

	return errors.Join(errs...)
}

// Status returns nil if pods can be attached, else an [ErrNotReady] with the
// reason.
func (n *Network) Status(ctx context.Context) error {
	conf, err := n.config()
	if err == nil {
		err = n.client.Status(ctx, conf)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return nil
}

// Ready is a quick check for a configuration and the programs of its plugins.
// Without them, an [Network.Attach] could not be undone.
func (n *Network) Ready() error {
	conf, err := n.config()
	if err == nil {
		err = n.client.Complete(conf)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return nil
}

// Info describes the network, for humans.
type Info struct {
	ConfDir string          `json:"confDir"`
	BinDirs []string        `json:"binDirs"`
	IfName  string          `json:"ifName"`
	File    string          `json:"file,omitempty"`
	Network json.RawMessage `json:"network,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// Info returns an [Info], for the verbose form of the CRI's Status.
func (n *Network) Info() any {
	info := Info{ConfDir: *n.confDir.Load(), BinDirs: n.client.BinDirs(), IfName: n.options.IfName}
	conf, err := n.config()
	if err != nil {
		info.Error = err.Error()
		return info
	}
	info.File, info.Network = conf.File, conf.Bytes()
	return info
}

// livePath returns path if it is a network namespace. Otherwise it returns "",
// which tells plugins that the namespace is gone.
func livePath(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	ns, err := netns.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, netns.ErrNotNamespace) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return path, ns.Close()
}
