package own

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"crisp/network/netns"
	"crisp/network/own/lease"
	"crisp/network/own/link"
	"crisp/network/own/rules"
	"crisp/runtime/failpoint"
)

// del undoes an ADD, however much of it was done, and without needing the pod's
// namespace: rules first, then the interface, then the leases.
func (p *Plugin) del(ctx context.Context, call Call) error {
	c, err := readLoosely(call)
	if err != nil {
		return err
	}
	o := lease.Owner{ID: call.ID, IfName: call.IfName}
	known, err := addresses(c, o)
	if err != nil {
		return err
	}
	host, err := p.links()
	if err != nil {
		return err
	}

	for _, s := range []struct {
		name string
		do   func() error
	}{
		{"rules", func() error { return p.withdraw(ctx, c, o, known, host) }},
		{"link", func() error { return p.unlink(c, call, known, host) }},
		{"lease", func() error {
			return p.withLeases(ctx, c, func(s *lease.Store) error { return s.Release(ctx, o, known) })
		}},
	} {
		if err := failpoint.Between("network del "+s.name, s.do); err != nil {
			return err
		}
	}
	return nil
}

// addresses are those of the result of an ADD, and those that are leased if there are others
// or fewer in the result: a plugin later in the chain may have changed it. Without a result
// there are none, which is to search for them where they are needed.
func addresses(c *conf, o lease.Owner) ([]netip.Addr, error) {
	known, _ := c.previous(o.IfName)
	if len(known) == 0 {
		return nil, nil
	}
	leases := lease.Look(c.IPAM.DataDir, c.Name)
	own, err := leases.Of(o, known)
	if err != nil || len(own) == len(known) && len(known) >= len(c.IPAM.Ranges) {
		return known, err
	}

	all, err := leases.Of(o, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return known, nil // nor is there a lease
	}
	for _, addr := range known {
		if !slices.Contains(all, addr) {
			all = append(all, addr)
		}
	}
	return all, err
}

// unlink removes the interface of an attachment: the one that ADD made, or, where the
// reference plugins' configuration is served, the one that their program made. Nothing
// but its lease says that the pod's interface is that one.
func (p *Plugin) unlink(c *conf, call Call, known []netip.Addr, host *link.Host) error {
	name := link.Name(call.ID, call.IfName)
	if c.reference == nil || host.Exists(name) {
		return p.remove(host, name, known)
	}

	leased, err := lease.Look(c.IPAM.DataDir, c.Name).Of(lease.Owner{ID: call.ID, IfName: call.IfName}, known)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(leased) == 0 {
		return p.remove(host, name, known)
	}
	if err != nil {
		return err
	}
	theirs, err := peerOf(call, host)
	return errors.Join(err, p.remove(host, cmp.Or(theirs, name), known))
}

// peerOf returns the name of the node's end of the pod's interface, "" if there is none, or
// no namespace any more.
func peerOf(call Call, host *link.Host) (string, error) {
	pod, err := netns.Open(call.NetNS)
	if err != nil {
		return "", nil // with which its interface has gone
	}
	defer pod.Close()
	return host.Peer(pod, call.IfName)
}

// remove removes an interface, soon: see [link.Host.Retire].
func (p *Plugin) remove(host *link.Host, name string, addrs []netip.Addr) error {
	if err := host.RetireName(name, addrs); err != nil {
		return err
	}
	return p.retire(host)
}

// withdraw removes the host ports of an attachment.
func (p *Plugin) withdraw(ctx context.Context, c *conf, o lease.Owner, known []netip.Addr, host *link.Host) error {
	ports, err := c.ports()
	if err != nil || len(ports) == 0 {
		return nil // a mapping that ADD refused was never made
	}
	if len(known) == 0 {
		err := p.withLeases(ctx, c, func(s *lease.Store) error {
			var err error
			known, err = s.Of(o, nil)
			return err
		})
		if err != nil {
			return err
		}
	}

	table, err := p.filter()
	if errors.Is(err, rules.ErrUnsupported) {
		return nil // nor could there be rules
	}
	if err != nil {
		return err
	}
	pod := rules.Pod{Owner: owner(c, o.ID, o.IfName), Addrs: known, Ports: ports, Routed: c.Mode == ModeRouted}
	if err := table.Withdraw(pod); err != nil {
		return err
	}
	return forgetUDP(host, ports)
}

// check compares an attachment with what ADD made.
func (p *Plugin) check(call Call) error {
	a, err := p.recorded(call)
	if err != nil {
		return err
	}
	if a.pod, err = openPod(call); err != nil {
		return err
	}
	defer a.pod.Close()

	if err := checkLeases(a); err != nil {
		return err
	}
	if err := a.describe(a.hardware); err != nil {
		return err
	}
	if err := p.checkLinks(a); err != nil {
		return err
	}
	return p.checkRules(a)
}

// recorded returns the attachment that a call of CHECK is about, with the addresses of
// its result.
func (p *Plugin) recorded(call Call) (*attachment, error) {
	a := &attachment{call: call}
	var err error
	if a.conf, err = read(call); err != nil {
		return nil, err
	}
	if a.ports, err = a.conf.ports(); err != nil {
		return nil, err
	}
	addrs, mac := a.conf.previous(call.IfName)
	if len(addrs) == 0 {
		return nil, invalid(errors.New("CHECK needs a prevResult with addresses"))
	}
	a.hardware, _ = net.ParseMAC(mac) // nil is that of the address

	for _, addr := range addrs {
		if r, ok := rangeOf(a.conf.IPAM.Ranges, addr); ok {
			a.leases = append(a.leases, lease.Lease{Addr: addr, Range: r})
		}
	}
	if len(a.leases) != len(addrs) {
		return nil, fmt.Errorf("%w: the network has no range for %s", link.ErrBroken, addrs)
	}
	return a, nil
}

