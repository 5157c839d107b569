package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netns"
)

// Wire describes a pod's connection.
type Wire struct {
	ID, IfName string
	// Label is set as the alias of the host's interface.
	Label string
	MTU   int
	// MAC is the pod's hardware address. Chosen says that it is not derived from an
	// IP address, so that the pod has to announce it.
	MAC    net.HardwareAddr
	Chosen bool
	// Addrs are the pod's addresses with the length of their networks, and Gateways
	// the node's in those networks, in the same order.
	Addrs    []netip.Prefix
	Gateways []netip.Addr
	Routes   []Route
	// Bridge is the index of a bridge, 0 for a routed pod.
	Bridge int
	// Hairpin lets a pod on a bridge reach itself by an address of the node.
	Hairpin bool
	// Isolated keeps bridged pods from each other.
	Isolated bool
	// Group is given to the host's interface, 0 for none.
	Group uint32
	// Localnet lets the node reach a routed pod's host ports by 127.0.0.1.
	Localnet bool
}

// Route is a route in a pod.
type Route struct {
	To                                  netip.Prefix
	Gateway                             netip.Addr
	MTU, AdvMSS, Priority, Table, Scope int
}

// Connected is what was made.
type Connected struct {
	HostName string
	HostMAC  net.HardwareAddr
}

// Connect makes a pair of interfaces between the node and a namespace. If it fails,
// what it made is left for [Host.Retire]; without a HostName it made nothing, and
// interfaces of these names are another's.
func (h *Host) Connect(ctx context.Context, pod *os.File, w Wire) (Connected, error) {
	name := Name(w.ID, w.IfName)
	made := Connected{HostName: name}
	if taken, err := h.addPair(ctx, pod, name, w); taken {
		return Connected{}, fmt.Errorf("make interfaces %s and %s: %w", name, w.IfName, err)
	} else if err != nil {
		return made, fmt.Errorf("make interfaces %s and %s: %w", name, w.IfName, err)
	}

	host, err := h.handle.LinkByName(name)
	if err != nil {
		return made, fmt.Errorf("look for interface %s: %w", name, err)
	}
	if err := h.setUpHost(host, w); err != nil {
		return made, fmt.Errorf("set up interface %s: %w", name, err)
	}
	if err := setUpPod(pod, w); err != nil {
		return made, fmt.Errorf("set up interface %s in the pod: %w", w.IfName, err)
	}
	if err := h.routeTo(host, w); err != nil {
		return made, err
	}
	made.HostMAC = host.Attrs().HardwareAddr
	return made, nil
}

// addPair creates both ends. One that is in the way may be about to be deleted; if it is
// not, taken is true. Other failures may leave the pair, for example without its bridge.
func (h *Host) addPair(ctx context.Context, pod *os.File, name string, w Wire) (taken bool, err error) {
	attrs := netlink.LinkAttrs{Name: name, MTU: w.MTU, Group: w.Group, TxQLen: -1, MasterIndex: w.Bridge}
	// A queue that somebody adds in the pod takes its length from the interface's.
	const usual = -1
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: w.IfName, PeerHardwareAddr: w.MAC, PeerTxQLen: usual, PeerNamespace: netlink.NsFd(pod.Fd()),
	}
	err = h.handle.LinkAdd(pair)
	if errors.Is(err, unix.EEXIST) {
		if err := h.Reap(); err != nil {
			return true, err
		}
		if err := context.Cause(ctx); err != nil {
			return true, err
		}
		err = h.handle.LinkAdd(pair)
	}

	if errors.Is(err, unix.EEXIST) {
		return true, fmt.Errorf("%w: one of the names exists already, on the node or in the pod: %w", ErrForeign, err)
	}
	if errors.Is(err, unix.EXFULL) {
		return false, fmt.Errorf("the bridge has as many ports as it can (1023): use mode \"routed\": %w", err)
	}
	return false, unsupported(err, "veth")
}

// setUpHost configures the host's end.
func (h *Host) setUpHost(host netlink.Link, w Wire) error {
	if err := h.handle.LinkSetAlias(host, w.Label); err != nil {
		return fmt.Errorf("label: %w", err)
	}

	if w.Bridge != 0 {
		// A port needs no address of its own.
		const none = 1 // IN6_ADDR_GEN_MODE_NONE
		if err := h.handle.LinkSetIP6AddrGenMode(host, none); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("disable link-local address: %w", err)
		}
		if w.Hairpin {
			if err := h.handle.LinkSetHairpin(host, true); err != nil {
				return fmt.Errorf("set hairpin mode: %w", err)
			}
		}
		if w.Isolated {
			if err := h.handle.LinkSetIsolated(host, true); err != nil {
				return fmt.Errorf("isolate port: %w", err)
			}
		}
	}

	if err := h.handle.LinkSetUp(host); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// routeTo makes the node reach a routed pod: the gateway's address on the host's
