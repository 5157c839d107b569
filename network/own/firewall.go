package own

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"crisp/network/own/foreign"
	"crisp/network/own/link"
	"crisp/network/own/rules"
)

// firewallConf is a configuration of the reference plugin firewall.
//
// Its program accepts packets from a pod, and their answers, in the tables of iptables or
// in a zone of firewalld, before anything there drops them. A table of crisp's cannot
// overrule these; so where one of them drops such packets, the pod is refused, with the
// rule that does it. Where none does, the program's rules would change nothing.
type firewallConf struct {
	shared
	Backend       string `json:"backend"`
	AdminChain    string `json:"iptablesAdminChainName"`
	Zone          string `json:"firewalldZone"`
	IngressPolicy string `json:"ingressPolicy"`
}

// Values of ingressPolicy: pods receive everything, or nothing from pods of other bridges
// with a policy, or nothing from pods of their own bridge either, as far as packets
// between these are routed.
const (
	policyOpen       = "open"
	policySameBridge = "same-bridge"
	policyIsolated   = "isolated"
)

func readFirewall(data []byte, strict bool) (*firewallConf, error) {
	c := &firewallConf{}
	if err := decode(data, c, strict); err != nil || !strict {
		return c, err
	}
	err := refuse(
		field("backend: "+c.Backend, c.Backend != ""), field("iptablesAdminChainName", c.AdminChain != ""), field("firewalldZone", c.Zone != ""),
		field("ingressPolicy: "+c.IngressPolicy, !oneOf(&c.IngressPolicy, "", policyOpen, policySameBridge, policyIsolated)),
	)
	if err != nil {
		return nil, err
	}
	return c, c.checked()
}

// polices reports whether an ingress policy is to be kept, and whether pods of one bridge
// are apart.
func (c *firewallConf) polices() (wanted, apart bool) {
	return c.IngressPolicy == policySameBridge || c.IngressPolicy == policyIsolated, c.IngressPolicy == policyIsolated
}

// validateFirewall refuses a configuration that is not served, or not on this node: chain
// are those of the plugins before it, from which the subnets of pods are known.
func (p *Plugin) validateFirewall(config []byte, chain [][]byte) error {
	if _, err := readFirewall(config, true); err != nil {
		return err
	}
	var pods []sender
	for _, data := range chain {
		var kind shared
		if err := json.Unmarshal(data, &kind); err != nil {
			continue // of another plugin, whose addresses are known with the pod
		}
		c, err := readLoosely(Call{Type: kind.Type, Config: data})
		if err != nil || c.IPAM.Type != ipamHostLocal {
			continue
		}

		device := link.Name("one", "eth0")
		if kind.Type == TypeBridge || kind.Type == Type && c.Mode == ModeBridge {
			device = c.Bridge
		}
		for _, subnet := range firstOfEach(c.subnets()) {
			pods = append(pods, sender{subnet.Addr().Next().Next(), subnet, device})
		}
	}
	return p.unhindered(pods)
}

// sender is a pod, or one that stands for all of a subnet.
type sender struct {
	addr   netip.Addr
	subnet netip.Prefix
	// device is the node's interface from which its packets come.
	device string
}

// unhindered refuses pods whose packets are dropped where the program of the plugin would
// accept them.
func (p *Plugin) unhindered(pods []sender) error {
	const without = "crisp serves the plugin firewall and changes no table of others; %s, or take the plugin from builtin_plugins to use its program"
	host, err := p.links()
	if err != nil {
		return err
	}
	if old := host.OldTables(); slices.Contains(old, "filter") {
		return invalid(fmt.Errorf("the table filter of iptables-legacy is in use, whose rules are not known: "+without, "remove it"))
	}
	ruleset, err := foreign.Read(p.ns, func(table string) bool {
		return table == "ip filter" || table == "ip6 filter" || strings.HasSuffix(table, " firewalld")
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // nor does anything drop packets
	}
	if err != nil {
		return fmt.Errorf("look for rules that drop packets of pods: %w", err)
	}
	defer ruleset.Close()

	for _, pod := range pods {
		for _, packet := range sent(host, pod) {
			if d := ruleset.Trace(packet); d != nil {
				return invalid(fmt.Errorf("%s: "+without, d, advise([]netip.Prefix{pod.subnet}, d)))
			}
		}
	}
	if len(ruleset.Unread) > 0 {
		return fmt.Errorf("look for rules that drop packets of pods: %s", strings.Join(ruleset.Unread, "; "))
	}
	return nil
}

// sent are packets that stand for those that a pod sends through the node.
func sent(host *link.Host, pod sender) []foreign.Packet {
	const dns = 53
	v4 := pod.addr.Is4()
	uplink, index := host.Uplink(v4)
	var all []foreign.Packet
	add := func(what, out string, outIndex int, to netip.Addr) {
		for protocol, port := range map[uint8]uint16{unix.IPPROTO_TCP: somePort, unix.IPPROTO_UDP: dns} {
			all = append(all, foreign.Packet{
				What: what, Hooks: []nftables.ChainHook{*nftables.ChainHookForward}, In: pod.device, Out: out, OutIndex: outIndex,
				Source: pod.addr, Target: to, Protocol: protocol, Port: port,
			})
		}
	}
	add("from pods to outside", uplink, index, link.Outside(v4))
	if host.Filtered(v4) || !host.IsBridge(pod.device) {
		add("between pods", pod.device, 0, pod.addr.Next())
	}
	return all
}

// firewall answers calls of the plugin firewall.
func (p *Plugin) firewall(ctx context.Context, call Call) ([]byte, error) {
	if call.Command != "ADD" && call.Command != "CHECK" {
		return nil, nil // what is made is of the bridge, as by the program
	}
	c, err := readFirewall(call.Config, true)
	if err != nil {
		return nil, err
	}
	result, err := c.previousResult()
	if err != nil {
		return nil, err
	}

	device := ""
	if len(result.Interfaces) > 0 && result.Interfaces[0].Sandbox == "" {
		device = result.Interfaces[0].Name
	}
	var pods []sender
	for _, ip := range result.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			addr = addr.Unmap()
			pods = append(pods, sender{addr, netip.PrefixFrom(addr, addr.BitLen()), device})
		}
	}
	if err := p.unhindered(pods); err != nil {
		return nil, err
	}
	if call.Command == "CHECK" {
		return nil, p.checkPolicy(c, device)
	}
	return c.Previous, p.police(ctx, c, device)
}

// police keeps the ingress policy of a bridge.
func (p *Plugin) police(ctx context.Context, c *firewallConf, bridge string) error {
	wanted, apart := c.polices()
	if !wanted {
		return nil
	}
	host, err := p.links()
	if err != nil {
		return err
	}
	if !host.IsBridge(bridge) {
		return invalid(fmt.Errorf("ingressPolicy: %s is for pods on a bridge, and the plugin before it made %q first", c.IngressPolicy, bridge))
	}
	table, err := p.filter()
	if err != nil {
		return err
	}
	return table.Police(ctx, bridge, apart)
}

func (p *Plugin) checkPolicy(c *firewallConf, bridge string) error {
	wanted, apart := c.polices()
	if !wanted {
		return nil
	}
	table, err := p.filter()
	if err != nil {
		return err
	}
	present, err := table.Polices(bridge, apart)
	if err == nil && !present {
		err = fmt.Errorf("%w: the table %s has lost the ingress policy of %s", link.ErrBroken, rules.TableName, bridge)
	}
	return err
}
