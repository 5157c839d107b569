package network_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"crisp/network"
	"crisp/network/netdev"
	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/network/own"
	"crisp/test/testkit"
)

// bridgeWith is a chain that begins with a bridge: of its name, the directory of leases,
// the third byte of its subnet and the plugins that follow.
const bridgeWith = `{"cniVersion":"1.1.0","name":"test","plugins":[
	{"type":"bridge","bridge":%q,"isDefaultGateway":true,"ipMasq":true,
	 "ipam":{"type":"host-local","dataDir":%q,"subnet":"10.77.%d.0/24"}},
	%s]}`

// follow installs such a chain.
func (m *machine) follow(bridge string, subnet int, plugins string) {
	m.t.Helper()
	m.write(fmt.Sprintf(bridgeWith, bridge, m.leases, subnet, plugins))
}

// twice runs a test with the programs and with crisp's own code, and returns both outcomes.
func twice[T any](t *testing.T, test func(*testing.T, *machine) T) (theirs, ours T) {
	t.Helper()
	for _, types := range [][]string{nil, own.ReferenceTypes()} {
		t.Run(fmt.Sprint("own=", len(types) > 0), func(t *testing.T) {
			m := newMachine(t, reference)
			m.serve(types...)
			outcome := test(t, m)
			if len(types) == 0 {
				theirs = outcome
			} else {
				ours = outcome
			}
		})
	}
	return theirs, ours
}

