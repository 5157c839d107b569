package link

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netdev"
)

// Reached is a network that the node reaches by an interface.
type Reached struct {
	Network   netip.Prefix
	Interface string
}

// Reaches lists the networks of the node's routes and addresses, without default
// routes.
func (h *Host) Reaches() ([]Reached, error) {
	links, err := netdev.Dump(h.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}

	// Of all tables: a rule may lead to any of them.
	routes, err := netdev.Dump(func() ([]netlink.Route, error) {
		return h.handle.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	addrs, err := netdev.Dump(func() ([]netlink.Addr, error) { return h.handle.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}

	var list []Reached
	add := func(n *net.IPNet, index int) {
		if n == nil {
			return
		}
		addr, ok := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		if !ok || ones == 0 || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsLoopback() {
			return
		}
		list = append(list, Reached{netip.PrefixFrom(addr.Unmap(), ones).Masked(), names[index]})
	}
	for _, r := range routes {
		add(r.Dst, r.LinkIndex)
	}
	for _, a := range addrs {
		add(a.IPNet, a.LinkIndex)
	}
	return list, nil
}

// Collides returns [ErrForeign] if the node reaches a part of a subnet by an interface
// other than the bridge given and those of pods. A route to a larger network is not in
// the way of pods.
func (h *Host) Collides(subnets []netip.Prefix, bridge string) error {
	reached, err := h.Reaches()
	if err != nil {
		return err
	}
	for _, r := range reached {
		if r.Interface == "" || r.Interface == bridge || strings.HasPrefix(r.Interface, hostPrefix) {
			continue
		}
		for _, s := range subnets {
			if s.Overlaps(r.Network) && r.Network.Bits() >= s.Bits() {
				return fmt.Errorf("%w: subnet %s: the node reaches %s by %s; choose another subnet, or remove that", ErrForeign, s, r.Network, r.Interface)
			}
		}
	}
	return nil
}

// HasDefault reports for IPv4 and IPv6 whether the node reaches others.
func (h *Host) HasDefault() (v4, v6 bool) {
	found := func(family int) bool {
		routes, err := netdev.Dump(func() ([]netlink.Route, error) { return h.handle.RouteList(nil, family) })
		return err == nil && slices.ContainsFunc(routes, func(r netlink.Route) bool {
			ones := 0
			if r.Dst != nil {
				ones, _ = r.Dst.Mask.Size()
			}
			return ones == 0 && (r.Gw != nil || len(r.MultiPath) > 0 || r.LinkIndex > 0)
		})
	}
	return found(unix.AF_INET), found(unix.AF_INET6)
}
