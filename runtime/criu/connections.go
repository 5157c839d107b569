package criu

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// States of TCP, from the kernel's include/net/tcp_states.h.
const (
	tcpEstablished = 1
	tcpClosed      = 7
	tcpListening   = 10
)

// keepsConnections reports whether all TCP connections are between the processes
// themselves, over the loopback interface, so that they can go on: no peer was told of
// their end. CRIU keeps all connections or none.
func (i *Inventory) keepsConnections() bool {
	type connection struct{ from, to netip.AddrPort }
	all := map[connection]bool{}
	for _, f := range i.files {
		s := f.GetIsk()
		if s == nil || s.GetType() != unix.SOCK_STREAM || s.GetState() == tcpListening || s.GetState() == tcpClosed {
			continue
		}
		from, to := endOf(s.GetSrcAddr(), s.GetSrcPort()), endOf(s.GetDstAddr(), s.GetDstPort())
		c := connection{from, to}
		if s.GetState() != tcpEstablished || s.GetProto() != unix.IPPROTO_TCP || !from.Addr().IsLoopback() || !to.Addr().IsLoopback() || all[c] {
			return false
		}
		all[c] = true
	}

	for c := range all {
		if !all[connection{c.to, c.from}] {
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
