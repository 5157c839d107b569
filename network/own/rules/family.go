package rules

import (
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// family is how an address family differs from the other one.
type family struct {
	suffix   string
	number   byte
	addrType nftables.SetDatatype
	// size of an address, and the offsets of the two in a header, in bytes.
	size, source, target uint32
}

// families are IPv4 and IPv6.
var families = [...]family{
	{suffix: "4", number: unix.NFPROTO_IPV4, addrType: nftables.TypeIPAddr, size: 4, source: 12, target: 16},
	{suffix: "6", number: unix.NFPROTO_IPV6, addrType: nftables.TypeIP6Addr, size: 16, source: 8, target: 24},
}

// familyOf returns the family of an address.
func familyOf(addr netip.Addr) family {
	if addr.Is4() {
		return families[0]
	}
	return families[1]
}

// Registers of the packet filter, of 32 bits each. A concatenation is in
// consecutive ones.
const firstRegister = unix.NFT_REG32_00

// words is how many registers an address takes.
func (f family) words() uint32 { return f.size / 4 }

// pad extends a value to whole registers.
func pad(value ...byte) []byte {
	for len(value)%4 != 0 {
		value = append(value, 0)
	}
	return value
}

func padPort(port uint16) []byte { return pad(byte(port>>8), byte(port)) }
