package own

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"crisp/network/netns"
	"crisp/network/own/lease"
	"crisp/network/own/link"
	"crisp/network/own/rules"
	"crisp/runtime/failpoint"
)

// attachment is an ADD or CHECK: what is asked for, and what was made.
type attachment struct {
	call  Call
	conf  *conf
	pod   *os.File
	ports []rules.Port

	// hardware is the pod's hardware address in an earlier result, nil if it is unknown.
	hardware net.HardwareAddr

	leases  []lease.Lease
	bridge  link.Bridged
	wire    link.Wire
	created link.Connected
}

// owner names the attachment in the packet filter.
func owner(c *conf, id, ifName string) string { return c.Name + "/" + link.Name(id, ifName) }

// label names the attachment for people who look at the interface.
func label(c *conf, id, ifName string) string {
	const longest = 255 // of an alias
	text := labelPrefix(c) + id + "/" + ifName
	return text[:min(len(text), longest)]
}

func labelPrefix(c *conf) string { return Type + " " + c.Name + " " }

func (p *Plugin) add(ctx context.Context, call Call) ([]byte, error) {
	a := &attachment{call: call}
	var err error
	if a.conf, err = read(call); err != nil {
		return nil, err
	}
	if a.conf.hasPrevious() {
		return nil, invalid(fmt.Errorf("%s makes an interface and must be the first plugin of its chain", cmp.Or(call.Type, Type)))
	}
	if a.ports, err = a.conf.ports(); err != nil {
		return nil, err
	}

	a.pod, err = netns.Open(call.NetNS)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, err.Error(), "")
	}
	defer a.pod.Close()
	if err := p.make(ctx, a); err != nil {
		return nil, err
	}
	return a.result()
}

// step is a part of ADD with its inverse.
type step struct {
	name     string
	do, undo func(context.Context, *attachment) error
}

// steps are the parts of ADD, in order.
func (p *Plugin) steps() []step {
	return []step{
		{"lease", p.reserve, p.release},
		{"link", p.connect, p.disconnect},
		{"rules", p.filterIn, p.filterOut},
	}
}

// make runs the steps, and undoes them if one fails.
func (p *Plugin) make(ctx context.Context, a *attachment) error {
	steps := p.steps()
	for i, s := range steps {
		err := context.Cause(ctx)
		if err == nil {
			err = failpoint.Between("network add "+s.name, func() error { return s.do(ctx, a) })
		}
		if err == nil {
			continue
		}

		errs := []error{err}
		for ; i >= 0; i-- {
			undo := func() error { return steps[i].undo(context.WithoutCancel(ctx), a) }
			if e := failpoint.Between("network undo "+steps[i].name, undo); e != nil {
				// What a rule or route may still lead to is not given back.
				return errors.Join(append(errs, fmt.Errorf("undo %s: %w", steps[i].name, e))...)
			}
		}
		return errors.Join(errs...)
	}
	return nil
}

func (p *Plugin) reserve(ctx context.Context, a *attachment) error {
	args, err := parseArgs(a.call.Args)
	if err != nil {
		return err
	}
	want, err := a.conf.requested(args)
	if err != nil {
		return err
	}
	if err := lease.Check(a.conf.IPAM.Ranges); err != nil {
		return invalid(err)
	}
	mac, err := a.conf.mac(args)
	if err != nil {
		return err
	}

	host, err := p.links()
	if err != nil {
		return err
	}
	err = p.withLeases(ctx, a.conf, func(s *lease.Store) error {
		var err error
		a.leases, err = s.Reserve(ctx, lease.Owner{ID: a.call.ID, IfName: a.call.IfName}, a.conf.IPAM.Ranges, want, a.meets(host))
		return err
	})
	if err != nil {
		return err
	}
	return a.describe(mac)
}

// meets says which pods of other networks must not have the pod's address: all if the node
// routes it, as the node has one route to an address, else those on its bridge.
func (a *attachment) meets(host *link.Host) lease.Meets {
	return func(o lease.Owner) bool {
		return a.conf.gateway() || host.IsPort(link.Name(o.ID, o.IfName), a.conf.Bridge)
	}
}

func (p *Plugin) release(ctx context.Context, a *attachment) error {
	if len(a.leases) == 0 {
		return nil
	}
	return p.withLeases(ctx, a.conf, func(s *lease.Store) error {
		return s.Release(ctx, lease.Owner{ID: a.call.ID, IfName: a.call.IfName}, a.addrs())
	})
}

// describe fills in the wire for the leases. mac is nil if none was asked for.
func (a *attachment) describe(mac net.HardwareAddr) error {
	c := a.conf
	w := link.Wire{
		ID: a.call.ID, IfName: a.call.IfName, Label: label(c, a.call.ID, a.call.IfName), MTU: c.MTU, MAC: mac, Chosen: mac != nil,
		Hairpin: c.hairpin(), Isolated: c.Isolate || c.reference != nil && c.reference.isolated, Localnet: len(a.ports) > 0,
	}
	if c.Isolate && c.Mode == ModeRouted {
		w.Group = rules.IsolatedGroup
	}
	for _, l := range a.leases {
		bits := l.Range.Subnet.Bits()
		if c.Mode == ModeRouted {
			bits = l.Addr.BitLen()
		}
		w.Addrs = append(w.Addrs, netip.PrefixFrom(l.Addr, bits))
		w.Gateways = append(w.Gateways, l.Range.Gateway)
	}
	if w.MAC == nil {
		w.MAC = link.HardwareAddr(a.leases[0].Addr)
	}

	var err error
	if w.Routes, err = c.routes(a.leases); err != nil {
		return invalid(err)
	}
	a.wire = w
	return nil
}

