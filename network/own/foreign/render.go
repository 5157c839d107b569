package foreign

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// render writes a rule roughly as nft does: enough to recognize it.
func render(rule *nftables.Rule) string {
	var words []string
	loaded := ""
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }

	for _, e := range rule.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			loaded = map[expr.MetaKey]string{
				expr.MetaKeyIIFNAME: "iifname", expr.MetaKeyOIFNAME: "oifname", expr.MetaKeyL4PROTO: "l4proto", expr.MetaKeyMARK: "mark",
				expr.MetaKeyNFPROTO: "nfproto",
			}[e.Key]
		case *expr.Payload:
			loaded = payloadName(e)
		case *expr.Ct:
			loaded = "ct"
		case *expr.Cmp:
			add("%s", strings.TrimSpace(loaded+" "+operator(e.Op)+constant(loaded, e.Data)))
		case *expr.Lookup:
			add("%s in %s", loaded, e.SetName)
		case *expr.Match:
			add("match %s", e.Name)
		case *expr.Target:
			add("%s", e.Name)
		case *expr.Limit:
			add("limit")
		case *expr.Reject:
			add("reject")
		case *expr.Verdict:
			add("%s", verdictName(e))
		}
	}
	if text, ok := userdata.GetString(rule.UserData, userdata.TypeComment); ok {
		add("comment %q", text)
	}
	return strings.Join(words, " ")
}

func operator(op expr.CmpOp) string {
	if op == expr.CmpOpNeq {
		return "!= "
	}
	return ""
}

// constant writes what a field is compared with.
func constant(field string, data []byte) string {
	switch field {
	case "iifname", "oifname":
		name, _, whole := bytes.Cut(data, []byte{0})
		if !whole {
			return fmt.Sprintf("%q", string(name)+"*")
		}
		return fmt.Sprintf("%q", name)
	case "saddr", "daddr":
		if addr, ok := netip.AddrFromSlice(data); ok {
			return addr.String()
		}
	case "l4proto", "nfproto":
		if len(data) == 1 {
			return fmt.Sprint(data[0])
		}
	case "dport", "sport":
		if len(data) == 2 {
			return fmt.Sprint(uint16(data[0])<<8 | uint16(data[1]))
		}
	}
	return fmt.Sprintf("0x%x", data)
}

// payloadName names a field of a packet.
func payloadName(e *expr.Payload) string {
	switch {
	case e.Base == expr.PayloadBaseNetworkHeader && (e.Offset == 12 || e.Offset == 8):
		return "saddr"
	case e.Base == expr.PayloadBaseNetworkHeader && (e.Offset == 16 || e.Offset == 24):
		return "daddr"
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 2:
		return "dport"
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 0:
		return "sport"
	default:
		return "payload"
	}
}

func verdictName(v *expr.Verdict) string {
	switch v.Kind {
	case expr.VerdictDrop:
		return "drop"
	case expr.VerdictAccept:
		return "accept"
	case expr.VerdictReturn:
		return "return"
	case expr.VerdictJump:
		return "jump " + v.Chain
	case expr.VerdictGoto:
		return "goto " + v.Chain
	default:
		return ""
	}
}
