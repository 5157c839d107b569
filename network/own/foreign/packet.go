package foreign

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Packet is the first packet of a connection, at one or more hooks. What is zero is not
// known.
type Packet struct {
	// What describes it to people: "from pods to outside".
	What string
	// Hooks that it passes, in order.
	Hooks []nftables.ChainHook
	// In and Out are the interfaces by name and index. A name is "" where there is
	// none, such as the one of origin of a packet of the node itself.
	In, Out           string
	InIndex, OutIndex int
	Source, Target    netip.Addr
	Protocol          uint8
	// Port is the destination's.
	Port uint16
	// Translated says that the destination was changed: by a host port.
	Translated bool
}

func (p *Packet) family() byte {
	if p.Source.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// header returns the network header, and which of its bytes are known.
func (p *Packet) header() (data []byte, known []bool) {
	protocol, source, target, size := 9, 12, 16, 20
	if !p.Source.Is4() {
		protocol, source, target, size = 6, 8, 24, 40
	}
	data, known = make([]byte, size), make([]bool, size)
	put := func(at int, value []byte) {
		for i, b := range value {
			data[at+i], known[at+i] = b, true
		}
	}
	if p.Protocol != 0 {
		put(protocol, []byte{p.Protocol})
	}
	put(source, p.Source.AsSlice())
	put(target, p.Target.AsSlice())
	return data, known
}

// transport returns the beginning of the transport header.
func (p *Packet) transport() (data []byte, known []bool) {
	data, known = make([]byte, 4), make([]bool, 4)
	if p.Port != 0 {
		binary.BigEndian.PutUint16(data[2:], p.Port)
		known[2], known[3] = true, true
	}
	return data, known
}

// value is the content of a register; nil is not known.
type value []byte

// cut returns a part of a header, nil if a byte is not known.
func cut(data []byte, known []bool, offset, size uint32) value {
	if uint64(offset)+uint64(size) > uint64(len(data)) {
		return nil
	}
	for _, k := range known[offset : offset+size] {
		if !k {
			return nil
		}
	}
	return value(data[offset : offset+size])
}