// run runs a program in the node.
func (m *machine) run(program string, args ...string) string {
	m.t.Helper()
	var out []byte
	err := netns.Do(m.host, func() error {
		var err error
		out, err = exec.CommandContext(m.t.Context(), program, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %q: %w: %s", program, args, err, out)
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return string(out)
}

// settled waits until the node has no interface but those of a new namespace and some
// others: they may be deleted a little later.
func (m *machine) settled(others ...string) {
	m.t.Helper()
	var left []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		var list []netlink.Link
		err := netns.Do(m.host, func() (err error) {
			list, err = netdev.Dump(netlink.LinkList)
			return err
		})
		if err != nil {
			m.t.Fatal(err)
		}

		left = nil
		for _, l := range list {
			if name := l.Attrs().Name; !slices.Contains(others, name) && !slices.Contains(m.initial, name) {
				left = append(left, name)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	m.t.Errorf("interfaces are left: %v", left)
}

// resultOf reads a result.
func resultOf(t testing.TB, result network.Result) *types100.Result {
	t.Helper()
	r, err := types100.NewResult(result.Raw)
	if err != nil {
		t.Fatal(err)
	}
	full, err := types100.GetResult(r)
	if err != nil {
		t.Fatal(err)
	}
	return full
}

// TestBuiltinBandwidth measures what passes both ways, by limits in the configuration and
// by those of the runtime, which come second.
func TestBuiltinBandwidth(t *testing.T) {
	testkit.Root(t)
	const rate, burst = 40_000_000, 2_000_000
	type measured struct {
		result map[string]any
		speeds map[string]float64
	}
	theirs, ours := twice(t, func(t *testing.T, m *machine) measured {
		outside := m.world()
		m.follow("br0", 0, fmt.Sprintf(`{"type":"bandwidth","capabilities":{"bandwidth":true},"ingressRate":%d,"ingressBurst":%d,"egressRate":%d,"egressBurst":%d}`,
			rate, burst, rate/2, burst))
		pod, ns := m.pod("slow")
		pod.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "1G"}
		result := m.attach(pod)
		if err := netns.Do(m.host, func() error { return m.net.CheckPod(t.Context(), pod.ID) }); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		route(t, outside, "10.77.0.0/24", nodeV4)
		got := measured{normalized(t, result.Raw), map[string]float64{
			"ingress": netnstest.Throughput(t, outside, ns, result.IPs[0]),
			"egress":  netnstest.Throughput(t, ns, outside, netip.MustParseAddr(outsideV4)),
		}}
		m.run("tc", "qdisc", "del", "dev", hostEnd(t, result), "root")
		if err := netns.Do(m.host, func() error { return m.net.CheckPod(t.Context(), pod.ID) }); err == nil && len(m.builtins) > 0 {
			t.Error("CHECK passes without a limit")
		}
		m.detach(pod)
		m.settled("br0", "up")
		m.clean()
		return got
	})

	for way, want := range map[string]float64{"ingress": rate, "egress": rate / 2} {
		a, b := theirs.speeds[way], ours.speeds[way]
		t.Logf("%s: reference plugins %.1f Mbit/s, ours %.1f", way, a/1e6, b/1e6)
		if b < 0.9*a || b > 1.1*a || a > 1.1*want {
			t.Errorf("%s of %.0f Mbit/s: reference plugins %.1f, ours %.1f", way, want/1e6, a/1e6, b/1e6)
		}
	}
	if !reflect.DeepEqual(theirs.result, ours.result) {
		t.Errorf("results:\n%v\n%v", theirs.result, ours.result)
	}
}

// hostEnd returns the node's end of a pod's pair.
func hostEnd(t testing.TB, result network.Result) string {
	t.Helper()
	for _, i := range resultOf(t, result).Interfaces {
		if i.Sandbox == "" && strings.HasPrefix(i.Name, "veth") {
			return i.Name
		}
	}
	t.Fatalf("no interface of the node in %s", result.Raw)
	return ""
}

// route adds a route in a namespace.
func route(t testing.TB, ns *os.File, to, by string) {
	t.Helper()
	err := netns.Do(ns, func() error {
		dst, err := netlink.ParseIPNet(to)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: netip.MustParseAddr(by).AsSlice()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestBuiltinFirewall compares what pods of two bridges receive by each policy.
func TestBuiltinFirewall(t *testing.T) {
	testkit.Root(t)
	for _, policy := range []string{"", "open", "same-bridge", "isolated"} {
		t.Run("policy="+policy, func(t *testing.T) {
			theirs, ours := twice(t, func(_ *testing.T, m *machine) map[string]string { return m.tryPolicy(policy) })
			if !reflect.DeepEqual(theirs, ours) || len(theirs) < 6 {
				t.Errorf("reference plugins:\n%v\nours:\n%v", theirs, ours)
			}
			t.Log(ours)
		})
	}
}

// tryPolicy attaches two pods to a bridge and one to another, and tries ways between them.
func (m *machine) tryPolicy(policy string) map[string]string {
	m.t.Helper()
	t := m.t
	outside := m.world()
	// Packets between ports of a bridge pass the packet filter.
	err := netns.Do(m.host, func() error { return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0) })
	if err != nil {
		testkit.Skip(t, "br_netfilter", err.Error())
	}

	plugins := fmt.Sprintf(`{"type":"portmap","capabilities":{"portMappings":true}},{"type":"firewall","ingressPolicy":%q}`, policy)
	var pods []network.Attachment
	var spaces []*os.File
	var addrs []netip.Addr
	for i, bridge := range []string{"br0", "br0", "br1"} {
		m.follow(bridge, 40+i/2, plugins)
		pod, ns := m.pod(fmt.Sprint("pod", i))
		pod.PortMappings = []network.PortMapping{{Protocol: "tcp", ContainerPort: podPort, HostPort: int32(hostPort + i)}}
		result := m.attach(pod)
		if err := netns.Do(m.host, func() error { return m.net.CheckPod(t.Context(), pod.ID) }); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		netnstest.Serve(t, ns, "tcp", netip.AddrPortFrom(netip.IPv6Unspecified(), podPort))
		pods, spaces, addrs = append(pods, pod), append(spaces, ns), append(addrs, result.IPs[0])
	}
	netnstest.Serve(t, outside, "tcp", netip.AddrPortFrom(netip.MustParseAddr(outsideV4), outsidePort))

	ways := map[string]string{}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for name, try := range map[string]struct {
		from *os.File
		to   netip.Addr
		port uint16
	}{
		"to the same bridge":                {spaces[0], addrs[1], podPort},
		"to another bridge":                 {spaces[0], addrs[2], podPort},
		"from another bridge":               {spaces[2], addrs[0], podPort},
		"to a host port of another bridge":  {spaces[0], netip.MustParseAddr(nodeV4), hostPort + 2},
		"to a host port of the same bridge": {spaces[0], netip.MustParseAddr(nodeV4), hostPort + 1},
		"to outside":                        {spaces[0], netip.MustParseAddr(outsideV4), outsidePort},
		"from outside to a host port":       {outside, netip.MustParseAddr(nodeV4), hostPort},
		"from the node":                     {m.host, addrs[0], podPort},
	} {
		asking.Go(func() {
			answer := seen(try.from, "tcp", netip.AddrPortFrom(try.to, try.port))
			mu.Lock()
			defer mu.Unlock()
			ways[name] = answer
		})
	}
	asking.Wait()
	for _, pod := range pods {
		m.detach(pod)
	}
	m.released()
	return ways
}

// TestBuiltinFirewallNeverWeaker refuses pods where the program would have their packets
// accepted and crisp cannot, and serves them where that is mended.
func TestBuiltinFirewallNeverWeaker(t *testing.T) {
	testkit.Root(t)
	_, _ = twice(t, func(t *testing.T, m *machine) bool {
		outside := m.world()
		netnstest.Serve(t, outside, "tcp", netip.AddrPortFrom(netip.MustParseAddr(outsideV4), outsidePort))
		m.run("iptables", "-N", "DOCKER-USER")
		m.run("iptables", "-A", "FORWARD", "-j", "DOCKER-USER")
		m.run("iptables", "-P", "FORWARD", "DROP")
		m.follow("br0", 0, `{"type":"firewall"}`)
		pod, ns := m.pod("one")
		to := netip.AddrPortFrom(netip.MustParseAddr(outsideV4), outsidePort)

		if len(m.builtins) > 0 {
			for what, err := range map[string]error{"ready": m.net.Ready(), "attach": netns.Do(m.host, func() error { return m.attachQuietly(pod) })} {
				if err == nil || !strings.Contains(err.Error(), "table ip filter, chain FORWARD: its policy drops packets from pods to outside") ||
					!strings.Contains(err.Error(), "iptables -I DOCKER-USER -s 10.77.0.") {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := m.net.Ready(); !errors.Is(err, network.ErrNotReady) {
				t.Errorf("ready: %v", err)
			}
			m.run("iptables", "-I", "DOCKER-USER", "-s", "10.77.0.0/24", "-j", "ACCEPT")
			m.run("iptables", "-I", "DOCKER-USER", "-d", "10.77.0.0/24", "-j", "ACCEPT")
			if err := m.net.Ready(); err != nil {
				t.Errorf("accepted: %v", err)
			}
		}
		m.attach(pod)
		if answer := seen(ns, "tcp", to); answer != nodeV4 {
			t.Errorf("outside is reached as %q", answer)
		}
		m.detach(pod)
		m.released()
		return true
	})
}

// TestBuiltinTuningRestores gives attributes of a lent interface back, whoever changed them.
func TestBuiltinTuningRestores(t *testing.T) {
	testkit.Root(t)
	theirs, ours := twice(t, func(t *testing.T, m *machine) []string {
		dir := t.TempDir()
		err := netns.Do(m.host, func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lent", MTU: 1400, TxQLen: 90}, PeerName: "other"})
		})
		if err != nil {
			t.Fatal(err)
		}
		before := m.attributes("lent")

		m.write(fmt.Sprintf(`{"cniVersion":"1.1.0","name":"test","plugins":[
			{"type":"host-device","device":"lent","ipam":{"type":"static","addresses":[{"address":"10.77.0.9/24"}]}},
			{"type":"tuning","dataDir":%q,"mtu":1280,"mac":"02:00:00:00:00:09","promisc":true,"allmulti":true,"txQLen":33}]}`, dir))
		pod, ns := m.pod("one")
		m.attach(pod)
		inside := attributesIn(t, ns, "eth0")
		m.detach(pod)
		if after := m.attributes("lent"); after != before {
			t.Errorf("the interface was %s and is %s", before, after)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%v is left, %v", left, err)
		}
		return []string{inside}
	})
	if !reflect.DeepEqual(theirs, ours) || len(theirs) != 1 || !strings.Contains(theirs[0], "1280 02:00:00:00:00:09") {
		t.Errorf("in the pod: %q and %q", theirs, ours)
	}
}

func (m *machine) attributes(name string) string { return attributesIn(m.t, m.host, name) }

// attributesIn writes an interface's attributes.
func attributesIn(t testing.TB, ns *os.File, name string) (text string) {
	t.Helper()
	err := netns.Do(ns, func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			a := l.Attrs()
			text = fmt.Sprint(a.MTU, " ", a.HardwareAddr, " ", a.Promisc, " ", a.Allmulti, " ", a.TxQLen)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestBuiltinsRefuseFields refuses what is not served of chained plugins, with the field's
// name, before a pod is started.
func TestBuiltinsRefuseFields(t *testing.T) {
	m := newMachine(t, reference)
	m.serve(own.ReferenceTypes()...)
	for plugin, text := range map[string]string{
		`{"type":"bandwidth","ingressRate":8000}`:                          "ingressRate and ingressBurst",
		`{"type":"bandwidth","egressRate":8000,"egressBurst":99999999999}`: "egressBurst 99999999999",
		`{"type":"bandwidth","unshapedSubnets":["10.0.0.0/8"]}`:            "unshapedSubnets",
		`{"type":"tuning","sysctl":{"kernel.shmmax":"1"}}`:                 "kernel.shmmax",
		`{"type":"tuning","mac":"02:00"}`:                                  "02:00",
		`{"type":"tuning","mtu":-1}`:                                       "mtu -1",
		`{"type":"tuning","txQLen":-1}`:                                    "txQLen -1",
		`{"type":"tuning","dataDir":"here"}`:                               "dataDir",
		`{"type":"tuning","promiscuous":true}`:                             "promiscuous",
		`{"type":"tuning","args":{"cni":{"mtus":1}}}`:                      "mtus",
		`{"type":"firewall","backend":"iptables"}`:                         "backend: iptables",
		`{"type":"firewall","backend":"firewalld"}`:                        "backend: firewalld",
		`{"type":"firewall","iptablesAdminChainName":"OURS"}`:              "iptablesAdminChainName",
		`{"type":"firewall","firewalldZone":"public"}`:                     "firewalldZone",
		`{"type":"firewall","ingressPolicy":"closed"}`:                     "ingressPolicy: closed",
		`{"type":"firewall","ingress":"open"}`:                             "ingress",
		`{"type":"firewall","capabilities":{"infinibandGUID":true}}`:       "infinibandGUID",
	} {
		m.follow("br0", 0, plugin)
		if err := m.net.Ready(); err == nil || !strings.Contains(err.Error(), text) || !errors.Is(err, network.ErrNotReady) {
			t.Errorf("%s: %v", plugin, err)
		}
	}

	// What the programs serve and crisp does.
	for _, plugin := range []string{
		`{"type":"bandwidth"}`, `{"type":"bandwidth","ingressRate":8000,"ingressBurst":8000}`,
		`{"type":"tuning"}`, `{"type":"tuning","sysctl":{"net.core.somaxconn":"1"},"mtu":1300,"promisc":false,"mac":"02:00:00:00:00:01"}`,
		`{"type":"firewall"}`, `{"type":"firewall","ingressPolicy":"isolated"}`,
	} {
		m.follow("br0", 0, plugin)
		if err := m.net.Ready(); err != nil {
			t.Errorf("%s: %v", plugin, err)
		}
	}
}
