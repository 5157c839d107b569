package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"sync"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"crisp/network/cni"
	"crisp/network/netns"
)

// DefaultIfName is the name of a pod's interface.
const DefaultIfName = "eth0"

// Options say where the network's files are.
type Options struct {
	// ConfDir holds CNI configurations, of which the first counts. It is read
	// anew for each use and need not exist yet.
	ConfDir string
	// BinDirs are searched for plugins in order.
	BinDirs []string
	// CacheDir keeps what is known of attachments. No two daemons share one.
	// It should survive a restart of the machine, as leases of addresses do.
	CacheDir string
	// IfName names the interface in the pod; "" is eth0.
	IfName string
}

// Network attaches pods. It is safe for concurrent use.
type Network struct {
	options Options
	client  *cni.Client

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

// Attachment is what a pod wants of the network.
type Attachment struct {
	// ID is the pod's id, NetNS the path that its namespace is pinned to.
	ID, NetNS string
	// Name, Namespace and UID are the pod's in Kubernetes.
	Name, Namespace, UID string
	// Annotations of the pod; those that ask for bandwidth are observed, and
	// plugins can have all.
	Annotations map[string]string
	// PortMappings without a host port are passed over.
	PortMappings []PortMapping
	DNS          *DNS
	CgroupParent string
	// IPs and MAC ask for certain addresses: "10.0.0.7/24".
	IPs []string
	MAC string
}

// PortMapping makes a port of the pod reachable at a port of the host.
type PortMapping struct {
	// Protocol is tcp, udp or sctp in either case; "" is tcp.
	Protocol                string
	ContainerPort, HostPort int32
	// HostIP restricts the mapping to an address of the host.
	HostIP string
}

// DNS is the name service of a pod.
type DNS struct{ Servers, Searches, Options []string }

// Result is how a pod was attached.
type Result struct {
	// IPs are the addresses of the pod's interface, the primary one first.
	IPs []netip.Addr
	// Raw is the plugins' whole answer, in JSON.
	Raw []byte
	// Unserved names what the pod asked for and no plugin of the chain
	// provides: "portMappings", "bandwidth", "ips", "mac".
	Unserved []string
}

// Open returns the network that the options describe. It does not matter
// whether the node has a network configuration yet: see [Network.Status].
func Open(_ context.Context, o Options) (*Network, error) {
	if o.CacheDir == "" {
		return nil, fmt.Errorf("open network: %w: no cache directory", ErrInvalid)
	}
	if o.IfName == "" {
		o.IfName = DefaultIfName
	}
	o.BinDirs = slices.Clone(o.BinDirs)
	client, err := cni.NewClient(o.BinDirs, o.CacheDir, o.IfName)
	if err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	return &Network{options: o, client: client}, nil
}

// Close waits for the calls under way. Later ones get [ErrClosed].
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.calls.Wait()
}

// begin counts a call that may start plugins; done ends it.
func (n *Network) begin() (done func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	n.calls.Add(1)
	return n.calls.Done, nil
}

// Attach connects a pod. When it fails nothing stays attached, or, if that
// could not be achieved, the error says so and Detach is to be called.
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

	conf, err := cni.Load(n.options.ConfDir)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrNotReady, err)
	}

	answer, err := n.client.Add(ctx, conf, want)
	if err != nil {
		return Result{}, err
	}

	result, err := n.read(answer)
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

// read takes the pod's addresses from the plugins' answer. An address that
// names no interface counts as one of the pod's.
func (n *Network) read(answer *types100.Result) (Result, error) {
	var result Result
	for at, ip := range answer.IPs {
		if ip == nil { // a null among the addresses
			return Result{}, fmt.Errorf("read result: address %d is null", at)
		}
		if ip.Interface != nil {
			i := *ip.Interface
			if i < 0 || i >= len(answer.Interfaces) {
				return Result{}, fmt.Errorf("read result: address %s is on interface %d of %d", ip.Address.IP, i, len(answer.Interfaces))
			}
			if on := answer.Interfaces[i]; on == nil || on.Name != n.options.IfName || on.Sandbox == "" {
				continue
			}
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
	if result.Raw, err = json.Marshal(answer); err != nil {
		return Result{}, fmt.Errorf("read result: %w", err)
	}

	return result, nil
}

// Detach disconnects a pod with the configuration that it was attached with.
// It asks every plugin even when one fails, and can be repeated. It does not
// matter whether the namespace still exists, nor whether the pod ever was
// attached.
func (n *Network) Detach(ctx context.Context, a Attachment) error {
	done, err := n.begin()
	if err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	defer done()
	// What was refused by Attach must be detachable all the same.
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
	// Without a configuration that of the ADD has to do.
	conf, err := cni.Load(n.options.ConfDir)
	if err != nil {
		conf = nil
	}
	if err := n.client.Del(ctx, conf, want); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	return nil
}

// Check asks the plugins whether a pod is still attached as they left it.
func (n *Network) Check(ctx context.Context, id string) error {
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

// Sweep detaches every pod whose attachment is remembered and whose id is not
// among the valid ones: what a crash has left.
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

// GC lets the plugins release everything of their network that belongs to
// none of the valid ids. These must include the attachments of every other
// daemon that uses a network of the same name.
func (n *Network) GC(ctx context.Context, valid []string) error {
	done, err := n.begin()
	if err != nil {
		return fmt.Errorf("collect garbage of network: %w", err)
	}
	defer done()
	conf, err := cni.Load(n.options.ConfDir)
	if err != nil {
		return fmt.Errorf("collect garbage of network: %w: %w", ErrNotReady, err)
	}
	if err := n.client.GC(ctx, conf, valid); err != nil {
		return fmt.Errorf("collect garbage of network: %w", err)
	}
	return nil
}

// Status returns nil when pods can be attached, else an error that is
// [ErrNotReady] and says why.
func (n *Network) Status(ctx context.Context) error {
	conf, err := cni.Load(n.options.ConfDir)
	if err == nil {
		err = n.client.Status(ctx, conf)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return nil
}

// Ready is a quick look whether there is a configuration and all its plugins
// are there. An [Network.Attach] without them could not be taken back before
// they are.
func (n *Network) Ready() error {
	conf, err := cni.Load(n.options.ConfDir)
	if err == nil {
		err = n.client.Complete(conf)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return nil
}

// Info describes the network to a person.
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
	info := Info{ConfDir: n.options.ConfDir, BinDirs: n.options.BinDirs, IfName: n.options.IfName}
	conf, err := cni.Load(n.options.ConfDir)
	if err != nil {
		info.Error = err.Error()
		return info
	}
	info.File, info.Network = conf.File, conf.Bytes()
	return info
}

// livePath returns path if a network namespace is there, and "", which is how
// plugins are told that it is gone, if not.
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
