package network_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"crisp/network"
	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/network/own"
	"crisp/network/own/link"
	"crisp/test/testkit"
)

// chain is a configuration, and the addresses that the node is expected to have in it.
type chain struct {
	conf     string
	gateways []string
}

// chains returns configurations of the reference plugins, with %q for the directory of
// leases.
func chains() map[string]chain {
	return map[string]chain{
		"usual": {bridgeChain, []string{"10.77.0.1", "fd77::1"}},
		"one family, no masquerade": {`{"cniVersion":"1.0.0","name":"test","plugins":[
		{"type":"bridge","bridge":"br0","isDefaultGateway":true,"hairpinMode":true,"mtu":1400,
		 "ipam":{"type":"host-local","dataDir":%q,"subnet":"10.77.0.0/24","rangeStart":"10.77.0.20","rangeEnd":"10.77.0.40","gateway":"10.77.0.9"}},
		{"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}`, []string{"10.77.0.9"}},
		"routes": {`{"cniVersion":"0.4.0","name":"test","plugins":[
		{"type":"bridge","bridge":"br0","isGateway":true,"ipMasq":true,"promiscMode":true,
		 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd77::/64"}]],
		         "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"},{"dst":"192.0.2.0/24","gw":"10.77.0.1"}]}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`, []string{"10.77.0.1", "fd77::1"}},
		"tuned": {`{"cniVersion":"1.0.0","name":"test","plugins":[
		{"type":"bridge","bridge":"br0","isDefaultGateway":true,"ipMasq":true,
		 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd77::/64"}]]}},
		{"type":"tuning","sysctl":{"net.core.somaxconn":"500","net.ipv4.conf.IFNAME.arp_filter":"1"},"capabilities":{"mac":true},
		 "mtu":1300,"promisc":true,"allmulti":true,"txQLen":77,"args":{"cni":{"sysctl":{"net.ipv4.tcp_keepalive_time":"77"}}}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`, []string{"10.77.0.1", "fd77::1"}},
		"no gateway": {`{"cniVersion":"0.3.1","name":"test","plugins":[
		{"type":"bridge","bridge":"br0","ipam":{"type":"host-local","dataDir":%q,"subnet":"10.77.0.0/24"}}]}`, []string{"10.77.0.1"}},
	}
}

// Addresses of a node's uplink, and of the world on its other side.
const (
	nodeV4, nodeV6       = "192.0.2.1", "2001:db8::1"
	outsideV4, outsideV6 = "192.0.2.2", "2001:db8::2"
)

// world connects the machine to a namespace that stands for the rest of the world, and
// knows no route to pods.
func (m *machine) world() *os.File {
	m.t.Helper()
	outside := netnstest.New(m.t)
	err := netns.Do(m.host, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up", MTU: 1500}, PeerName: "up", PeerNamespace: netlink.NsFd(outside.Fd())})
	})
	if err != nil {
		m.t.Fatal(err)
	}

	address(m.t, m.host, "up", nodeV4+"/24", nodeV6+"/64")
	address(m.t, outside, "up", outsideV4+"/24", outsideV6+"/64")
	err = netns.Do(m.host, func() error {
		return errors.Join(netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(outsideV4)}), netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(outsideV6)}))
	})
	if err != nil {
		m.t.Fatal(err)
	}
	talking(m.t, m.host, outside, outsideV4, outsideV6)
	return outside
}

// talking waits until a namespace reaches addresses of another one: neighbours of IPv6 may
// not find each other in the first second.
func talking(t testing.TB, from, to *os.File, addrs ...string) {
	t.Helper()
	const discard = 9
	for _, addr := range addrs {
		target := netip.AddrPortFrom(netip.MustParseAddr(addr), discard)
		netnstest.Serve(t, to, "udp", target)
		if _, err := netnstest.Ask(from, "udp", target, 20*time.Second); err != nil {
			t.Fatalf("%s is not reached: %v", addr, err)
		}
	}
}

