package link

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"crisp/network/netdev"
	"crisp/network/netns"
)

const (
	// dyingGroup is the group of interfaces that are to be deleted.
	dyingGroup = 25466
	// defaultMTU applies if the node has no default route.
	defaultMTU = 1500

	hostPrefix  = "veth"
	shapePrefix = "ifb"
	// hashDigits makes names of 15 bytes, the kernel's limit.
	hashDigits = 11
)

// Host is the node's side: a network namespace. It is safe for concurrent use.
type Host struct {
	ns      *os.File
	handle  *netlink.Handle
	sysctls sysctls
}

// Open returns the node's side in a namespace, which must stay open.
func Open(ns *os.File) (*Host, error) {
	h := &Host{ns: ns}
	var err error
	if h.handle, err = open(ns); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if h.sysctls, err = openSysctls(ns); err != nil {
		h.handle.Close()
		return nil, err
	}
	return h, nil
}

// open opens netlink inside a namespace.
func open(ns *os.File) (handle *netlink.Handle, err error) {
	err = netns.Do(ns, func() error {
		var err error
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return handle, err
}

// Close closes the connections to the kernel.
func (h *Host) Close() {
	h.handle.Close()
	h.sysctls.close()
}

// Name returns the name of the host's interface of an attachment.
func Name(id, ifName string) string { return hashed(hostPrefix, id, ifName) }

func hashed(prefix, id, ifName string) string {
	sum := sha256.Sum256([]byte(id + "\x00" + ifName))
	return prefix + hex.EncodeToString(sum[:])[:hashDigits]
}

// Index returns the index of an interface. The error is [ErrBroken] if there is none.
func (h *Host) Index(name string) (int, error) {
	l, err := h.handle.LinkByName(name)
	if isNotFound(err) {
		return 0, fmt.Errorf("%w: the node has no interface %s", ErrBroken, name)
	}
	if err != nil {
		return 0, fmt.Errorf("look for interface %s: %w", name, err)
	}
	return l.Attrs().Index, nil
}

// Exists reports whether the node has an interface of a name that is not retired.
func (h *Host) Exists(name string) bool {
	l, err := h.handle.LinkByName(name)
	return err == nil && l.Attrs().Group != dyingGroup
}

// IsPort reports whether an interface exists and is a port of a bridge. What cannot be
// asked may be one.
func (h *Host) IsPort(name, bridge string) bool {
	l, err := h.handle.LinkByName(name)
	if err != nil {
		return !isNotFound(err)
	}
	master, err := h.handle.LinkByName(bridge)
	if err != nil {
		return !isNotFound(err)
	}
	return l.Attrs().MasterIndex == master.Attrs().Index
}

// IsBridge reports whether an interface is a bridge.
func (h *Host) IsBridge(name string) bool {
	l, err := h.handle.LinkByName(name)
	return err == nil && l.Type() == "bridge"
}

// MTU returns the MTU of the interface through which the node reaches others.
func (h *Host) MTU() int {
	for _, v4 := range []bool{true, false} {
		if l := h.uplink(v4); l != nil {
			return l.Attrs().MTU
		}
	}
	return defaultMTU
}

// Outside is an address that stands for all others, to which nothing is sent.
func Outside(v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{8, 8, 8, 8})
	}
	return netip.MustParseAddr("2001:4860:4860::8888")
}

// uplink is the interface by which the node reaches others, nil if there is none.
func (h *Host) uplink(v4 bool) netlink.Link {
	routes, err := h.handle.RouteGet(Outside(v4).AsSlice())
	if err != nil || len(routes) == 0 {
		return nil
	}
	l, err := h.handle.LinkByIndex(routes[0].LinkIndex)
	if err != nil || l.Attrs().Flags&net.FlagLoopback != 0 {
		return nil
	}
	return l
}

// Uplink returns the interface by which the node reaches others, "" if there is none.
func (h *Host) Uplink(v4 bool) (name string, index int) {
	if l := h.uplink(v4); l != nil {
		return l.Attrs().Name, l.Attrs().Index
	}
	return "", 0
}

