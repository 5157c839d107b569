package link

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netdev"
	"crisp/network/netns"
)

// Check returns [ErrBroken] unless an attachment is as [Host.Connect] made it.
func (h *Host) Check(pod *os.File, w Wire) error {
	if err := h.CheckNode(w); err != nil {
		return err
	}
	return h.CheckPod(pod, w)
}

// CheckNode is the part of [Host.Check] that [Host.Mend] repairs, if the interface
// exists.
func (h *Host) CheckNode(w Wire) error {
	name := Name(w.ID, w.IfName)
	host, err := h.handle.LinkByName(name)
	if isNotFound(err) {
		return fmt.Errorf("%w: the node has no interface %s", ErrBroken, name)
	}
	if err != nil {
		return fmt.Errorf("look for interface %s: %w", name, err)
	}

	switch a := host.Attrs(); {
	case a.Group == dyingGroup || a.MasterIndex != w.Bridge:
		return fmt.Errorf("%w: interface %s is detached", ErrBroken, name)
	case a.Flags&net.FlagUp == 0:
		return fmt.Errorf("%w: interface %s is down", ErrBroken, name)
	case w.Bridge != 0:
		return nil
	}
	return h.checkRoutes(host, w)
}

// checkRoutes asks where the node would send packets to a routed pod: to list its routes
// would take the longer the more pods there are.
func (h *Host) checkRoutes(host netlink.Link, w Wire) error {
	for _, addr := range w.Addrs {
		routes, err := h.handle.RouteGet(addr.Addr().AsSlice())
		if err != nil || len(routes) == 0 || routes[0].LinkIndex != host.Attrs().Index {
			return fmt.Errorf("%w: the node has lost the route to %s by %s", ErrBroken, addr.Addr(), host.Attrs().Name)
		}
	}
	return nil
}

// Mend repairs the node's side of an attachment whose interface exists: its bridge, its
// state, and the routes to the pod. The error is [ErrBroken] if there is none.
func (h *Host) Mend(w Wire) error {
	host, err := h.handle.LinkByName(Name(w.ID, w.IfName))
	if isNotFound(err) || err == nil && host.Attrs().Group == dyingGroup {
		return fmt.Errorf("%w: the node has no interface %s", ErrBroken, Name(w.ID, w.IfName))
	}
	if err != nil {
		return fmt.Errorf("look for interface %s: %w", Name(w.ID, w.IfName), err)
	}

	if w.Bridge != 0 && host.Attrs().MasterIndex != w.Bridge {
		if err := h.handle.LinkSetMasterByIndex(host, w.Bridge); err != nil {
			return fmt.Errorf("attach interface %s to its bridge: %w", host.Attrs().Name, err)
		}
	}
	if err := h.setUpHost(host, w); err != nil {
		return fmt.Errorf("set up interface %s: %w", host.Attrs().Name, err)
	}
	return h.routeTo(host, w)
}

// CheckPod compares the pod's addresses, also that of hardware if it was chosen, and
// routes with those that it should have.
func (h *Host) CheckPod(pod *os.File, w Wire) error {
	handle, err := open(pod)
	if err != nil {
		return fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer handle.Close()
	l, err := handle.LinkByName(w.IfName)
	if isNotFound(err) {
		return fmt.Errorf("%w: the pod has no interface %s", ErrBroken, w.IfName)
	}
	if err != nil {
		return fmt.Errorf("look for interface %s in the pod: %w", w.IfName, err)
	}

	if own := l.Attrs().HardwareAddr; w.Chosen && !bytes.Equal(own, w.MAC) {
		return fmt.Errorf("%w: %s has the hardware address %s instead of %s", ErrBroken, w.IfName, own, w.MAC)
	}
	if err := checkAddrs(handle, l, w); err != nil {
		return err
	}
	return checkPodRoutes(handle, l, w)
}

func checkAddrs(handle *netlink.Handle, l netlink.Link, w Wire) error {
	addrs, err := netdev.Dump(func() ([]netlink.Addr, error) { return handle.AddrList(l, unix.AF_UNSPEC) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", w.IfName, err)
	}
	if lost := missing(addrs, w.Addrs); lost.IsValid() {
		return fmt.Errorf("%w: %s has lost the address %s", ErrBroken, w.IfName, lost)
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("%w: %s is down", ErrBroken, w.IfName)
	}
	return nil
}

// missing returns the first address wanted that an interface does not have, the zero one
// if it has all.
func missing(addrs []netlink.Addr, wanted []netip.Prefix) netip.Prefix {
	for _, want := range wanted {
		net := ipNet(want)
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == net.String() }) {
			return want
		}
	}
	return netip.Prefix{}
}

func checkPodRoutes(handle *netlink.Handle, l netlink.Link, w Wire) error {
	routes, err := netdev.Dump(func() ([]netlink.Route, error) { return handle.RouteList(l, unix.AF_UNSPEC) })
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", w.IfName, err)
	}
	for _, want := range w.Routes {
		net := ipNet(want.To)
		ok := slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return r.Dst != nil && r.Dst.String() == net.String() && (!want.Gateway.IsValid() || r.Gw.Equal(want.Gateway.AsSlice()))
		})
		if !ok && want.Table == 0 {
			return fmt.Errorf("%w: %s has lost the route to %s", ErrBroken, w.IfName, want.To)
		}
	}
	return nil
}

// CheckForwards returns [ErrBroken] unless the node forwards packets of the families.
func (h *Host) CheckForwards(v4, v6 bool) error {
	for _, s := range []struct {
		wanted, v4 bool
		name, full string
	}{{v4, true, "ip_forward", "net.ipv4.ip_forward"}, {v6, false, "conf/all/forwarding", "net.ipv6.conf.all.forwarding"}} {
		if !s.wanted {
			continue
		}
		got, err := h.sysctls.get(s.v4, s.name)
		if err != nil {
			return err
		}
		if got == "0" {
			return fmt.Errorf("%w: %s is 0, so the node forwards no packets", ErrBroken, s.full)
		}
	}
	return nil
}

// Filtered reports whether packets between the ports of a bridge pass the packet
// filter of the node (br_netfilter).
func (h *Host) Filtered(v4 bool) bool {
	name := "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
	if v4 {
		name = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	}
	text, err := h.readInside(name)
	return err == nil && text == "1"
}

// OldTables lists the tables of iptables before nftables, which are in use in the
// namespace.
func (h *Host) OldTables() []string {
	var all []string
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		// It exists once the old modules are loaded.
		if text, err := h.readInside("/proc/thread-self/net/" + file); err == nil {
			all = append(all, strings.Fields(text)...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// readInside reads a file of the kernel, inside the namespace.
func (h *Host) readInside(path string) (text string, err error) {
	err = netns.Do(h.ns, func() error {
		data, err := os.ReadFile(path)
		text = strings.TrimSpace(string(data))
		return err
	})
	return text, err
}
