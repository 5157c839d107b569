package own

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"crisp/network/own/lease"
	"crisp/network/own/link"
	"crisp/network/own/rules"
)

const (
	// ModeBridge connects the pods of a network by a bridge, ModeRouted each by a
	// route of the node.
	ModeBridge = "bridge"
	ModeRouted = "routed"

	// DefaultBridge is the bridge's name if a configuration has none.
	DefaultBridge = "crisp0"

	ipamHostLocal = "host-local"

	// maxName bounds a network's name: it is part of labels and comments.
	maxName = 100
)

// capabilities are those that a configuration may declare.
var capabilities = []string{"bandwidth", "ipRanges", "ips", "mac", "portMappings"}

// versions of the CNI specification.
var versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// shared are the fields that every plugin's configuration may have, with what libcni and
// the runtime add to it.
type shared struct {
	CNIVersion   string          `json:"cniVersion"`
	Name         string          `json:"name"`
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	DNS          types.DNS       `json:"dns"`
	Args         confArgs        `json:"args"`
	Previous     json.RawMessage `json:"prevResult"`
	Runtime      runtimeConf     `json:"runtimeConfig"`

	// The specification and libcni differ in the name.
	Valid    []types.GCAttachment `json:"cni.dev/valid-attachments"`
	ValidToo []types.GCAttachment `json:"cni.dev/attachments"`
}

// conf is a configuration.
type conf struct {
	shared

	Mode        string         `json:"mode"`
	Bridge      string         `json:"bridge"`
	MTU         int            `json:"mtu"`
	Masquerade  bool           `json:"ipMasq"`
	Direct      []netip.Prefix `json:"nonMasqueradeCIDRs"`
	Hairpin     *bool          `json:"hairpinMode"`
	Promiscuous bool           `json:"promiscMode"`
	Isolate     bool           `json:"isolatePods"`
	IPAM        ipam           `json:"ipam"`

	// reference is nil unless it is a configuration of the reference plugins.
	reference *reference
}

// ipam is the address management, with host-local's fields.
type ipam struct {
	Type    string           `json:"type"`
	Ranges  []lease.RangeSet `json:"ranges"`
	Routes  []*types.Route   `json:"routes"`
	DataDir string           `json:"dataDir"`

	// A single range, as in old configurations.
	Subnet  string     `json:"subnet"`
	Start   netip.Addr `json:"rangeStart"`
	End     netip.Addr `json:"rangeEnd"`
	Gateway netip.Addr `json:"gateway"`
}

// confArgs are arguments in the configuration, by CNI's conventions.
type confArgs struct {
	CNI struct {
		IPs []string `json:"ips"`
		MAC string   `json:"mac"`
	} `json:"cni"`
}

// runtimeConf are the arguments of capabilities.
type runtimeConf struct {
	PortMappings []portMapping    `json:"portMappings"`
	Bandwidth    bandwidth        `json:"bandwidth"`
	IPRanges     []lease.RangeSet `json:"ipRanges"`
	IPs          []string         `json:"ips"`
	MAC          string           `json:"mac"`
}

type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// bandwidth has limits in bits per second, and bits.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// parse reads a configuration and refuses what it does not know.
func parse(data []byte) (*conf, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	c := &conf{}
	if err := d.Decode(c); err != nil {
		return nil, undecoded(err, "a field that is unknown is refused, since ignoring it would mean another network than was configured")
	}
	if err := c.check(); err != nil {
		return nil, invalid(err)
	}
	return c, nil
}

// parseLoosely reads the configuration of something that is to be removed, which may
// be of another release.
func parseLoosely(data []byte) (*conf, error) {
	c := &conf{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, invalid(err)
	}
	c.normalize()
	return c, nil
}

// undecoded is the error of a configuration that is not read. The hint is for those with
// an unknown field.
func undecoded(err error, hint string) error {
	if strings.Contains(err.Error(), "unknown field") {
		err = fmt.Errorf("%w (%s)", err, hint)
	}
	return invalid(err)
}

func invalid(err error) error {
	return types.NewError(types.ErrInvalidNetworkConfig, "invalid configuration", err.Error())
}

// normalize fills in defaults.
func (c *conf) normalize() {
	if c.Mode == "" {
		c.Mode = ModeBridge
	}
	if c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	if c.IPAM.Subnet != "" {
		if r, err := lease.NewRange(c.IPAM.Subnet, c.IPAM.Start, c.IPAM.End, c.IPAM.Gateway); err == nil {
			c.IPAM.Ranges = append([]lease.RangeSet{{r}}, c.IPAM.Ranges...)
		}
	}
	c.IPAM.Ranges = append(slices.Clone(c.Runtime.IPRanges), c.IPAM.Ranges...)
}

