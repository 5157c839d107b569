package own

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"crisp/network/own/foreign"
	"crisp/network/own/link"
	"crisp/network/own/rules"
)

// Ports that stand for those of others, where a rule asks for one.
const (
	somePort    = 443
	somePodPort = 80
)

// examineForeign finds what other tables drop of the packets of each network. A packet
// stands for all of its kind: the first of a TCP connection.
func (x *examiner) examineForeign(calls []Call) {
	if old := x.host.OldTables(); len(old) > 0 {
		x.add(Finding{
			Level: LevelWarn, About: "packet filter",
			Text:   fmt.Sprintf("the tables %s of iptables-legacy are in use, whose rules are not examined", strings.Join(old, ", ")),
			Advice: "iptables-legacy-save shows them",
		})
	}
	ruleset, err := foreign.Read(x.ns, func(table string) bool { return table != "inet "+rules.TableName })
	if err != nil {
		x.add(Finding{Level: LevelWarn, About: "packet filter", Text: "other tables are not examined: " + err.Error()})
		return
	}
	defer ruleset.Close()

	for _, c := range x.confs {
		dropped := 0
		for _, p := range x.packets(c, calls) {
			if d := ruleset.Trace(p.Packet); d != nil {
				dropped++
				x.add(p.finding(c, d))
			}
		}
		if dropped == 0 {
			x.ok("network "+c.Name, "no other table drops its packets")
		}
	}
	for _, what := range ruleset.Unread {
		x.add(Finding{Level: LevelWarn, About: "packet filter", Text: "not examined: " + what})
	}
}

// sample is a packet that stands for others.
type sample struct {
	foreign.Packet
	// level is how bad it is if it is dropped.
	level Level
}

// finding reports that a rule drops a packet.
func (p sample) finding(c *conf, d *foreign.Drop) Finding {
	level := p.level
	if !d.Certain {
		level = LevelWarn
	}
	return Finding{Level: level, About: "network " + c.Name, Text: d.String(), Advice: advise(c.subnets(), d)}
}

// advise says how packets of pods are allowed in the program that has a rule.
func advise(pods []netip.Prefix, d *foreign.Drop) string {
	var subnets []string
	for _, s := range pods {
		if s.Addr().Is4() == !strings.HasPrefix(d.Table, "ip6 ") || strings.HasPrefix(d.Table, "inet ") {
			subnets = append(subnets, s.String())
		}
	}
	each := func(format string) string {
		var all []string
		for _, s := range subnets {
			all = append(all, strings.ReplaceAll(format, "SUBNET", s))
		}
		return strings.Join(all, "; ")
	}

	program := "iptables"
	if strings.HasPrefix(d.Table, "ip6 ") {
		program = "ip6tables"
	}
	switch {
	case strings.HasSuffix(d.Table, " firewalld"):
		return each("firewall-cmd --permanent --zone=trusted --add-source=SUBNET") + "; firewall-cmd --reload"
	case strings.HasPrefix(d.Chain, "ufw"):
		return each("ufw route allow from SUBNET; ufw route allow to SUBNET; ufw allow from SUBNET")
	case d.Chain == "FORWARD":
		return "with Docker: " + each(program+" -I DOCKER-USER -s SUBNET -j ACCEPT; "+program+" -I DOCKER-USER -d SUBNET -j ACCEPT") +
			"; with ufw: " + each("ufw route allow from SUBNET; ufw route allow to SUBNET") + "; else the same in " + d.Chain
	default:
		return fmt.Sprintf("look at it by nft -a list chain %s %s, and accept packets from and to %s before it", d.Table, d.Chain, strings.Join(subnets, ", "))
	}
}

// packets are those that the pods of a network need.
func (x *examiner) packets(c *conf, calls []Call) []sample {
	var all []sample
	for _, subnet := range firstOfEach(c.subnets()) {
		pod, other := subnet.Addr().Next().Next(), subnet.Addr().Next().Next().Next()
		name, otherName := x.interfaces(c, calls)
		all = append(all, x.routed(c, pod, name)...)
		all = append(all, sample{foreign.Packet{
			What: "from the node to pods", Hooks: []nftables.ChainHook{*nftables.ChainHookOutput, *nftables.ChainHookPostrouting}, Out: name,
			Source: subnet.Addr().Next(), Target: pod, Protocol: unix.IPPROTO_TCP, Port: somePodPort,
		}, LevelFail}, sample{foreign.Packet{
			What: "from pods to the node", Hooks: []nftables.ChainHook{*nftables.ChainHookPrerouting, *nftables.ChainHookInput}, In: name,
			Source: pod, Target: subnet.Addr().Next(), Protocol: unix.IPPROTO_TCP, Port: somePort,
		}, LevelWarn})

		// Those on a bridge reach each other without the node's routing.
		if c.Mode == ModeRouted || x.host.Filtered(pod.Is4()) {
			all = append(all, sample{foreign.Packet{
				What: "between pods", Hooks: forwarded(), In: name, Out: otherName,
				Source: pod, Target: other, Protocol: unix.IPPROTO_TCP, Port: somePodPort,
			}, LevelFail})
		}
	}
	return all
}

// routed are packets to and from the outside.
func (x *examiner) routed(c *conf, pod netip.Addr, name string) []sample {
	uplink, index := x.host.Uplink(pod.Is4())
	if uplink == "" {
		return nil
	}
	outside := link.Outside(pod.Is4())
	all := []sample{{foreign.Packet{
		What: "from pods to outside", Hooks: forwarded(), In: name, Out: uplink, OutIndex: index,
		Source: pod, Target: outside, Protocol: unix.IPPROTO_TCP, Port: somePort,
	}, LevelFail}}
	if c.Capabilities["portMappings"] {
		all = append(all, sample{foreign.Packet{
			What: "from outside to host ports", Hooks: forwarded()[1:], In: uplink, InIndex: index, Out: name,
			Source: outside, Target: pod, Protocol: unix.IPPROTO_TCP, Port: somePodPort, Translated: true,
		}, LevelFail})
	}
	return all
}

// forwarded are the hooks of packets that the node routes.
func forwarded() []nftables.ChainHook {
	return []nftables.ChainHook{*nftables.ChainHookPrerouting, *nftables.ChainHookForward, *nftables.ChainHookPostrouting}
}

// interfaces returns the node's interfaces of two pods: of real ones, if there are some.
func (x *examiner) interfaces(c *conf, calls []Call) (one, other string) {
	if c.Mode == ModeBridge {
		return c.Bridge, c.Bridge
	}
	one, other = link.Name("one", "eth0"), link.Name("other", "eth0")
	for _, call := range calls {
		if own, err := parseLoosely(call.Config); err == nil && own.sameNetwork(c) {
			one, other = link.Name(call.ID, call.IfName), one
		}
	}
	return one, other
}

// firstOfEach returns the first subnet of each family.
func firstOfEach(subnets []netip.Prefix) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range subnets {
		if len(list) == 0 || len(list) == 1 && list[0].Addr().Is4() != s.Addr().Is4() {
			list = append(list, s)
		}
	}
	return list
}
