package rules

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// dnatBit is set in the status of a connection whose destination was changed
// (IPS_DST_NAT).
const dnatBit = 1 << 5

// addChains adds all chains but those of networks, with their rules.
func (t *Table) addChains() {
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return t.conn.AddChain(&nftables.Chain{Name: name, Table: t.table, Type: kind, Hooknum: hook, Priority: priority})
	}

	hostports := t.conn.AddChain(&nftables.Chain{Name: "hostports", Table: t.table})
	guard := base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	forward := base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	prerouting := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)

	v4 := families[0]
	notLoopback := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: key, Register: firstRegister},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: interfaceName("lo")},
		}
	}
	for _, offset := range []uint32{v4.source, v4.target} {
		t.rule(guard, notLoopback(expr.MetaKeyIIFNAME), v4.is(), fromLoopback(offset), verdict(expr.VerdictDrop))
	}

	t.rule(forward, inGroup(expr.MetaKeyIIFGROUP), inGroup(expr.MetaKeyOIFGROUP), isNew(), translated(false), verdict(expr.VerdictDrop))
	for _, chain := range []*nftables.Chain{prerouting, output} {
		t.rule(chain, toNode(), []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: hostports.Name}})
	}

	for _, f := range families {
		t.rule(hostports, f.is(), t.dnat(f, "addr", f.load(f.target, 0), service(f.words())))
		t.rule(hostports, f.is(), t.dnat(f, "ports", service(0)))
	}

	t.rule(postrouting, v4.is(), fromLoopback(v4.source), notLoopback(expr.MetaKeyOIFNAME), translated(true), masquerade())
	for _, f := range families {
		t.rule(postrouting, f.is(), translated(true), f.load(f.source, 0), f.load(f.target, f.words()), t.within("self"+f.suffix), masquerade())
	}
	for _, f := range families {
		t.rule(postrouting, f.is(), f.load(f.source, 0), t.jumpBy("sources"+f.suffix))
	}

	// The last one: it tells that all others are there.
	t.conn.AddChain(&nftables.Chain{Name: layoutChain, Table: t.table})
}

// rule appends a rule of several parts to a chain.
func (t *Table) rule(chain *nftables.Chain, parts ...[]expr.Any) {
	t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: slices.Concat(parts...)})
}

// is matches the family.
func (f family) is() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: firstRegister},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: []byte{f.number}},
	}
}

// load loads an address of the header into registers, from word on.
func (f family) load(offset, word uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: firstRegister + word, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}}
}

// service loads the protocol and the destination port, into two registers.
func service(word uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstRegister + word},
		// TCP, UDP and SCTP have the port at the same place.
		&expr.Payload{DestRegister: firstRegister + word + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// dnat changes the destination to what a map has for a key that is loaded by parts.
func (t *Table) dnat(f family, name string, key ...[]expr.Any) []expr.Any {
	s := t.sets[name+f.suffix]
	return append(slices.Concat(key...),
		&expr.Lookup{SourceRegister: firstRegister, DestRegister: firstRegister, IsDestRegSet: true, SetName: s.Name, SetID: s.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.number), RegAddrMin: firstRegister, RegProtoMin: firstRegister + f.words()},
	)
}

// within matches if a set has the key that is loaded.
func (t *Table) within(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: firstRegister, SetName: name, SetID: t.sets[name].ID}}
}

// jumpBy jumps to the chain that a map has for the key that is loaded.
func (t *Table) jumpBy(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: firstRegister, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: name, SetID: t.sets[name].ID}}
}

// fromLoopback matches an address in 127.0.0.0/8.
func fromLoopback(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: firstRegister, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: []byte{127}},
	}
}

// toNode matches an address of the node.
func toNode() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: firstRegister, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// inGroup matches an interface of isolated pods.
func inGroup(key expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: firstRegister},
		&expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: binaryutil.NativeEndian.PutUint32(IsolatedGroup)},
	}
}

// isNew matches the first packet of a connection.
func isNew() []expr.Any { return bit(expr.CtKeySTATE, expr.CtStateBitNEW, true) }

// translated matches a connection whose destination was changed, or was not.
func translated(was bool) []expr.Any { return bit(expr.CtKeySTATUS, dnatBit, was) }

// bit matches a connection by a bit.
func bit(key expr.CtKey, mask uint32, set bool) []expr.Any {
	op := expr.CmpOpEq
	if set {
		op = expr.CmpOpNeq
	}
	none := binaryutil.NativeEndian.PutUint32(0)
	return []expr.Any{
		&expr.Ct{Key: key, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: none},
		&expr.Cmp{Op: op, Register: firstRegister, Data: none},
	}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// interfaceName is a name as the kernel compares it.
func interfaceName(name string) []byte {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return data
}