// address sets up an interface of a namespace with addresses.
func address(t testing.TB, ns *os.File, name string, addrs ...string) {
	t.Helper()
	err := netns.Do(ns, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}

		for _, text := range addrs {
			addr, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			if addr.IP.To4() == nil {
				addr.Flags = 0x02 // without duplicate detection
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// outcome is what can be compared of a pod.
type outcome struct {
	result map[string]any
	link   string
	routes []string
	// ways are the client's address as the server saw it on each way, "no" if nothing
	// arrived.
	ways map[string]string
}

// Ports of the node's and pods' servers, and of the host on which pods are reached.
const (
	podPort, nodePort, outsidePort = 7080, 7081, 7082
	hostPort, localPort            = 18080, 18081
	// chosenMAC is what one pod asks for, where that is served.
	chosenMAC = "02:00:00:00:77:77"
)

// observe attaches two pods and tries each way to and from them.
func (m *machine) observe(gateways []string) outcome {
	m.t.Helper()
	outside := m.world()
	one, oneNS := m.pod("one")
	one.MAC = chosenMAC
	two, twoNS := m.pod("two")
	for _, protocol := range netnstest.Protocols() {
		one.PortMappings = append(one.PortMappings, network.PortMapping{Protocol: protocol, ContainerPort: podPort, HostPort: hostPort},
			network.PortMapping{Protocol: protocol, ContainerPort: podPort, HostPort: localPort, HostIP: "127.0.0.1"})
	}
	result := m.attach(one)
	m.attach(two)
	o := outcome{result: normalized(m.t, result.Raw), ways: map[string]string{}}
	if served := strings.Contains(string(result.Raw), link.Name("one", "eth0")); served != (len(m.builtins) > 0) {
		m.t.Errorf("served by crisp: %v", served)
	}
	o.look(m.t, oneNS)

	for _, protocol := range netnstest.Protocols() {
		serveAll(m.t, oneNS, protocol, podPort, "::")
		serveAll(m.t, m.host, protocol, nodePort, gateways...)
		serveAll(m.t, outside, protocol, outsidePort, outsideV4, outsideV6)
	}
	both := []string{addrOf(result, true), addrOf(result, false)}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for name, try := range map[string]struct {
		from *os.File
		port uint16
		to   []string
	}{
		"node to pod":                  {m.host, podPort, both},
		"pod to pod":                   {twoNS, podPort, both},
		"pod to node":                  {oneNS, nodePort, gateways},
		"pod to outside":               {oneNS, outsidePort, []string{outsideV4, outsideV6}},
		"host port from outside":       {outside, hostPort, []string{nodeV4, nodeV6}},
		"host port from the node":      {m.host, hostPort, append([]string{"127.0.0.1"}, gateways...)},
		"host port from a pod":         {twoNS, hostPort, gateways},
		"host port from itself":        {oneNS, hostPort, gateways},
		"host port of 127.0.0.1":       {m.host, localPort, []string{"127.0.0.1"}},
		"host port of another address": {m.host, localPort, gateways},
	} {
		for _, to := range try.to {
			if to == "" {
				continue
			}
			for _, protocol := range netnstest.Protocols() {
				asking.Go(func() {
					answer := seen(try.from, protocol, netip.AddrPortFrom(netip.MustParseAddr(to), try.port))
					mu.Lock()
					defer mu.Unlock()
					o.ways[protocol+" "+name+" "+to] = answer
				})
			}
		}
	}
	asking.Wait()
	m.detach(one)
	m.detach(two)
	m.clean()
	return o
}

// look notes what the pod has.
func (o *outcome) look(t testing.TB, pod *os.File) {
	t.Helper()
	err := netns.Do(pod, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a := l.Attrs()
		o.link = fmt.Sprint("chosen ", a.HardwareAddr.String() == chosenMAC, " mtu ", a.MTU, " promiscuous ", a.Promisc, " multicast ", a.Allmulti, " queue ", a.TxQLen)
		for _, name := range []string{"core/somaxconn", "ipv4/conf/eth0/arp_filter", "ipv4/tcp_keepalive_time"} {
			value, err := os.ReadFile("/proc/sys/net/" + name)
			if err != nil {
				return err
			}
			o.link += fmt.Sprint(" ", name, " ", strings.TrimSpace(string(value)))
		}

		routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
		for _, r := range routes {
			o.routes = append(o.routes, fmt.Sprint(r.Dst, " by ", r.Gw))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// serveAll serves a protocol on the addresses of a namespace that it has.
func serveAll(t testing.TB, ns *os.File, protocol string, port uint16, addrs ...string) {
	t.Helper()
	for _, text := range addrs {
		addr := netip.MustParseAddr(text)
		if !addr.IsUnspecified() && !usable(t, ns, addr) {
			continue
		}
		netnstest.Serve(t, ns, protocol, netip.AddrPortFrom(addr, port))
	}
}

// usable reports whether a namespace has an address, and waits until it is certain that no
// other host has it.
func usable(t testing.TB, ns *os.File, addr netip.Addr) bool {
	t.Helper()
	const tentative = 0x40
	for {
		var list []netlink.Addr
		err := netns.Do(ns, func() (err error) {
			list, err = netlink.AddrList(nil, netlink.FAMILY_ALL)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(list, func(a netlink.Addr) bool { return a.IP.Equal(addr.AsSlice()) })
		if at < 0 || list[at].Flags&tentative == 0 {
			return at >= 0
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// seen tries a way, twice by TCP, as the first packets to a new pod may be lost.
func seen(from *os.File, protocol string, to netip.AddrPort) string {
	const patience = 3 * time.Second
	for range 2 {
		if answer, err := netnstest.Ask(from, protocol, to, patience); err == nil {
			return answer
		}
		if protocol != "tcp" {
			break
		}
	}
	return "no"
}

// addrOf returns an address of a result, "" if it has none of the family.
func addrOf(r network.Result, v4 bool) string {
	for _, ip := range r.IPs {
		if ip.Is4() == v4 {
			return ip.String()
		}
	}
	return ""
}

// normalized is a result without what is random: names of the node's interfaces,
// hardware addresses, paths.
func normalized(t testing.TB, raw []byte) map[string]any {
	t.Helper()
	var result map[string]any
	if err := json.Unmarshal(raw, &result); err != nil {
		t.Fatal(err)
	}
	for _, i := range result["interfaces"].([]any) {
		i := i.(map[string]any)
		for _, key := range []string{"mac", "sandbox"} {
			if _, ok := i[key]; ok {
				i[key] = "some"
			}
		}
		if name, _ := i["name"].(string); strings.HasPrefix(name, "veth") {
			i["name"] = "veth"
		}
	}
	return result
}

// TestBuiltinsAreEqual attaches pods by the same configurations with the reference plugins
// and with crisp's own code, and compares the results and every way.
func TestBuiltinsAreEqual(t *testing.T) {
	testkit.Root(t)
	for name, chain := range chains() {
		t.Run(name, func(t *testing.T) {
			found := map[string]outcome{}
			for _, types := range [][]string{nil, own.ReferenceTypes()} {
				kind := fmt.Sprint(len(types) > 0)
				t.Run("own="+kind, func(t *testing.T) {
					m := newMachine(t, reference)
					m.serve(types...)
					m.write(fmt.Sprintf(chain.conf, m.leases))
					found[kind] = m.observe(chain.gateways)
				})
			}

			theirs, ours := found["false"], found["true"]
			compareWays(t, theirs.ways, ours.ways)
			theirs.ways, ours.ways = nil, nil
			if !reflect.DeepEqual(theirs, ours) {
				t.Errorf("reference plugins:\n%+v\nours:\n%+v", theirs, ours)
			}
		})
	}
}

// compareWays expects the same answer on each way. By the program portmap, another pod of
// the bridge does not always reach a host port of IPv6.
func compareWays(t *testing.T, theirs, ours map[string]string) {
	t.Helper()
	if len(theirs) < 9 || len(theirs) != len(ours) {
		t.Errorf("%d and %d ways were tried", len(theirs), len(ours))
	}
	for way, answer := range theirs {
		sometimes := strings.Contains(way, "host port from a pod fd77:") && answer == "no"
		if ours[way] != answer && !sometimes {
			t.Errorf("%s: reference plugins %q, ours %q", way, answer, ours[way])
		}
	}
}
