package foreign

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Bits of the match conntrack of iptables.
const (
	xtState      = 1 << 0 // it compares the state, XT_CONNTRACK_STATE
	xtStateNew   = 1 << 3
	xtStateDNAT  = 1 << 7
	xtMarkLength = 9 // of struct xt_mark_mtinfo1, without padding
)

// extension evaluates a match of iptables.
func (m *machine) extension(e *expr.Match) match {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.ConntrackMtinfo1:
		return m.conntrack(info.ConntrackMtinfoBase, uint16(info.StateMask))
	case *xt.ConntrackMtinfo2:
		return m.conntrack(info.ConntrackMtinfoBase, info.StateMask)
	case *xt.ConntrackMtinfo3:
		return m.conntrack(info.ConntrackMtinfoBase, info.StateMask)
	case *xt.Tcp:
		if m.packet.Protocol == 0 {
			return maybe
		}
		if info.Option != 0 || info.FlagsMask != 0 {
			return maybe
		}
		return m.ports(unix.IPPROTO_TCP, info.SrcPorts, info.DstPorts, info.InvFlags&xt.TcpInvDestPorts != 0)
	case *xt.Udp:
		return m.ports(unix.IPPROTO_UDP, info.SrcPorts, info.DstPorts, info.InvFlags&xt.UdpInvDestPorts != 0)
	case *xt.Unknown:
		if e.Name == "mark" {
			return mark(*info)
		}
	}
	return maybe
}

func (m *machine) conntrack(info xt.ConntrackMtinfoBase, states uint16) match {
	if info.MatchFlags != xtState {
		return maybe
	}
	own := uint16(xtStateNew)
	if m.packet.Translated {
		own |= xtStateDNAT
	}
	return matches((states&own != 0) == (info.InvertFlags&xtState == 0))
}

// ports evaluates a match of ports.
func (m *machine) ports(protocol uint8, source, target [2]uint16, invert bool) match {
	p := m.packet
	switch {
	case p.Protocol != 0 && p.Protocol != protocol:
		return no
	case p.Protocol == 0, source != [2]uint16{0, 0xffff}:
		return maybe
	case target == [2]uint16{0, 0xffff}:
		return matches(!invert)
	case p.Port == 0:
		return maybe
	}
	return matches((target[0] <= p.Port && p.Port <= target[1]) != invert)
}

// mark evaluates the match mark for a packet without a mark.
func mark(info []byte) match {
	if len(info) < xtMarkLength {
		return maybe
	}
	want, invert := binary.NativeEndian.Uint32(info), info[8] != 0
	return matches((want == 0) != invert)
}