// check fills in defaults and validates all values.
func (c *conf) check() error {
	if c.IPAM.Subnet != "" {
		if _, err := lease.NewRange(c.IPAM.Subnet, c.IPAM.Start, c.IPAM.End, c.IPAM.Gateway); err != nil {
			return fmt.Errorf("ipam: %w", err)
		}
	} else if c.IPAM.Start.IsValid() || c.IPAM.End.IsValid() || c.IPAM.Gateway.IsValid() {
		return errors.New("ipam: rangeStart, rangeEnd and gateway need a subnet")
	}
	c.normalize()

	if err := c.checkShared(); err != nil {
		return err
	}
	switch {
	case c.Mode != ModeBridge && c.Mode != ModeRouted:
		return fmt.Errorf("mode %q is neither %q nor %q", c.Mode, ModeBridge, ModeRouted)
	case len(c.Bridge) >= unix.IFNAMSIZ || strings.ContainsAny(c.Bridge, "/ :%\t\n") || c.Bridge == "." || c.Bridge == "..":
		return fmt.Errorf("bridge %q is not a name that an interface can have", c.Bridge)
	case c.Mode == ModeRouted && c.Promiscuous:
		return errors.New("promiscMode is for a bridge, and mode is \"routed\"")
	case c.MTU != 0 && (c.MTU < c.leastMTU() || c.MTU > 65535):
		return fmt.Errorf("mtu %d is neither 0 (that of the default route) nor between %d and 65535", c.MTU, c.leastMTU())
	case c.IPAM.Type != ipamHostLocal:
		return fmt.Errorf("ipam: type %q is not %q, the only one that is served", c.IPAM.Type, ipamHostLocal)
	}

	// A template may leave the ranges to the runtime.
	if len(c.IPAM.Ranges) > 0 || !c.Capabilities["ipRanges"] {
		if err := lease.Check(c.IPAM.Ranges); err != nil {
			return fmt.Errorf("ipam: %w", err)
		}
	}
	_, err := c.routes(nil)
	return err
}

// checkShared validates the fields that all configurations have.
func (s *shared) checkShared() error {
	if len(s.Name) > maxName {
		return fmt.Errorf("name is longer than %d bytes", maxName)
	}
	if !slices.Contains(versions, s.CNIVersion) {
		return fmt.Errorf("cniVersion %q is not one of %q", s.CNIVersion, versions)
	}
	for name, on := range s.Capabilities {
		if on && !slices.Contains(capabilities, name) {
			return fmt.Errorf("capability %q is not one of %q", name, capabilities)
		}
	}
	return nil
}

// hasPrevious reports whether there is a result of an earlier plugin.
func (s *shared) hasPrevious() bool { return len(s.Previous) > 0 && string(s.Previous) != "null" }

// hairpin reports whether pods on a bridge may reach themselves by the node.
func (c *conf) hairpin() bool { return c.Hairpin == nil || *c.Hairpin }

// gateway reports whether the node is the gateway of the pods.
func (c *conf) gateway() bool { return c.reference == nil || c.reference.gateway }

// subnets lists the subnets of all ranges, each once.
func (c *conf) subnets() []netip.Prefix {
	var list []netip.Prefix
	for _, set := range c.IPAM.Ranges {
		for _, r := range set {
			if !slices.Contains(list, r.Subnet) {
				list = append(list, r.Subnet)
			}
		}
	}
	return list
}

// leastMTU is the smallest with which the kernel has the addresses of the ranges.
func (c *conf) leastMTU() int {
	const least4, least6 = 68, 1280
	if slices.ContainsFunc(c.subnets(), func(s netip.Prefix) bool { return s.Addr().Is6() }) {
		return least6
	}
	return least4
}

// network is what the packet filter has to know.
func (c *conf) network() rules.Network {
	return rules.Network{Name: c.Name, Subnets: c.subnets(), Masquerade: c.Masquerade, Direct: c.Direct, Bridged: c.Mode == ModeBridge}
}

// filtered reports whether the packet filter is needed for a pod.
func (c *conf) filtered() bool {
	return c.reference != nil || c.Masquerade || c.Isolate || len(c.Runtime.PortMappings) > 0
}

// ports converts the host ports.
func (c *conf) ports() ([]rules.Port, error) {
	protocols := map[string]uint8{"": unix.IPPROTO_TCP, "tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}
	var list []rules.Port
	for _, m := range c.Runtime.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		protocol, ok := protocols[strings.ToLower(m.Protocol)]
		if !ok || !isPort(m.HostPort) || !isPort(m.ContainerPort) {
			return nil, invalid(fmt.Errorf("port mapping %d to %d/%s", m.HostPort, m.ContainerPort, m.Protocol))
		}

		p := rules.Port{Protocol: protocol, HostPort: uint16(m.HostPort), PodPort: uint16(m.ContainerPort)}
		if m.HostIP != "" {
			addr, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return nil, invalid(fmt.Errorf("port mapping: %w", err))
			}
			p.HostAddr = addr.WithZone("").Unmap()
		}
		list = append(list, p)
	}
	return list, nil
}