// end, and a route to each of the pod's.
func (h *Host) routeTo(host netlink.Link, w Wire) error {
	if w.Bridge != 0 {
		return nil
	}

	// The node accepts no routers: a pod could claim to be one.
	name := host.Attrs().Name
	err := h.sysctls.setOf(name, false, "accept_ra", "0")
	if err == nil && w.Localnet {
		err = h.sysctls.setOf(name, true, "route_localnet", "1")
	}
	if err != nil {
		return err
	}

	for i, addr := range w.Addrs {
		gateway := w.Gateways[i]
		if err := h.ensureAddr(host, netip.PrefixFrom(gateway, gateway.BitLen())); err != nil {
			return err
		}
		single := netip.PrefixFrom(addr.Addr(), addr.Addr().BitLen())
		route := &netlink.Route{LinkIndex: host.Attrs().Index, Dst: ipNet(single), Scope: netlink.SCOPE_LINK}
		if addr.Addr().Is4() {
			route.Src = gateway.AsSlice()
		}
		if err := h.handle.RouteReplace(route); err != nil {
			return fmt.Errorf("add route to %s: %w", addr.Addr(), err)
		}
	}
	return nil
}

// setUpPod configures the pod's end, inside its namespace.
func setUpPod(pod *os.File, w Wire) error {
	return netns.Do(pod, func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer handle.Close()

		l, err := handle.LinkByName(w.IfName)
		if err != nil {
			return err
		}
		if err := podSysctls(w); err != nil {
			return err
		}
		for _, addr := range w.Addrs {
			if err := addToPod(handle, l, addr); err != nil {
				return fmt.Errorf("add address %s: %w", addr, err)
			}
		}
		if err := handle.LinkSetUp(l); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
		return addRoutes(handle, l, w)
	})
}

// podSysctls prepares the pod's interface. On a bridge it accepts no routers: another
// pod could claim to be one. And it does not look for duplicates of its link-local
// address, which is unique as the hardware address is: the bridge would copy the question
// to all pods. It does nothing in most cases, as sysctls of pods are slow: see sysctls.
func podSysctls(w Wire) error {
	if w.Bridge == 0 && !w.Chosen {
		return nil
	}
	own, err := openOwnSysctls(w.Chosen)
	if err != nil {
		return err
	}
	defer own.close()

	if w.Bridge != 0 {
		err = errors.Join(own.setOf(w.IfName, false, "accept_ra", "0"), own.setOf(w.IfName, false, "accept_dad", "0"))
	}
	if w.Chosen {
		err = errors.Join(err, own.setOf(w.IfName, true, "arp_notify", "1"), own.setOf(w.IfName, false, "ndisc_notify", "1"))
	}
	return err
}

// addToPod adds an address, and enables IPv6 on the interface if that is needed.
func addToPod(handle *netlink.Handle, l netlink.Link, addr netip.Prefix) error {
	err := handle.AddrAdd(l, address(addr))
	if addr.Addr().Is4() || !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}

	own, err := openOwnSysctls(false)
	if err != nil {
		return err
	}
	defer own.close()
	err = own.set(false, "conf/"+l.Attrs().Name+"/disable_ipv6", "0")
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in the kernel: %w", ErrNoIPv6, err)
	}
	if err != nil {
		return err
	}
	return handle.AddrAdd(l, address(addr))
}

// addRoutes adds the pod's routes, and for a routed pod first those to its gateways.
func addRoutes(handle *netlink.Handle, l netlink.Link, w Wire) error {
	index := l.Attrs().Index
	if w.Bridge == 0 {
		for _, gateway := range w.Gateways {
			single := netip.PrefixFrom(gateway, gateway.BitLen())
			if err := handle.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipNet(single), Scope: netlink.SCOPE_LINK}); err != nil {
				return fmt.Errorf("add route to gateway %s: %w", gateway, err)
			}
		}
	}

	for _, r := range w.Routes {
		route := &netlink.Route{
			LinkIndex: index, Dst: ipNet(r.To), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table, Scope: netlink.Scope(r.Scope),
		}
		if r.Gateway.IsValid() {
			route.Gw = r.Gateway.AsSlice()
		}
		if err := handle.RouteAdd(route); err != nil {
			return fmt.Errorf("add route to %s by %s: %w", r.To, r.Gateway, err)
		}
	}
	return nil
}