// HardwareAddr derives an interface's address from its first IP address, so that
// neighbours that remember an address never have a wrong one.
func HardwareAddr(ip netip.Addr) net.HardwareAddr {
	mac := net.HardwareAddr{0x0a, 0x58, 0, 0, 0, 0}
	if ip.Is4() {
		copy(mac[2:], ip.AsSlice())
		return mac
	}
	sum := sha256.Sum256(ip.AsSlice())
	copy(mac[2:], sum[:])
	return mac
}

// Retire makes the host's interfaces of an attachment useless: nothing on the node leads
// to the pod any more. [Host.Reap] deletes them. They need not exist. addrs are the pod's
// addresses; if there are none they are not known, which takes longer.
func (h *Host) Retire(id, ifName string, addrs []netip.Addr) error {
	return h.RetireName(Name(id, ifName), addrs)
}

// RetireName is [Host.Retire] by the name of the host's interface.
func (h *Host) RetireName(name string, addrs []netip.Addr) error {
	if hash, ok := strings.CutPrefix(name, hostPrefix); ok {
		if err := h.retire(shapePrefix+hash, nil); err != nil {
			return err
		}
	}
	return h.retire(name, addrs)
}

// retire makes one interface useless.
func (h *Host) retire(name string, addrs []netip.Addr) error {
	l, err := h.handle.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for interface %s: %w", name, err)
	}

	// First the group: once the interface is useless, nothing must keep it from being
	// deleted.
	err = h.handle.LinkSetGroup(l, dyingGroup)
	if err == nil {
		err = h.disconnect(l, addrs)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("take down interface %s: %w", name, err)
	}
	return nil
}

// Peer returns the name of the node's end of the pair that a pod's interface is one end
// of, "" if the pod has no such interface or its other end is not on the node.
func (h *Host) Peer(pod *os.File, ifName string) (string, error) {
	handle, err := open(pod)
	if err != nil {
		return "", fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer handle.Close()
	own, err := handle.LinkByName(ifName)
	if isNotFound(err) || err == nil && own.Type() != "veth" {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for interface %s in the pod: %w", ifName, err)
	}

	l, err := h.handle.LinkByIndex(own.Attrs().ParentIndex)
	if isNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for the other end of interface %s in the pod: %w", ifName, err)
	}
	// The first interfaces of all pods have the same index, and so may have the ends in
	// other namespaces: the namespace's number on the node tells them apart.
	id, err := h.handle.GetNetNsIdByFd(int(pod.Fd()))
	if err != nil {
		return "", fmt.Errorf("look for the pod's namespace: %w", err)
	}
	if a := l.Attrs(); l.Type() != "veth" || a.ParentIndex != own.Attrs().Index || id < 0 || a.NetNsID != id {
		return "", nil
	}
	return l.Attrs().Name, nil
}

// disconnect takes down a port of a bridge, and removes the routes to a routed pod. To
// take its interface down would do as well, and take milliseconds where there are many
// pods: the kernel then walks through all of the node's IPv6 routes.
func (h *Host) disconnect(l netlink.Link, addrs []netip.Addr) error {
	if l.Attrs().MasterIndex != 0 || len(addrs) == 0 {
		return h.handle.LinkSetDown(l)
	}
	for _, addr := range addrs {
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.PrefixFrom(addr, addr.BitLen()))}
		if addr.Is4() {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := h.handle.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route to %s: %w", addr, err)
		}
	}
	return nil
}

// Reap deletes all interfaces that were retired, by this process or another one. It
// takes tens of milliseconds, however many there are.
func (h *Host) Reap() error {
	err := netns.Do(h.ns, func() error {
		request := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(dyingGroup)))
		_, err := request.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interfaces of group %d: %w", dyingGroup, err)
	}
	return nil
}

// Owned lists the labels of the host's interfaces by name: see [Wire.Label].
func (h *Host) Owned() (map[string]string, error) {
	links, err := netdev.Dump(h.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	labels := map[string]string{}
	for _, l := range links {
		if a := l.Attrs(); l.Type() == "veth" && a.Alias != "" && a.Group != dyingGroup {
			labels[a.Name] = a.Alias
		}
	}
	return labels, nil
}

// isNotFound reports whether an interface does not exist.
func isNotFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

// unsupported explains errors of kernels without a feature.
func unsupported(err error, module string) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("%w: load the module %s: %w", ErrUnsupported, module, err)
	}
	return err
}
