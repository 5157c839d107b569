package own

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"crisp/network/netdev"
	"crisp/network/netns"
	"crisp/network/own/lease"
	"crisp/network/own/link"
	"crisp/network/own/rules"
)

// portmap answers calls of the plugin portmap. It needs the interface that the plugin
// bridge of this package has made, by which it knows whose a host port is.
func (p *Plugin) portmap(ctx context.Context, call Call) ([]byte, error) {
	switch call.Command {
	case "ADD":
		return p.addPorts(ctx, call)

	case "DEL":
		c, err := readLoosely(call)
		if err != nil {
			return nil, err
		}
		host, err := p.links()
		if err != nil {
			return nil, err
		}
		return nil, p.removePorts(ctx, c, call, host)
	case "CHECK":
		return nil, p.checkPorts(call)
	default:
		return nil, nil // GC is that of the bridge
	}
}

// removePorts is DEL of portmap. Without a result, all host ports are searched.
func (p *Plugin) removePorts(ctx context.Context, c *conf, call Call, host *link.Host) error {
	if known, _ := c.previous(call.IfName); len(known) > 0 {
		return p.withdraw(ctx, c, lease.Owner{ID: call.ID, IfName: call.IfName}, known, host)
	}
	gone := owner(c, call.ID, call.IfName)
	return p.sweep(host, func(other string) bool { return other != gone })
}

// mapped returns the host ports that a call of portmap is about.
func mapped(call Call) (*conf, rules.Pod, error) {
	c, err := read(call)
	if err != nil {
		return nil, rules.Pod{}, err
	}
	if !c.hasPrevious() {
		return nil, rules.Pod{}, invalid(errors.New("portmap must follow another plugin in its chain"))
	}
	ports, err := c.ports()
	if err != nil {
		return nil, rules.Pod{}, err
	}
	addrs, _ := c.previous(call.IfName)
	return c, rules.Pod{Owner: owner(c, call.ID, call.IfName), Addrs: addrs, Ports: ports}, nil
}

// addPorts is ADD of portmap, whose result is the previous one.
func (p *Plugin) addPorts(ctx context.Context, call Call) ([]byte, error) {
	c, pod, err := mapped(call)
	if err != nil {
		return nil, err
	}
	if len(pod.Ports) == 0 {
		return c.Previous, nil
	}
	host, err := p.links()
	if err != nil {
		return nil, err
	}

	if !host.Exists(link.Name(call.ID, call.IfName)) {
		return nil, invalid(errors.New("crisp serves portmap for pods whose bridge it serves, too: add bridge to builtin_plugins, or remove portmap from it"))
	}
	table, err := p.filter()
	if err != nil {
		return nil, err
	}
	return c.Previous, expose(ctx, host, table, pod)
}

func (p *Plugin) checkPorts(call Call) error {
	_, pod, err := mapped(call)
	if err != nil || len(pod.Ports) == 0 {
		return err
	}
	table, err := p.filter()
	if err != nil {
		return err
	}
	published, err := table.Published(pod)
	if err == nil && !published {
		err = fmt.Errorf("%w: the table %s has lost its host ports", link.ErrBroken, rules.TableName)
	}
	return err
}

// loopback answers calls of the plugin loopback.
func (p *Plugin) loopback(call Call) ([]byte, error) {
	if call.Command != "ADD" && call.Command != "CHECK" {
		return nil, nil // the interface goes with the namespace
	}
	c, err := read(call)
	if err != nil {
		return nil, err
	}
	pod, err := openPod(call)
	if err != nil {
		return nil, err
	}
	defer pod.Close()

	result := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: call.NetNS}},
	}
	err = netns.Do(pod, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if call.Command == "CHECK" {
			if lo.Attrs().Flags&net.FlagUp == 0 {
				return fmt.Errorf("%w: lo is down", link.ErrBroken)
			}
			return nil
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		return addLoopback(result, lo)
	})
	if err != nil || call.Command == "CHECK" {
		return nil, err
	}
	if c.hasPrevious() {
		return c.Previous, nil
	}
	return printed(result, c.CNIVersion)
}

// addLoopback adds the addresses of lo to a result.
func addLoopback(result *types100.Result, lo netlink.Link) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := netdev.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(lo, family) })
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if a.IP.IsLoopback() {
				result.IPs = append(result.IPs, &types100.IPConfig{Interface: types100.Int(0), Address: *a.IPNet})
			}
		}
	}
	return nil
}

// printed converts a result to a version.
func printed(result types.Result, version string) ([]byte, error) {
	converted, err := result.GetAsVersion(version)
	if err != nil {
		return nil, fmt.Errorf("convert result to version %s: %w", version, err)
	}
	return json.Marshal(converted)
}

// referenceRoutes are the routes of a result, as the reference plugins write them.
func (c *conf) referenceRoutes(leases []lease.Lease) []*types.Route {
	routes := append([]*types.Route{}, c.IPAM.Routes...)
	if !c.reference.defaultRoute {
		return routes
	}
	for _, l := range leases {
		all := netip.PrefixFrom(unspecified(l.Addr), 0)
		if !hasRoute(routes, all) {
			routes = append(routes, &types.Route{Dst: net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, all.Addr().BitLen())}, GW: l.Range.Gateway.AsSlice()})
		}
	}
	return routes
}

func hasRoute(routes []*types.Route, to netip.Prefix) bool {
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); ok && p == to {
			return true
		}
	}
	return false
}
