package criu

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// States of TCP, from the kernel's include/net/tcp_states.h.
const (
	tcpEstablished = 1
	tcpClosed      = 7
	tcpListening   = 10
)

// keepsConnections reports whether all TCP connections can go on, of which CRIU keeps all or
// none: they are between the processes themselves, over the loopback interface, or at one of
// the addresses, at which peers know the processes and were not told of an end.
func (i *Inventory) keepsConnections(addresses []netip.Addr) bool {
	type connection struct{ from, to netip.AddrPort }
	all := map[connection]bool{}
	for _, f := range i.files {
		s := f.GetIsk()
		if s == nil || s.GetType() != unix.SOCK_STREAM || s.GetState() == tcpListening || s.GetState() == tcpClosed {
			continue
		}
		from, to := endOf(s.GetSrcAddr(), s.GetSrcPort()), endOf(s.GetDstAddr(), s.GetDstPort())
		c := connection{from, to}
		inside := from.Addr().IsLoopback() && to.Addr().IsLoopback()
		if s.GetState() != tcpEstablished || s.GetProto() != unix.IPPROTO_TCP || !inside && !slices.Contains(addresses, from.Addr()) || all[c] {
			return false
		}
		all[c] = true
	}

	for c := range all {
		if c.from.Addr().IsLoopback() && !all[connection{c.to, c.from}] {
			return false
		}
	}
	return len(all) > 0
}

// endOf is an end of a connection: CRIU has the bytes of an address in words as they are
// in memory, of which both architectures have the lowest first.
func endOf(words []uint32, port uint32) netip.AddrPort {
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	addr, ok := netip.AddrFromSlice(b)
	if !ok || port > 1<<16-1 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port))
}
