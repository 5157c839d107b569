package foreign

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// lookup looks for a register in a set, or in a map of verdicts.
func (m *machine) lookup(e *expr.Lookup) (match, *expr.Verdict) {
	c := m.rules.contents(m.chain, e.SetName)
	if c == nil {
		return maybe, nil
	}
	var key value
	if len(c.elements) > 0 { // the type of a map's key is not read correctly
		key = m.load(e.SourceRegister, len(c.elements[0].Key))
	}
	found, element := c.find(key)
	if e.Invert && found != maybe {
		found = yes - found
	}
	if !e.IsDestRegSet || found == no {
		return found, nil
	}

	if register(e.DestRegister) != 0 { // not a verdict
		m.store(e.DestRegister, nil)
		if found == yes {
			m.store(e.DestRegister, element.Val)
		}
		return found, nil
	}
	if found == yes {
		return yes, verdictOf(element)
	}
	// One of the map's verdicts, or none: a drop if there is one.
	worst := &expr.Verdict{Kind: expr.VerdictContinue}
	for _, e := range c.elements {
		if v := verdictOf(e); v != nil && (v.Kind == expr.VerdictDrop || worst.Kind == expr.VerdictContinue) {
			worst = v
		}
	}
	return maybe, worst
}

// verdictOf decodes the verdict of a map's element, which has the attributes of one as
// its value. It is nil if it cannot be decoded.
func verdictOf(e nftables.SetElement) *expr.Verdict {
	attributes, err := netlink.NewAttributeDecoder(e.Val)
	if err != nil {
		return nil
	}
	attributes.ByteOrder = binary.BigEndian

	v := &expr.Verdict{}
	for attributes.Next() {
		switch attributes.Type() {
		case unix.NFTA_VERDICT_CODE:
			v.Kind = expr.VerdictKind(int32(attributes.Uint32()))
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = attributes.String()
		}
	}
	if attributes.Err() != nil {
		return nil
	}
	return v
}

// contents reads a set, once. It is nil if it cannot be read.
func (r *Ruleset) contents(c *chain, name string) *contents {
	key := c.table + " " + name
	if known, ok := r.sets[key]; ok {
		return known
	}
	r.sets[key] = nil
	set, err := r.conn.GetSetByName(c.Table, name)
	if err != nil {
		return nil
	}
	elements, err := r.conn.GetSetElements(set)
	if err != nil {
		return nil
	}

	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		if d := bytes.Compare(a.Key, b.Key); d != 0 {
			return d
		}
		// Where one interval ends and the next begins, the beginning counts.
		switch {
		case a.IntervalEnd == b.IntervalEnd:
			return 0
		case a.IntervalEnd:
			return -1
		default:
			return 1
		}
	})
	r.sets[key] = &contents{set, elements}
	return r.sets[key]
}

// find looks for a key.
func (c *contents) find(key value) (match, nftables.SetElement) {
	none := nftables.SetElement{}
	if len(c.elements) == 0 {
		return no, none
	}
	if key == nil {
		return maybe, none
	}
	if c.set.Interval && c.set.Concatenation {
		return c.findRange(key)
	}

	at, exact := slices.BinarySearchFunc(c.elements, key, func(e nftables.SetElement, k value) int { return bytes.Compare(e.Key, k) })
	if !c.set.Interval {
		if exact {
			return yes, c.elements[at]
		}
		return no, none
	}
	// The last element that does not come after the key.
	for exact && at+1 < len(c.elements) && bytes.Equal(c.elements[at+1].Key, key) {
		at++
	}
	if !exact {
		at--
	}
	if at < 0 || c.elements[at].IntervalEnd {
		return no, none
	}
	return yes, c.elements[at]
}

// findRange looks for a concatenation among ranges of such, whose fields are compared
// one by one. Their lengths are not known, but each fills registers.
func (c *contents) findRange(key value) (match, nftables.SetElement) {
	result := no
	for _, e := range c.elements {
		switch {
		case bytes.Equal(e.Key, key):
			return yes, e
		case len(e.KeyEnd) == len(key) && len(e.Key) == len(key):
			result = max(result, wordsWithin(key, e.Key, e.KeyEnd))
		}
	}
	return result, nftables.SetElement{}
}

// wordsWithin compares fields of one register exactly, and says maybe for longer ones.
func wordsWithin(key, from, to value) match {
	inside := yes
	for i := 0; i < len(key); i += word {
		end := min(i+word, len(key))
		k, f, t := key[i:end], from[i:end], to[i:end]
		if bytes.Compare(k, f) < 0 || bytes.Compare(k, t) > 0 {
			return no
		}
		if !bytes.Equal(f, t) {
			inside = maybe
		}
	}
	return inside
}