func (a *attachment) addrs() []netip.Addr {
	var list []netip.Addr
	for _, l := range a.leases {
		list = append(list, l.Addr)
	}
	return list
}

func (p *Plugin) connect(ctx context.Context, a *attachment) error {
	host, err := p.links()
	if err != nil {
		return err
	}
	var v4, v6 bool
	for _, l := range a.leases {
		v4, v6 = v4 || l.Addr.Is4(), v6 || !l.Addr.Is4()
	}
	if err := p.ensureFree(a, host); err != nil {
		return err
	}
	if a.conf.gateway() {
		if err := host.Forward(v4, v6); err != nil {
			return err
		}
	}

	if a.wire.MTU == 0 {
		a.wire.MTU = host.MTU()
	}
	if a.conf.Mode == ModeBridge {
		if a.bridge, err = host.EnsureBridge(a.bridgeOf()); err != nil {
			return err
		}
		a.wire.Bridge = a.bridge.Index
	}

	if a.created, err = host.Connect(ctx, a.pod, a.wire); err != nil {
		return err
	}
	b := a.conf.Runtime.Bandwidth
	if b == (bandwidth{}) {
		return nil
	}
	_, err = host.Shape(a.created.HostName, link.QueueName(a.call.ID, a.call.IfName), b.ingress(), b.egress())
	return err
}

// bridgeOf is the bridge that the pod needs.
func (a *attachment) bridgeOf() link.Bridge {
	b := link.Bridge{Name: a.conf.Bridge, MTU: a.wire.MTU, Promiscuous: a.conf.Promiscuous}
	if a.conf.Isolate {
		b.Group = rules.IsolatedGroup
	}
	if !a.conf.gateway() {
		return b
	}
	for _, l := range a.leases {
		b.Gateways = append(b.Gateways, netip.PrefixFrom(l.Range.Gateway, l.Range.Subnet.Bits()))
	}
	return b
}

// ensureFree refuses subnets that the node reaches by other interfaces, before the
// first pod of a network is connected.
func (p *Plugin) ensureFree(a *attachment, host *link.Host) error {
	if a.conf.filtered() {
		table, err := p.filter()
		if err != nil {
			return err
		}
		if present, err := table.HasNetwork(a.conf.network()); present || err != nil {
			return err
		}
	}
	bridge := a.conf.Bridge
	if a.conf.Mode == ModeRouted {
		bridge = ""
	}
	return host.Collides(a.conf.subnets(), bridge)
}

func (p *Plugin) disconnect(_ context.Context, a *attachment) error {
	if a.created.HostName == "" {
		return nil // an interface of the name is that of an earlier ADD, or foreign
	}
	host, err := p.links()
	if err != nil {
		return err
	}
	if err := host.Retire(a.call.ID, a.call.IfName, a.addrs()); err != nil {
		return err
	}
	return p.retire(host)
}

func (p *Plugin) filterIn(ctx context.Context, a *attachment) error {
	if !a.conf.filtered() {
		return nil
	}
	table, err := p.filter()
	if err != nil {
		return err
	}
	if err := table.AddNetwork(ctx, a.conf.network()); err != nil {
		return err
	}
	if len(a.ports) == 0 {
		return nil
	}

	host, err := p.links()
	if err != nil {
		return err
	}
	return expose(ctx, host, table, a.published())
}

func (p *Plugin) filterOut(_ context.Context, a *attachment) error {
	if len(a.ports) == 0 {
		return nil
	}
	table, err := p.filter()
	if err != nil {
		return err
	}
	return table.Withdraw(a.published())
}

// published are the host ports of the attachment.
func (a *attachment) published() rules.Pod {
	return rules.Pod{
		Owner: owner(a.conf, a.call.ID, a.call.IfName), Addrs: a.addrs(), Ports: a.ports, Routed: a.conf.Mode == ModeRouted,
	}
}

// result is the answer to ADD, in the version of the configuration.
func (a *attachment) result() ([]byte, error) {
	c := a.conf
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, DNS: c.DNS}
	if c.Mode == ModeBridge {
		r.Interfaces = append(r.Interfaces, &types100.Interface{Name: c.Bridge, Mac: a.bridge.MAC.String()})
	}
	r.Interfaces = append(r.Interfaces,
		&types100.Interface{Name: a.created.HostName, Mac: a.created.HostMAC.String(), Mtu: a.wire.MTU},
		&types100.Interface{Name: a.call.IfName, Mac: a.wire.MAC.String(), Mtu: a.wire.MTU, Sandbox: a.call.NetNS},
	)

	own := len(r.Interfaces) - 1
	for i, addr := range a.wire.Addrs {
		r.IPs = append(r.IPs, &types100.IPConfig{
			Interface: &own, Gateway: a.wire.Gateways[i].AsSlice(),
			Address: net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())},
		})
	}
	if c.reference != nil {
		r.Routes = c.referenceRoutes(a.leases)
		for _, i := range r.Interfaces {
			i.Mtu = 0 // which they do not tell
		}
		return printed(r, c.CNIVersion)
	}
	for _, route := range a.wire.Routes {
		made := &types.Route{Dst: net.IPNet{IP: route.To.Addr().AsSlice(), Mask: net.CIDRMask(route.To.Bits(), route.To.Addr().BitLen())}}
		made.GW = route.Gateway.AsSlice()
		r.Routes = append(r.Routes, made)
	}

	return printed(r, c.CNIVersion)
}
