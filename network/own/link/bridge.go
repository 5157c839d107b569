package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netdev"
)

// Bridge describes a bridge for pods.
type Bridge struct {
	Name string
	MTU  int
	// Gateways are the bridge's addresses, in the subnets of the pods.
	Gateways []netip.Prefix
	// Promiscuous makes it receive all packets.
	Promiscuous bool
	// Group is given to the bridge and its ports, 0 for none.
	Group uint32
}

// Bridged is a bridge that exists.
type Bridged struct {
	Index int
	MAC   net.HardwareAddr
}

// EnsureBridge makes a bridge, or completes it: addresses of other networks on it are
// left. The error is [ErrForeign] if an interface of the name is no bridge.
func (h *Host) EnsureBridge(b Bridge) (Bridged, error) {
	made, err := h.ensureBridge(b)
	if err != nil {
		return Bridged{}, fmt.Errorf("make bridge %s: %w", b.Name, err)
	}
	return made, nil
}

func (h *Host) ensureBridge(b Bridge) (Bridged, error) {
	l, err := h.handle.LinkByName(b.Name)
	if isNotFound(err) {
		// With an address of its own, the bridge does not take one of its ports',
		// which would change with the pods.
		attrs := netlink.LinkAttrs{Name: b.Name, MTU: b.MTU, Group: b.Group, TxQLen: -1}
		if len(b.Gateways) > 0 {
			attrs.HardwareAddr = HardwareAddr(b.Gateways[0].Addr())
		}
		err = h.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return Bridged{}, unsupported(err, "bridge")
		}
		l, err = h.handle.LinkByName(b.Name)
	}
	if err != nil {
		return Bridged{}, err
	}

	if l.Type() != "bridge" {
		return Bridged{}, fmt.Errorf("%w: it is a %s; choose another name", ErrForeign, l.Type())
	}
	if err := h.complete(l, b); err != nil {
		return Bridged{}, err
	}
	return Bridged{Index: l.Attrs().Index, MAC: l.Attrs().HardwareAddr}, nil
}

// complete sets what a bridge lacks. In the usual case it only reads.
func (h *Host) complete(l netlink.Link, b Bridge) error {
	if b.Group != 0 && l.Attrs().Group != b.Group {
		if err := h.handle.LinkSetGroup(l, int(b.Group)); err != nil {
			return fmt.Errorf("set group: %w", err)
		}
	}
	if b.Promiscuous && l.Attrs().Promisc == 0 {
		if err := h.handle.SetPromiscOn(l); err != nil {
			return fmt.Errorf("make promiscuous: %w", err)
		}
	}

	if err := errors.Join(h.sysctls.setOf(b.Name, true, "route_localnet", "1"), h.sysctls.setOf(b.Name, false, "accept_ra", "0")); err != nil {
		return err
	}

	for _, gateway := range b.Gateways {
		if err := h.ensureAddr(l, gateway); err != nil {
			return err
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := h.handle.LinkSetUp(l); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	return nil
}

// CheckBridge returns [ErrBroken] unless a bridge is as [Host.EnsureBridge] makes it.
func (h *Host) CheckBridge(b Bridge) error {
	l, err := h.handle.LinkByName(b.Name)
	if isNotFound(err) {
		return fmt.Errorf("%w: the node has no interface %s", ErrBroken, b.Name)
	}
	if err != nil {
		return fmt.Errorf("look for interface %s: %w", b.Name, err)
	}

	switch a := l.Attrs(); {
	case l.Type() != "bridge":
		return fmt.Errorf("%w: %s is no bridge but a %s", ErrBroken, b.Name, l.Type())
	case a.Flags&net.FlagUp == 0:
		return fmt.Errorf("%w: the bridge %s is down", ErrBroken, b.Name)
	case b.Group != 0 && a.Group != b.Group:
		return fmt.Errorf("%w: the bridge %s has lost its group, by which pods are isolated", ErrBroken, b.Name)
	case b.Promiscuous && a.Promisc == 0:
		return fmt.Errorf("%w: the bridge %s is not promiscuous", ErrBroken, b.Name)
	}
	addrs, err := netdev.Dump(func() ([]netlink.Addr, error) { return h.handle.AddrList(l, unix.AF_UNSPEC) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", b.Name, err)
	}
	if lost := missing(addrs, b.Gateways); lost.IsValid() {
		return fmt.Errorf("%w: the bridge %s has lost the address %s", ErrBroken, b.Name, lost)
	}
	return nil
}

// ensureAddr adds an address, unless the interface has it.
func (h *Host) ensureAddr(l netlink.Link, addr netip.Prefix) error {
	made := address(addr)
	if addr.IsSingleIP() {
		// A route to oneself is not needed, and a thousand equal ones of IPv6 are slow.
		made.Flags |= unix.IFA_F_NOPREFIXROUTE
	}
	err := h.handle.AddrAdd(l, made)
	switch {
	case err == nil || errors.Is(err, unix.EEXIST):
		return nil
	case !addr.Addr().Is4() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP)):
		return fmt.Errorf("add address %s: %w on the node: %w", addr, ErrNoIPv6, err)
	default:
		return fmt.Errorf("add address %s: %w", addr, err)
	}
}

// address is an address in netlink's form. IPv6 skips the search for duplicates,
// which would delay its first use: addresses are leased.
func address(p netip.Prefix) *netlink.Addr {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if !p.Addr().Is4() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

// ipNet converts an address with the length of its network.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Forward makes the node forward packets of the families.
func (h *Host) Forward(v4, v6 bool) error {
	var err error
	if v4 {
		err = h.sysctls.set(true, "ip_forward", "1")
	}
	if v6 && err == nil {
		err = h.sysctls.set(false, "conf/all/forwarding", "1")
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w in the kernel: %w", ErrNoIPv6, err)
		}
	}
	if err != nil {
		return fmt.Errorf("make the node forward packets: %w", err)
	}
	return nil
}
