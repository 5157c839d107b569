package lease

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// Range is a part of a subnet from which addresses are assigned, both ends
// included. The gateway is not assigned.
type Range struct {
	Subnet  netip.Prefix
	Start   netip.Addr
	End     netip.Addr
	Gateway netip.Addr
}

// RangeSet is a list of ranges of one family. A pod gets one address of each set.
type RangeSet []Range

// rangeJSON is a range in a configuration.
type rangeJSON struct {
	Subnet  string     `json:"subnet"`
	Start   netip.Addr `json:"rangeStart,omitzero"`
	End     netip.Addr `json:"rangeEnd,omitzero"`
	Gateway netip.Addr `json:"gateway,omitzero"`
}

// UnmarshalJSON reads a range as host-local does: only the subnet is required. The
// default for the gateway is the subnet's first address, and for the range all of
// the subnet's. The error is [ErrInvalidRange].
func (r *Range) UnmarshalJSON(data []byte) error {
	var in rangeJSON
	if err := strict(data, &in); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidRange, err)
	}
	made, err := NewRange(in.Subnet, in.Start, in.End, in.Gateway)
	if err == nil {
		*r = made
	}
	return err
}

// MarshalJSON is the inverse of UnmarshalJSON.
func (r Range) MarshalJSON() ([]byte, error) {
	return json.Marshal(rangeJSON{Subnet: r.Subnet.String(), Start: r.Start, End: r.End, Gateway: r.Gateway})
}

// NewRange checks a range and fills in what is zero: see [Range.UnmarshalJSON].
func NewRange(subnet string, start, end, gateway netip.Addr) (Range, error) {
	prefix, err := netip.ParsePrefix(subnet)
	if err != nil {
		return Range{}, fmt.Errorf("%w: subnet: %w", ErrInvalidRange, err)
	}
	if prefix != prefix.Masked() {
		return Range{}, fmt.Errorf("%w: subnet %s has host bits set, it should be %s", ErrInvalidRange, prefix, prefix.Masked())
	}
	if prefix.Bits() > prefix.Addr().BitLen()-2 {
		return Range{}, fmt.Errorf("%w: subnet %s has no room for a gateway and a pod", ErrInvalidRange, prefix)
	}

	r := Range{Subnet: prefix, Start: start, End: end, Gateway: gateway}
	if !r.Start.IsValid() {
		r.Start = prefix.Addr().Next()
	}
	if !r.End.IsValid() {
		r.End = last(prefix)
	}
	if !r.Gateway.IsValid() {
		r.Gateway = prefix.Addr().Next()
	}

	for what, addr := range map[string]netip.Addr{"rangeStart": r.Start, "rangeEnd": r.End, "gateway": r.Gateway} {
		if !prefix.Contains(addr) {
			return Range{}, fmt.Errorf("%w: %s %s is outside the subnet %s", ErrInvalidRange, what, addr, prefix)
		}
	}
	if r.End.Less(r.Start) {
		return Range{}, fmt.Errorf("%w: rangeEnd %s is before rangeStart %s", ErrInvalidRange, r.End, r.Start)
	}

	return r, nil
}

// last returns the last address of a subnet that a pod can have: the highest one
// of IPv4 is for broadcasts.
func last(subnet netip.Prefix) netip.Addr {
	bytes := subnet.Masked().Addr().AsSlice()
	for bit := subnet.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(bytes)
	if addr.Is4() {
		return addr.Prev()
	}
	return addr
}

// contains reports whether an address can be assigned from the range.
func (r Range) contains(addr netip.Addr) bool {
	return !addr.Less(r.Start) && !r.End.Less(addr) && addr != r.Gateway
}

// find returns the range that an address can be assigned from.
func (s RangeSet) find(addr netip.Addr) (Range, bool) {
	for _, r := range s {
		if r.contains(addr) {
			return r, true
		}
	}
	return Range{}, false
}

// Check returns [ErrInvalidRange] if a set is empty or of two families, a subnet is not
// one of pods, or two ranges overlap.
func Check(sets []RangeSet) error {
	if len(sets) == 0 {
		return fmt.Errorf("%w: no ranges", ErrInvalidRange)
	}

	var seen []Range
	for i, set := range sets {
		if len(set) == 0 {
			return fmt.Errorf("%w: range set %d is empty", ErrInvalidRange, i)
		}
		for _, r := range set {
			if r.Subnet.Addr().Is4() != set[0].Subnet.Addr().Is4() {
				return fmt.Errorf("%w: range set %d mixes IPv4 and IPv6: %s and %s", ErrInvalidRange, i, set[0].Subnet, r.Subnet)
			}
			if addr := r.Subnet.Addr(); addr.Is4In6() || addr.IsMulticast() || addr.IsLoopback() {
				return fmt.Errorf("%w: subnet %s is IPv4 in IPv6, multicast or loopback, which pods cannot have", ErrInvalidRange, r.Subnet)
			}
			for _, other := range seen {
				if !r.End.Less(other.Start) && !other.End.Less(r.Start) {
					return fmt.Errorf("%w: %s-%s overlaps %s-%s", ErrInvalidRange, r.Start, r.End, other.Start, other.End)
				}
			}
			seen = append(seen, r)
		}
	}

	return nil
}