func isPort(n int) bool { return 1 <= n && n <= 65535 }

// requested are the addresses that the caller asks for, by any of CNI's ways.
func (c *conf) requested(args callArgs) ([]netip.Addr, error) {
	texts := slices.Concat(c.Runtime.IPs, c.Args.CNI.IPs)
	if args.IP != "" {
		texts = append(texts, strings.Split(string(args.IP), ",")...)
	}

	var list []netip.Addr
	for _, text := range texts {
		host, _, _ := strings.Cut(text, "/")
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return nil, invalid(fmt.Errorf("requested address: %w", err))
		}
		if addr = addr.Unmap(); !slices.Contains(list, addr) {
			list = append(list, addr)
		}
	}
	return list, nil
}

// mac returns the hardware address that the caller asks for, nil for none.
func (c *conf) mac(args callArgs) (net.HardwareAddr, error) {
	for _, text := range []string{c.Runtime.MAC, c.Args.CNI.MAC, string(args.MAC)} {
		if text == "" {
			continue
		}
		mac, err := net.ParseMAC(text)
		if err == nil && (len(mac) != 6 || mac[0]&1 != 0) {
			err = errors.New("it is not the address of one Ethernet interface")
		}
		if err != nil {
			return nil, invalid(fmt.Errorf("requested hardware address %q: %w", text, err))
		}
		return mac, nil
	}
	return nil, nil
}

// routes returns the routes of a pod with some addresses: those that are configured,
// or else a default route for each family. Without a gateway, one leads to that of
// the address.
func (c *conf) routes(leases []lease.Lease) ([]link.Route, error) {
	var list []link.Route
	if c.IPAM.Routes == nil {
		for _, l := range leases {
			if all := netip.PrefixFrom(unspecified(l.Addr), 0); !slices.ContainsFunc(list, func(r link.Route) bool { return r.To == all }) {
				list = append(list, link.Route{To: all, Gateway: l.Range.Gateway})
			}
		}
		return list, nil
	}

	configured := c.IPAM.Routes
	if c.reference != nil {
		configured = c.referenceRoutes(leases)
	}
	for _, r := range configured {
		if r == nil {
			return nil, errors.New("ipam: a route is null")
		}
		to, ok := prefixOf(r.Dst)
		if !ok {
			return nil, fmt.Errorf("ipam: route to %q", r.Dst.String())
		}
		made := link.Route{To: to, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
		if r.Table != nil {
			made.Table = *r.Table
		}
		if r.Scope != nil {
			made.Scope = *r.Scope
		}
		if gateway, ok := netip.AddrFromSlice(r.GW); ok {
			made.Gateway = gateway.Unmap()
		} else if i := slices.IndexFunc(leases, func(l lease.Lease) bool { return l.Addr.Is4() == to.Addr().Is4() }); i >= 0 {
			made.Gateway = leases[i].Range.Gateway
		}
		if made.Gateway.IsValid() && made.Gateway.Is4() != to.Addr().Is4() {
			return nil, fmt.Errorf("ipam: route to %s by %s, of another family", to, made.Gateway)
		}
		// A route of a family of which the pod has no address would be refused.
		if leases == nil || made.Gateway.IsValid() {
			list = append(list, made)
		}
	}
	return list, nil
}

func unspecified(addr netip.Addr) netip.Addr {
	if addr.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// prefixOf converts a network.
func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap()
	if addr.BitLen() != bits {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, ones).Masked(), true
}

// previous returns the addresses and the pod's hardware address of an earlier result,
// whose fields are the same in all versions that are served.
func (c *conf) previous(ifName string) (addrs []netip.Addr, mac string) {
	var result struct {
		Interfaces []struct {
			Name, Mac, Sandbox string
		} `json:"interfaces"`
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	// What is torn is found by other means.
	if len(c.Previous) == 0 || json.Unmarshal(c.Previous, &result) != nil {
		return nil, ""
	}

	for _, ip := range result.IPs {
		if p, err := netip.ParsePrefix(ip.Address); err == nil {
			addrs = append(addrs, p.Addr())
		}
	}
	for _, i := range result.Interfaces {
		if i.Name == ifName && i.Sandbox != "" {
			mac = i.Mac
		}
	}
	return addrs, mac
}

// callArgs are the arguments in CNI_ARGS.
type callArgs struct {
	types.CommonArgs
	IP  types.UnmarshallableString
	MAC types.UnmarshallableString

	K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_INFRA_CONTAINER_ID, K8S_POD_UID types.UnmarshallableString
}

func parseArgs(text string) (callArgs, error) {
	var a callArgs
	if err := types.LoadArgs(text, &a); err != nil {
		return callArgs{}, types.NewError(types.ErrInvalidEnvironmentVariables, "invalid CNI_ARGS", err.Error())
	}
	return a, nil
}

// Versions is the answer to VERSION.
func Versions() version.PluginInfo { return version.PluginSupports(versions...) }
