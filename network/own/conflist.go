package own

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"crisp/network/own/lease"
	"crisp/network/own/link"
)

// DefaultName is the name of the network that crisp configures itself.
const DefaultName = "crisp"

// Choice is what a configuration of the own network is made of.
type Choice struct {
	// Subnets of the pods, at most one of each family.
	Subnets []netip.Prefix
	// Direct networks are reached without masquerading: the cluster's.
	Direct []netip.Prefix
	// Mode is [ModeRouted] or [ModeBridge]; "" is routed, which needs no bridge and
	// has no limit on the number of pods.
	Mode string
	// DataDir has the leases, "" is host-local's.
	DataDir string
}

// Conflist returns a network configuration. The error says what is wrong with the
// choice.
func Conflist(c Choice) ([]byte, error) {
	if c.Mode == "" {
		c.Mode = ModeRouted
	}
	ranges := []lease.RangeSet{}
	for _, s := range c.Subnets {
		r, err := lease.NewRange(s.String(), netip.Addr{}, netip.Addr{}, netip.Addr{})
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, lease.RangeSet{r})
	}

	addresses := map[string]any{"type": ipamHostLocal, "ranges": ranges}
	if c.DataDir != "" {
		addresses["dataDir"] = c.DataDir
	}
	plugin := map[string]any{
		"type": Type, "mode": c.Mode, "ipMasq": true,
		"capabilities": map[string]bool{"portMappings": true, "bandwidth": true, "ips": true, "mac": true},
		"ipam":         addresses,
	}
	if len(c.Direct) > 0 {
		plugin["nonMasqueradeCIDRs"] = c.Direct
	}
	list := map[string]any{"cniVersion": versions[len(versions)-1], "name": DefaultName, "plugins": []any{plugin}}
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, err
	}

	plugin["name"], plugin["cniVersion"] = list["name"], list["cniVersion"]
	whole, err := json.Marshal(plugin)
	if err == nil {
		err = Validate(whole)
	}
	return append(text, '\n'), err
}

// ChoiceOf returns the subnets and direct networks of a configuration.
func ChoiceOf(config []byte) (Choice, error) {
	c, err := parseLoosely(config)
	if err != nil {
		return Choice{}, err
	}
	return Choice{Subnets: c.subnets(), Direct: c.Direct}, nil
}

// candidates are subnets for pods: parts of private networks that other software
// rarely uses, the larger ones first.
func candidates() []netip.Prefix {
	var list []netip.Prefix
	for second := range byte(38) {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 213 + second}), 16))
	}
	for second := range byte(12) {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 20 + second}), 16))
	}
	for third := range byte(250) {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 5 + third}), 24))
	}
	return list
}

// candidatesV6 are unique local subnets.
func candidatesV6() []netip.Prefix {
	var list []netip.Prefix
	for i := range byte(100) {
		addr := [16]byte{0xfd, 0x63, 0x72, 0x69, 0x73, 0x70, 0, i + 1}
		list = append(list, netip.PrefixFrom(netip.AddrFrom16(addr), 64))
	}
	return list
}

// FreeSubnets returns a subnet for pods that overlaps nothing that the node reaches: of
// IPv4, or of IPv6 if the node reaches others only by that.
func (p *Plugin) FreeSubnets() ([]netip.Prefix, error) {
	host, err := p.links()
	if err != nil {
		return nil, err
	}
	reached, err := host.Reaches()
	if err != nil {
		return nil, err
	}

	list := candidates()
	if v4, v6 := host.HasDefault(); v6 && !v4 {
		list = candidatesV6()
	}
	for _, s := range list {
		if !slices.ContainsFunc(reached, func(r link.Reached) bool { return r.Network.Overlaps(s) }) {
			return []netip.Prefix{s}, nil
		}
	}
	return nil, types.NewError(types.ErrInvalidNetworkConfig,
		fmt.Sprintf("the node has routes to all of the %d subnets that were tried: configure one that is free", len(list)), "")
}
