package lease

import "net/netip"

// cursor walks once through all addresses of a range set, going round.
type cursor struct {
	set   RangeSet
	index int
	addr  netip.Addr // returned last
	first netip.Addr // where the walk began
}

// newCursor returns a walk that begins after an address, or at the first one of the
// set if the address is not in it.
func newCursor(set RangeSet, after netip.Addr) *cursor {
	for i, r := range set {
		if after.IsValid() && after.BitLen() == r.Start.BitLen() && !after.Less(r.Start) && !r.End.Less(after) {
			return &cursor{set: set, index: i, addr: after}
		}
	}
	return &cursor{set: set, index: len(set) - 1, addr: set[len(set)-1].End}
}

// next returns the next address that can be assigned, false after the last one.
func (c *cursor) next() (netip.Addr, bool) {
	for {
		if c.addr == c.current().End {
			c.index = (c.index + 1) % len(c.set)
			c.addr = c.current().Start
		} else {
			c.addr = c.addr.Next()
		}

		if c.addr == c.first {
			return netip.Addr{}, false
		}
		if !c.first.IsValid() {
			c.first = c.addr
		}
		if c.addr != c.current().Gateway {
			return c.addr, true
		}
	}
}

// current is the range of the address that was returned last.
func (c *cursor) current() Range { return c.set[c.index] }
