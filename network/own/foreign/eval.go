package foreign

import (
	"bytes"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// match is whether a packet matches.
type match int

const (
	no    match = iota
	maybe       // it depends on what is not known
	yes
)

func matches(b bool) match {
	if b {
		return yes
	}
	return no
}

// word is the size of a register in bytes, of which an address takes up to four.
const word = 4

// machine evaluates the expressions of one rule.
type machine struct {
	*walk
	chain *chain
	// registers have what is known, by number of 32-bit register.
	registers [unix.NFT_REG32_15 + 1][]byte
}

// register returns the number of the 32-bit register with which another one begins.
func register(number uint32) uint32 {
	if number >= unix.NFT_REG_1 && number <= unix.NFT_REG_4 {
		return unix.NFT_REG32_00 + (number-unix.NFT_REG_1)*4
	}
	return number
}

// store sets registers; nil is a value that is not known.
func (m *machine) store(number uint32, v value) {
	at := register(number)
	if v == nil {
		for i := at; i < min(at+word, uint32(len(m.registers))); i++ {
			m.registers[i] = nil
		}
		return
	}
	for part := range slices.Chunk(v, word) {
		if at >= uint32(len(m.registers)) {
			return
		}
		m.registers[at] = slices.Concat(part, make([]byte, word-len(part)))
		at++
	}
}

// load returns some bytes of registers, nil if they are not known.
func (m *machine) load(number uint32, size int) value {
	var v value
	for at := register(number); len(v) < size; at++ {
		if at >= uint32(len(m.registers)) || m.registers[at] == nil {
			return nil
		}
		v = append(v, m.registers[at]...)
	}
	return v[:size]
}

// eval evaluates an expression: whether the rule goes on to match, and its verdict if
// it has one.
func (m *machine) eval(e expr.Any) (match, *expr.Verdict) {
	switch e := e.(type) {
	case *expr.Verdict:
		return yes, e
	case *expr.Reject:
		return yes, &expr.Verdict{Kind: expr.VerdictDrop}
	case *expr.Queue:
		return maybe, &expr.Verdict{Kind: expr.VerdictAccept}
	case *expr.Lookup:
		return m.lookup(e)
	case *expr.Target:
		if e.Name == "REJECT" || e.Name == "DROP" {
			return yes, &expr.Verdict{Kind: expr.VerdictDrop}
		}
		return yes, nil
	case *expr.Match:
		return m.extension(e), nil
	case *expr.Cmp:
		return compare(e.Op, m.load(e.Register, len(e.Data)), e.Data), nil
	case *expr.Range:
		return within(e, m.load(e.Register, len(e.FromData))), nil
	case *expr.Limit, *expr.Quota, *expr.Connlimit:
		return maybe, nil
	case *expr.Counter, *expr.Log, *expr.Objref, *expr.Dynset, *expr.Notrack, *expr.FlowOffload:
		return yes, nil
	default:
		m.set(e)
		return yes, nil
	}
}

// set evaluates an expression that sets a register.
func (m *machine) set(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		if !e.SourceRegister {
			m.store(e.Register, m.meta(e.Key))
		}
	case *expr.Payload:
		if e.OperationType == expr.PayloadLoad {
			m.store(e.DestRegister, m.payload(e))
		}
	case *expr.Ct:
		if !e.SourceRegister {
			m.store(e.Register, m.tracked(e.Key))
		}
	case *expr.Bitwise:
		v := slices.Clone(m.load(e.SourceRegister, int(e.Len)))
		if len(e.Mask) < len(v) || len(e.Xor) < len(v) {
			v = nil
		}
		for i := range v {
			v[i] = v[i]&e.Mask[i] ^ e.Xor[i]
		}
		m.store(e.DestRegister, v)

	case *expr.Immediate:
		m.store(e.Register, e.Data)
	case *expr.Fib:
		m.store(e.Register, nil)
	case *expr.Hash:
		m.store(e.DestRegister, nil)
	case *expr.Numgen:
		m.store(e.Register, nil)
	case *expr.Exthdr:
		m.store(e.DestRegister, nil)
	case *expr.Rt:
		m.store(e.Register, nil)
	case *expr.Socket:
		m.store(e.Register, nil)
	}
}

// meta is what is known besides the packet's content.
func (m *machine) meta(key expr.MetaKey) value {
	p := m.packet
	name := func(s string) value {
		v := make(value, unix.IFNAMSIZ)
		copy(v, s)
		return v
	}

	switch key {
	case expr.MetaKeyNFPROTO:
		return value{p.family()}
	case expr.MetaKeyPROTOCOL:
		ethertype := uint16(unix.ETH_P_IP)
		if !p.Source.Is4() {
			ethertype = unix.ETH_P_IPV6
		}
		return binaryutil.BigEndian.PutUint16(ethertype)
	case expr.MetaKeyL4PROTO:
		if p.Protocol != 0 {
			return value{p.Protocol}
		}
	case expr.MetaKeyIIFNAME:
		return name(p.In)
	case expr.MetaKeyOIFNAME:
		// Where a packet will leave is not decided before it is routed.
		if m.hook == *nftables.ChainHookPrerouting {
			return name("")
		}
		return name(p.Out)
	case expr.MetaKeyIIF:
		return binaryutil.NativeEndian.PutUint32(uint32(p.InIndex))
	case expr.MetaKeyOIF:
		return binaryutil.NativeEndian.PutUint32(uint32(p.OutIndex))
	case expr.MetaKeyMARK: // a mark is set by rules, which is not followed
		return make(value, word)
	}
	return nil
}

// payload is a part of the packet.
func (m *machine) payload(e *expr.Payload) value {
	switch e.Base {
	case expr.PayloadBaseNetworkHeader:
		data, known := m.packet.header()
		return cut(data, known, e.Offset, e.Len)
	case expr.PayloadBaseTransportHeader:
		data, known := m.packet.transport()
		return cut(data, known, e.Offset, e.Len)
	default:
		return nil
	}
}

const (
	// statusTranslated is set if the destination was changed (IPS_DST_NAT).
	statusTranslated  = 1 << 5
	directionOriginal = 0
)

// tracked is what connection tracking knows: the packet begins a connection.
func (m *machine) tracked(key expr.CtKey) value {
	switch key {
	case expr.CtKeySTATE:
		return binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW)
	case expr.CtKeySTATUS:
		if m.packet.Translated {
			return binaryutil.NativeEndian.PutUint32(statusTranslated)
		}
		return make(value, word)
	case expr.CtKeyDIRECTION:
		return value{directionOriginal}
	case expr.CtKeyMARK:
		return make(value, word)
	}
	return nil
}

// compare compares a register with a constant.
func compare(op expr.CmpOp, v value, with []byte) match {
	if v == nil {
		return maybe
	}
	c := bytes.Compare(v, with)
	switch op {
	case expr.CmpOpEq:
		return matches(c == 0)
	case expr.CmpOpNeq:
		return matches(c != 0)
	case expr.CmpOpLt:
		return matches(c < 0)
	case expr.CmpOpLte:
		return matches(c <= 0)
	case expr.CmpOpGt:
		return matches(c > 0)
	default:
		return matches(c >= 0)
	}
}

func within(e *expr.Range, v value) match {
	if v == nil {
		return maybe
	}
	inside := bytes.Compare(v, e.FromData) >= 0 && bytes.Compare(v, e.ToData) <= 0
	return matches(inside == (e.Op == expr.CmpOpEq))
}
