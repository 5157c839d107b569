package rules

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const networkPrefix = "net-"

// Network is what the packet filter has to know of a network.
type Network struct {
	Name    string
	Subnets []netip.Prefix
	// Masquerade gives packets that leave the network the node's address, unless
	// they go to one of Direct.
	Masquerade bool
	Direct     []netip.Prefix
	// Bridged pods reach each other without passing the node's routing.
	Bridged bool
}

// chain names the network's chain: another configuration has another name.
func (n *Network) chain() string {
	data, _ := json.Marshal(n) // strings, booleans and prefixes always encode
	sum := sha256.Sum256(data)
	return networkPrefix + hex.EncodeToString(sum[:6])
}

// Same reports whether two networks need the same rules.
func (n *Network) Same(other *Network) bool { return n.chain() == other.chain() }

// AddNetwork makes the rules of a network, unless they are there. Those of an
// earlier configuration of its subnets are replaced.
func (t *Table) AddNetwork(ctx context.Context, n Network) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := n.chain()
	present, err := t.hasChain(name)
	if present || err != nil {
		return err
	}

	err = t.again(ctx, func() error {
		if err := t.ensure(ctx); err != nil {
			return err
		}
		return t.replaceNetwork(n, name)
	})
	if err != nil {
		return fmt.Errorf("masquerade network %s: %w", n.Name, explain(err))
	}
	return nil
}

// HasNetwork reports whether the rules of a network are there.
func (t *Table) HasNetwork(n Network) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.hasChain(n.chain())
}

func (t *Table) replaceNetwork(n Network, name string) error {
	// Read before anything is queued, so that an error leaves nothing in the queue.
	present := map[string]map[netip.Prefix]string{}
	for _, f := range families {
		var err error
		if present[f.suffix], err = t.subnets(f); err != nil {
			return err
		}
	}

	chain := t.conn.AddChain(&nftables.Chain{Name: name, Table: t.table})
	for _, f := range families {
		if !slices.ContainsFunc(n.Subnets, f.has) {
			continue
		}
		if n.Bridged {
			t.rule(chain, f.is(), translated(true), f.load(f.target, 0), service(f.words()), t.within("backend"+f.suffix), masquerade())
		}
		if n.Masquerade {
			for _, to := range append(slices.Clone(n.Subnets), n.Direct...) {
				if f.has(to) {
					t.rule(chain, f.is(), f.load(f.target, 0), inPrefix(to), verdict(expr.VerdictReturn))
				}
			}
			t.rule(chain, f.is(), f.load(f.target, 0), inPrefix(f.multicast()), verdict(expr.VerdictReturn))
			t.rule(chain, f.is(), masquerade())
		}
	}

	old, err := t.redirect(n.Subnets, name, present)
	if err != nil {
		return err
	}
	for _, stale := range old {
		t.conn.DelChain(&nftables.Chain{Name: stale, Table: t.table})
	}
	return t.conn.Flush()
}

// redirect makes the subnets' packets go through a chain, and returns the chains
// that none goes through any more. present are the chains of each family's subnets.
func (t *Table) redirect(subnets []netip.Prefix, name string, present map[string]map[netip.Prefix]string) (unused []string, err error) {
	used := map[string]bool{}
	for _, f := range families {
		set := t.sets["sources"+f.suffix]
		var add []nftables.SetElement
		for _, subnet := range subnets {
			if !f.has(subnet) {
				continue
			}
			add = append(add, interval(subnet, name)...)
		}
		for subnet, chain := range present[f.suffix] {
			if !slices.ContainsFunc(subnets, subnet.Overlaps) {
				used[chain] = true
				continue
			}
			unused = append(unused, chain)
			if err := t.conn.SetDeleteElements(set, interval(subnet, chain)); err != nil {
				return nil, err
			}
		}
		if len(add) > 0 {
			if err := t.conn.SetAddElements(set, add); err != nil {
				return nil, err
			}
		}
	}

	slices.Sort(unused)
	return slices.DeleteFunc(slices.Compact(unused), func(chain string) bool { return used[chain] || chain == name }), nil
}

// subnets returns the chains of all networks, by subnet.
func (t *Table) subnets(f family) (map[netip.Prefix]string, error) {
	elements, err := t.conn.GetSetElements(t.sets["sources"+f.suffix])
	if err != nil {
		// The library hides that the table has vanished meanwhile.
		if complete, herr := t.hasChain(layoutChain); herr == nil && !complete {
			return nil, fmt.Errorf("%w: %w", unix.ENOENT, err)
		}
		return nil, err
	}

	chains := map[netip.Prefix]string{}
	for _, e := range elements {
		// The comment is "SUBNET CHAIN", as the end of an interval is another element.
		subnet, chain, ok := strings.Cut(e.Comment, " ")
		prefix, err := netip.ParsePrefix(subnet)
		if ok && err == nil && !e.IntervalEnd {
			chains[prefix] = chain
		}
	}
	return chains, nil
}

// RemoveNetwork removes the rules of subnets. It is not an error if there are none.
func (t *Table) RemoveNetwork(subnets []netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	complete, err := t.hasChain(layoutChain)
	if err != nil || !complete {
		return err
	}

	var unused []string
	used := map[string]bool{}
	for _, f := range families {
		present, err := t.subnets(f)
		if err != nil {
			return fmt.Errorf("list networks: %w", err)
		}
		for subnet, chain := range present {
			if !slices.Contains(subnets, subnet) {
				used[chain] = true
				continue
			}
			unused = append(unused, chain)
			if err := t.conn.SetDeleteElements(t.sets["sources"+f.suffix], interval(subnet, chain)); err != nil {
				return fmt.Errorf("remove network %s: %w", subnet, err)
			}
		}
	}

	slices.Sort(unused)
	for _, chain := range slices.Compact(unused) {
		if !used[chain] {
			t.conn.DelChain(&nftables.Chain{Name: chain, Table: t.table})
		}
	}
	if err := t.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove networks: %w", explain(err))
	}
	return nil
}

// has reports whether a subnet is of the family.
func (f family) has(p netip.Prefix) bool { return p.Addr().Is4() == (f.size == 4) }

func (f family) multicast() netip.Prefix {
	if f.size == 4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
}

// interval is a subnet in a map of intervals: where it begins, and where the next
// one may.
func interval(subnet netip.Prefix, chain string) []nftables.SetElement {
	begin := subnet.Masked().Addr().AsSlice()
	end := slices.Clone(begin)
	for i := subnet.Bits() - 1; i >= 0; i-- { // add one at the prefix's last bit
		end[i/8] ^= 0x80 >> (i % 8)
		if end[i/8]&(0x80>>(i%8)) != 0 {
			break
		}
	}
	return []nftables.SetElement{
		{Key: begin, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}, Comment: subnet.String() + " " + chain},
		{Key: end, IntervalEnd: true},
	}
}

// inPrefix matches if the address that is loaded is in a subnet.
func inPrefix(subnet netip.Prefix) []expr.Any {
	addr := subnet.Masked().Addr().AsSlice()
	mask := make([]byte, len(addr))
	for i := range subnet.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: uint32(len(addr)), Mask: mask, Xor: make([]byte, len(addr))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: addr},
	}
}
