package link

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netns"
)

// ForgetUDP drops the node's memory of UDP packets to a port: otherwise a client that
// keeps sending is still led where the first packet went. A zero address means all.
func (h *Host) ForgetUDP(addr netip.Addr, port uint16) error {
	return netns.Do(h.ns, func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("open connection tracking: %w", err)
		}
		defer handle.Close()

		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			if addr.IsValid() && addr.Is4() != (family == unix.AF_INET) {
				continue
			}
			filter := &netlink.ConntrackFilter{}
			if err := filter.AddProtocol(unix.IPPROTO_UDP); err != nil {
				return err
			}
			if err := filter.AddPort(netlink.ConntrackOrigDstPort, port); err != nil {
				return err
			}
			if addr.IsValid() && !addr.IsUnspecified() {
				if err := filter.AddIP(netlink.ConntrackOrigDstIP, net.IP(addr.AsSlice())); err != nil {
					return err
				}
			}
			if _, err := handle.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter); err != nil {
				return fmt.Errorf("forget UDP packets to port %d: %w", port, err)
			}
		}
		return nil
	})
}