// rangeOf returns the first range in whose subnet an address is: a set may have
// several of one subnet.
func rangeOf(sets []lease.RangeSet, addr netip.Addr) (lease.Range, bool) {
	for _, r := range slices.Concat(sets...) {
		if r.Subnet.Contains(addr) {
			return r, true
		}
	}
	return lease.Range{}, false
}

// openPod opens the namespace of a call.
func openPod(call Call) (*os.File, error) {
	pod, err := netns.Open(call.NetNS)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, err.Error(), "")
	}
	return pod, nil
}

// checkLeases looks for the leases of an attachment.
func checkLeases(a *attachment) error {
	own, err := lease.Look(a.conf.IPAM.DataDir, a.conf.Name).Of(lease.Owner{ID: a.call.ID, IfName: a.call.IfName}, a.addrs())
	if err != nil {
		return err
	}
	for _, addr := range a.addrs() {
		if !slices.Contains(own, addr) {
			return fmt.Errorf("%w: the address %s is not leased to it", link.ErrBroken, addr)
		}
	}
	return nil
}

func (p *Plugin) checkLinks(a *attachment) error {
	host, err := p.links()
	if err != nil {
		return err
	}
	if a.conf.Mode == ModeBridge {
		if err := host.CheckBridge(a.bridgeOf()); err != nil {
			return err
		}
		if a.wire.Bridge, err = host.Index(a.conf.Bridge); err != nil {
			return err
		}
	}
	if err := host.Check(a.pod, a.wire); err != nil {
		return err
	}
	limits := a.conf.Runtime.Bandwidth
	return host.CheckShape(link.Name(a.call.ID, a.call.IfName), link.QueueName(a.call.ID, a.call.IfName), limits.ingress(), limits.egress())
}

func (p *Plugin) checkRules(a *attachment) error {
	if !a.conf.filtered() {
		return nil
	}
	table, err := p.filter()
	if err != nil {
		return err
	}
	present, err := table.HasNetwork(a.conf.network())
	if err != nil {
		return err
	}
	if !present {
		return fmt.Errorf("%w: the table %s has lost the network's rules", link.ErrBroken, rules.TableName)
	}

	published, err := table.Published(a.published())
	if err != nil {
		return err
	}
	if !published {
		return fmt.Errorf("%w: the table %s has lost its host ports", link.ErrBroken, rules.TableName)
	}
	return nil
}

// status reports whether ADD could work.
func (p *Plugin) status(call Call) error {
	c, err := read(call)
	if err != nil {
		return err
	}
	host, err := p.links()
	if err != nil {
		return err
	}

	if c.filtered() || c.Capabilities["portMappings"] {
		table, err := p.filter()
		if err != nil {
			return err
		}
		if _, err := table.HasNetwork(c.network()); err != nil {
			return err
		}
	}
	return p.ensureFree(&attachment{conf: c}, host)
}

// gc removes what belongs to no valid attachment of the network, in DEL's order.
func (p *Plugin) gc(ctx context.Context, call Call) error {
	c, err := readLoosely(call)
	if err != nil {
		return err
	}
	host, err := p.links()
	if err != nil {
		return err
	}

	attached := slices.Concat(c.Valid, c.ValidToo)
	owners, names := map[lease.Owner]bool{}, map[string]bool{}
	for _, v := range attached {
		owners[lease.Owner{ID: v.ContainerID, IfName: v.IfName}] = true
		names[link.Name(v.ContainerID, v.IfName)] = true
	}

	if err := failpoint.Between("network collect rules", func() error { return p.sweepRules(c, host, names) }); err != nil {
		return err
	}
	if err := failpoint.Between("network collect links", func() error { return p.sweepLinks(c, host, names) }); err != nil {
		return err
	}
	return failpoint.Between("network collect leases", func() error {
		return p.withLeases(ctx, c, func(s *lease.Store) error {
			// Old releases of host-local wrote no interface.
			valid := func(o lease.Owner) bool {
				return owners[o] || o.IfName == "" && slices.ContainsFunc(attached, func(v types.GCAttachment) bool { return v.ContainerID == o.ID })
			}
			return s.Collect(ctx, valid, func(o lease.Owner, _ netip.Addr) error { return host.Retire(o.ID, o.IfName, nil) })
		})
	})
}

// sweepLinks removes the interfaces of a network's attachments that are not valid.
func (p *Plugin) sweepLinks(c *conf, host *link.Host, valid map[string]bool) error {
	labels, err := host.Owned()
	if err != nil {
		return err
	}
	for name, label := range labels {
		if strings.HasPrefix(label, labelPrefix(c)) && !valid[name] {
			if err := host.RetireName(name, nil); err != nil {
				return err
			}
		}
	}
	return p.retire(host)
}

// sweepRules removes the host ports of a network's attachments that are not valid.
func (p *Plugin) sweepRules(c *conf, host *link.Host, valid map[string]bool) error {
	return p.sweep(host, func(owner string) bool {
		network, _, _ := strings.Cut(owner, "/")
		return network != c.Name || valid[interfaceOf(owner)]
	})
}
