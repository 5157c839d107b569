package network_test

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"crisp/network"
	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/network/own"
	"crisp/test/testkit"
)

// Of two nodes in one network, the first has the addresses of [machine.world], and so the
// second those of outside. Each has a part of the cluster's networks.
func clusterOf(node int) (subnets []netip.Prefix, v4, v6 string) {
	subnets = []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.77.%d.0/24", node)), netip.MustParsePrefix(fmt.Sprintf("fd77:0:0:%d::/64", node)),
	}
	if node == 0 {
		return subnets, nodeV4, nodeV6
	}
	return subnets, outsideV4, outsideV6
}

// inCluster are the networks of all nodes' pods, which see each other's addresses.
func inCluster() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/48")}
}

// join connects two machines, with no more than a route to the pods of the other.
func join(t *testing.T, nodes ...*machine) {
	t.Helper()
	err := netns.Do(nodes[0].host, func() error {
		peer := netlink.NsFd(nodes[1].host.Fd())
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up", MTU: 1400}, PeerName: "up", PeerMTU: 1400, PeerNamespace: peer})
	})
	if err != nil {
		t.Fatal(err)
	}

	for i, m := range nodes {
		_, v4, v6 := clusterOf(i)
		address(t, m.host, "up", v4+"/24", v6+"/64")
	}
	for i, m := range nodes {
		subnets, v4, v6 := clusterOf(1 - i)
		route(t, m.host, subnets[0].String(), v4)
		route(t, m.host, subnets[1].String(), v6)
		talking(t, m.host, nodes[1-i].host, v4, v6)
	}
}

// site is something in the cluster: a node, or a pod.
type site struct {
	name string
	node int
	ns   *os.File
	// addrs are of IPv4 and IPv6.
	addrs [2]netip.Addr
	// pod is nil for a node.
	pod *network.Attachment
}

// TestTwoNodes connects two nodes that have routes to each other's pods and nothing else,
// and tries each way between two pods on each and the nodes, by bridges, routed, and one of
// each.
func TestTwoNodes(t *testing.T) {
	for _, modes := range [][2]string{{ownBridge, ownBridge}, {ownRouted, ownRouted}, {ownBridge, ownRouted}} {
		t.Run(modes[0]+" and "+modes[1], func(t *testing.T) {
			testkit.Root(t)
			testkit.Leaks(t)
			nodes := []*machine{makeMachine(t, modes[0]), makeMachine(t, modes[1])}
			join(t, nodes...)
			var sites []site
			for i, m := range nodes {
				subnets, v4, v6 := clusterOf(i)
				conf, err := own.Conflist(own.Choice{Subnets: subnets, Direct: inCluster(), Mode: modes[i], DataDir: m.leases})
				if err != nil {
					t.Fatal(err)
				}
				m.write(string(conf))
				sites = append(sites, site{fmt.Sprint("node", i), i, m.host, [2]netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}, nil})
				for p := range 2 {
					sites = append(sites, m.settleIn(i, p))
				}
			}

			tryAll(t, sites)
			for i, m := range nodes {
				if found := m.check(network.Check{}); len(found) > 0 {
					t.Errorf("node %d: found %+v", i, found)
				}
			}
			for _, s := range sites {
				if s.pod != nil {
					nodes[s.node].detach(*s.pod)
				}
			}
			for _, m := range nodes {
				m.clean()
			}
		})
	}
}

// settleIn attaches a pod to a node, which serves, and has a host port of the node.
func (m *machine) settleIn(node, number int) site {
	m.t.Helper()
	pod, ns := m.pod(fmt.Sprintf("pod%d-%d", node, number))
	for _, protocol := range netnstest.Protocols() {
		pod.PortMappings = append(pod.PortMappings, network.PortMapping{Protocol: protocol, ContainerPort: podPort, HostPort: int32(hostPort + number)})
	}
	result := m.attach(pod)
	if len(result.IPs) != 2 {
		m.t.Fatalf("pod%d-%d has %v", node, number, result.IPs)
	}
	for _, protocol := range netnstest.Protocols() {
		serveAll(m.t, ns, protocol, podPort, "::")
	}
	return site{pod.ID, node, ns, [2]netip.Addr{result.IPs[0], result.IPs[1]}, &pod}
}

// way is one question with the address that the server should see, the zero one for any.
type way struct {
	from *os.File
	to   netip.AddrPort
	seen netip.Addr
}

// waysBetween are those from each site to each other, in both families.
func waysBetween(sites []site) map[string]way {
	nodes := map[int]site{}
	for _, s := range sites {
		if s.pod == nil {
			nodes[s.node] = s
		}
	}

	all := map[string]way{}
	for _, from := range sites {
		for _, to := range sites {
			for family, own := range from.addrs {
				name := fmt.Sprintf("%s to %s, family %d", from.name, to.name, family)
				// The networks of pods end where the cluster's do: a node's address is outside.
				outside := own
				if from.pod != nil {
					outside = nodes[from.node].addrs[family]
				}
				switch across := from.node != to.node; {
				case to.pod != nil && (from.pod != nil || across):
					all[name] = way{from.ns, netip.AddrPortFrom(to.addrs[family], podPort), own}
				case to.pod != nil:
					all[name] = way{from.ns, netip.AddrPortFrom(to.addrs[family], podPort), netip.Addr{}}
				case across:
					all[name] = way{from.ns, netip.AddrPortFrom(to.addrs[family], nodePort), outside}
					all[name+", host port"] = way{from.ns, netip.AddrPortFrom(to.addrs[family], hostPort+1), outside}
				case from.pod != nil:
					all[name] = way{from.ns, netip.AddrPortFrom(to.addrs[family], nodePort), own}
					all[name+", host port"] = way{from.ns, netip.AddrPortFrom(to.addrs[family], hostPort+1), netip.Addr{}}
				}
			}
		}
	}
	return all
}

// tryAll tries each way by each protocol.
func tryAll(t *testing.T, sites []site) {
	t.Helper()
	for _, s := range sites {
		for _, protocol := range netnstest.Protocols() {
			if s.pod == nil {
				serveAll(t, s.ns, protocol, nodePort, s.addrs[0].String(), s.addrs[1].String())
			}
		}
	}

	ways := waysBetween(sites)
	if len(ways) < 80 {
		t.Fatalf("only %d ways: %q", len(ways), slices.Sorted(maps.Keys(ways)))
	}
	var asking sync.WaitGroup
	for name, w := range ways {
		for _, protocol := range netnstest.Protocols() {
			asking.Go(func() {
				if got := seen(w.from, protocol, w.to); got == "no" || w.seen.IsValid() && got != w.seen.String() {
					t.Errorf("%s by %s at %s: seen as %q, want %q", name, protocol, w.to, got, w.seen)
				}
			})
		}
	}
	asking.Wait()
	t.Logf("%d ways by %d protocols", len(ways), len(netnstest.Protocols()))
}
