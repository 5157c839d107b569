package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"crisp/network/netns"
)

// UDPPort is a port of the node, on one of its addresses, or on all if that is not valid or
// unspecified.
type UDPPort struct {
	Addr netip.Addr
	Port uint16
}

// ForgetUDP drops the node's memory of UDP packets to ports: otherwise a client that keeps
// sending is still led where the first packet went.
func (h *Host) ForgetUDP(ports []UDPPort) error {
	if len(ports) == 0 {
		return nil
	}
	return netns.Do(h.ns, func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("open connection tracking: %w", err)
		}
		defer handle.Close()
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			if err := forgetFamily(handle, family, ports); err != nil {
				return fmt.Errorf("forget UDP packets to ports of the node: %w", err)
			}
		}
		return nil
	})
}

// forgetFamily drops what is remembered of packets of a family.
func forgetFamily(handle *netlink.Handle, family uint8, ports []UDPPort) error {
	var all []UDPPort
	for _, p := range ports {
		if p.Addr = p.Addr.Unmap(); !p.Addr.IsValid() || p.Addr.Is4() == (family == unix.AF_INET) {
			all = append(all, p)
		}
	}

	var others []UDPPort
	for _, p := range all {
		// The kernel compares addresses of IPv6 the wrong way round.
		if family == unix.AF_INET6 && p.one() {
			others = append(others, p)
			continue
		}
		err := forgetPort(family, p)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return forgetListed(handle, family, all)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return forgetListed(handle, family, others)
}

// one reports whether it is a port of one address.
func (p UDPPort) one() bool { return p.Addr.IsValid() && !p.Addr.IsUnspecified() }

// Attributes of connection tracking that the library lacks, and the parts of a tuple that
// are compared.
const (
	attrFilter, attrFilterOrig, attrFilterReply = 25, 1, 2

	compareTarget, compareProtocol, compareTargetPort = 1 << 1, 1 << 3, 1 << 5
)

// forgetPort has the kernel look for the entries, of a port of any address or of one of
// IPv4. Before 6.8 it cannot, and takes what is
// compared for an incomplete entry (EINVAL), or refuses (EOPNOTSUPP).
func forgetPort(family uint8, p UDPPort) error {
	const nested = unix.NLA_F_NESTED
	parts := uint32(compareProtocol | compareTargetPort)
	tuple := nl.NewRtAttr(nl.CTA_TUPLE_ORIG|nested, nil)
	if p.one() {
		parts |= compareTarget
		tuple.AddRtAttr(nl.CTA_TUPLE_IP|nested, nil).AddRtAttr(nl.CTA_IP_V4_DST, p.Addr.AsSlice())
	}
	proto := tuple.AddRtAttr(nl.CTA_TUPLE_PROTO|nested, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_UDP})
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, p.Port))
	filter := nl.NewRtAttr(attrFilter|nested, nil)
	filter.AddRtAttr(attrFilterOrig, nl.Uint32Attr(parts))
	filter.AddRtAttr(attrFilterReply, nl.Uint32Attr(0))

	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	request.AddData(tuple)
	request.AddData(filter)
	_, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

// forgetListed lists all entries, which takes some 10 ms, however few there are.
func forgetListed(handle *netlink.Handle, family uint8, ports []UDPPort) error {
	if len(ports) == 0 {
		return nil
	}
	var filters []netlink.CustomConntrackFilter
	for _, p := range ports {
		filter := &netlink.ConntrackFilter{}
		err := errors.Join(filter.AddProtocol(unix.IPPROTO_UDP), filter.AddPort(netlink.ConntrackOrigDstPort, p.Port))
		if p.one() {
			err = errors.Join(err, filter.AddIP(netlink.ConntrackOrigDstIP, net.IP(p.Addr.AsSlice())))
		}
		if err != nil {
			return err
		}
		filters = append(filters, filter)
	}
	_, err := handle.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(family), filters...)
	return err
}
