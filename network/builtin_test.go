package network_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"crisp/network"
	"crisp/network/netns"
	"crisp/network/own"
	"crisp/network/own/link"
	"crisp/test/testkit"
)

// serve changes which reference types the machine's network serves itself.
func (m *machine) serve(types ...string) {
	m.t.Helper()
	m.net.Close()
	m.builtins = types
	err := netns.Do(m.host, func() error {
		var err error
		m.net, err = network.Open(m.options())
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(m.net.Close)
}

// write installs a network configuration.
func (m *machine) write(conf string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.confDir, "10-test.conflist"), []byte(conf), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

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
		"no gateway": {`{"cniVersion":"0.3.1","name":"test","plugins":[
		{"type":"bridge","bridge":"br0","ipam":{"type":"host-local","dataDir":%q,"subnet":"10.77.0.0/24"}}]}`, []string{"10.77.0.1"}},
	}
}

// outcome is what can be compared of a pod.
type outcome struct {
	result map[string]any
	mtu    int
	routes []string
	ways   map[string]string
}

// observe attaches two pods and tries each way to and from them.
func (m *machine) observe(gateways []string) outcome {
	m.t.Helper()
	one, oneNS := m.pod("one")
	two, twoNS := m.pod("two")
	port := echo(m.t, oneNS)
	one.PortMappings = []network.PortMapping{{ContainerPort: int32(port), HostPort: 18080}, {ContainerPort: int32(port), HostPort: 18081, HostIP: "127.0.0.1"}}
	o := outcome{ways: map[string]string{}}
	result := m.attach(one)
	m.attach(two)
	o.result = normalized(m.t, result.Raw)
	if served := strings.Contains(string(result.Raw), link.Name("one", "eth0")); served != (len(m.builtins) > 0) {
		m.t.Errorf("served by crisp: %v", served)
	}

	err := netns.Do(oneNS, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		o.mtu = l.Attrs().MTU
		routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
		for _, r := range routes {
			o.routes = append(o.routes, fmt.Sprint(r.Dst, " by ", r.Gw))
		}
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}

	nodePort := echo(m.t, m.host)
	for name, try := range map[string]struct {
		from *os.File
		port int
		to   []string
	}{
		"node to pod":                  {m.host, port, []string{addrOf(result, true), addrOf(result, false)}},
		"pod to pod":                   {twoNS, port, []string{addrOf(result, true), addrOf(result, false)}},
		"pod to node":                  {oneNS, nodePort, gateways},
		"host port from the node":      {m.host, 18080, append([]string{"127.0.0.1"}, gateways...)},
		"host port from a pod":         {twoNS, 18080, gateways},
		"host port from itself":        {oneNS, 18080, gateways},
		"host port of 127.0.0.1":       {m.host, 18081, []string{"127.0.0.1"}},
		"host port of another address": {m.host, 18081, gateways},
	} {
		for _, to := range try.to {
			if to != "" {
				o.ways[name+" "+to] = reached(try.from, net.JoinHostPort(to, strconv.Itoa(try.port)))
			}
		}
	}
	m.detach(one)
	m.detach(two)
	m.clean()
	return o
}

// reached tries a way twice, as the first packets to a new pod may be lost.
func reached(from *os.File, to string) string {
	for range 2 {
		if talkQuickly(from, to) == nil {
			return "yes"
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
			seen := map[string]outcome{}
			for _, types := range [][]string{nil, own.ReferenceTypes()} {
				kind := fmt.Sprint(len(types) > 0)
				t.Run("own="+kind, func(t *testing.T) {
					m := newMachine(t, reference)
					m.serve(types...)
					m.write(fmt.Sprintf(chain.conf, m.leases))
					seen[kind] = m.observe(chain.gateways)
				})
			}

			theirs, ours := seen["false"], seen["true"]
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
	if len(theirs) < 3 || len(theirs) != len(ours) {
		t.Errorf("%d and %d ways were tried", len(theirs), len(ours))
	}
	for way, answer := range theirs {
		sometimes := strings.HasPrefix(way, "host port from a pod fd77:") && answer == "no"
		if ours[way] != answer && !sometimes {
			t.Errorf("%s: reference plugins %s, ours %s", way, answer, ours[way])
		}
	}
}

// TestBuiltinsTakeOver detaches pods that the programs attached, after crisp has begun to
// serve their types, and the other way round: what attached a pod checks and detaches it,
// also where the configuration's version passes no result on.
func TestBuiltinsTakeOver(t *testing.T) {
	for _, version := range []string{"1.1.0", "0.3.1"} {
		for _, first := range []string{"programs", "own"} {
			t.Run(version+"/"+first, func(t *testing.T) {
				m := newMachine(t, reference)
				m.write(strings.Replace(fmt.Sprintf(bridgeChain, m.leases), "1.1.0", version, 1))
				m.takeOver(first == "own", version != "0.3.1")
			})
		}
	}
}

// takeOver attaches a pod by crisp's own code or not, and detaches it after the opposite is
// configured. checks says that the configuration's version has CHECK.
func (m *machine) takeOver(served, checks bool) {
	m.t.Helper()
	before, after := []string(nil), own.ReferenceTypes()
	if served {
		before, after = after, before
	}
	m.serve(before...)
	pod, ns := m.pod("before")
	port := echo(m.t, ns)
	pod.PortMappings = []network.PortMapping{{ContainerPort: int32(port), HostPort: 18080}}
	result := m.attach(pod)

	m.serve(after...)
	calls := m.plugins()
	if err := netns.Do(m.host, func() error { return m.net.CheckPod(m.t.Context(), pod.ID) }); err != nil {
		m.t.Errorf("CHECK: %v", err)
	}
	if err := talk(m.host, "10.77.0.1:18080"); err != nil {
		m.t.Errorf("host port after the change: %v", err)
	}
	if found := m.check(network.Check{}); len(found) > 0 {
		m.t.Errorf("found %+v", found)
	}
	m.detach(pod)
	want := []string{"portmap DEL", "bridge DEL"}
	if checks {
		want = slices.Concat([]string{"bridge CHECK", "portmap CHECK", "bridge CHECK", "portmap CHECK"}, want)
	}
	if served {
		want = nil
	}
	if got := calls(); !slices.Equal(got, want) {
		m.t.Errorf("programs were called for %q, want %q", got, want)
	}
	if err := talkQuickly(m.host, "10.77.0.1:18080"); err == nil {
		m.t.Error("the host port works after DEL")
	}

	other, _ := m.pod("after")
	if second := m.attach(other); second.IPs[0] == result.IPs[0] {
		m.t.Errorf("%s is assigned again at once", second.IPs[0])
	}
	m.detach(other)
	m.clean()
}

// plugins has calls of the programs noted, in wrappers around them, and returns what was
// noted.
func (m *machine) plugins() func() []string {
	m.t.Helper()
	dir, real := m.t.TempDir(), m.bins[0]
	notes := filepath.Join(dir, "notes")
	for _, name := range []string{"bridge", "portmap"} {
		script := fmt.Sprintf("#!/bin/sh\necho %s $CNI_COMMAND >>%s\nexec %s\n", name, notes, filepath.Join(real, name))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			m.t.Fatal(err)
		}
	}
	m.bins = []string{dir, real}
	m.serve(m.builtins...)
	return func() (calls []string) {
		text, err := os.ReadFile(notes)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			calls = append(calls, strings.TrimSpace(line))
		}
		return calls
	}
}

// TestSoleLeavesBuiltinPods changes to crisp's own plugin, and has what no pod has
// removed: pods that the types of the reference plugins attached are pods, too.
func TestSoleLeavesBuiltinPods(t *testing.T) {
	m := newMachine(t, reference)
	m.serve(own.ReferenceTypes()...)
	pod, ns := m.pod("before")
	port := echo(t, ns)
	pod.PortMappings = []network.PortMapping{{ContainerPort: int32(port), HostPort: 18080}}
	result := m.attach(pod)

	m.configure(ownBridge)
	for _, f := range m.check(network.Check{Repair: true, Sole: true}) {
		if f.Repaired || strings.Contains(f.Text, "nothing") || strings.Contains(f.Text, "not exist") {
			t.Errorf("found %+v", f)
		}
	}
	if err := talk(m.host, "10.77.0.1:18080"); err != nil {
		t.Errorf("host port after the check: %v", err)
	}
	other, _ := m.pod("after")
	if second := m.attach(other); second.IPs[0] == result.IPs[0] {
		t.Errorf("%s is assigned twice", second.IPs[0])
	}
	m.detach(pod)
	m.detach(other)
	m.clean()
}

// TestBuiltinsRefuse refuses what is not served, with the field's name, before a pod is
// started.
func TestBuiltinsRefuse(t *testing.T) {
	m := newMachine(t, reference)
	m.serve(own.ReferenceTypes()...)
	if err := m.net.Ready(); err != nil {
		t.Fatal(err)
	}

	for field, change := range map[string][2]string{
		"vlan":                      {`"isGateway":true`, `"isGateway":true,"vlan":5`},
		"macspoofchk":               {`"isGateway":true`, `"isGateway":true,"macspoofchk":true`},
		"enabledad":                 {`"isGateway":true`, `"isGateway":true,"enabledad":true`},
		"forceAddress":              {`"isGateway":true`, `"isGateway":true,"forceAddress":true`},
		"disableContainerInterface": {`"isGateway":true`, `"isGateway":true,"disableContainerInterface":true`},
		"ipMask":                    {`"ipMasq":true`, `"ipMask":true`},
		"resolvConf":                {`"type":"host-local"`, `"type":"host-local","resolvConf":"/etc/resolv.conf"`},
		"dhcp":                      {`"type":"host-local"`, `"type":"dhcp"`},
		"conditionsV4":              {`"type":"portmap"`, `"type":"portmap","conditionsV4":["-d","1.2.3.4"]`},
		"markMasqBit":               {`"type":"portmap"`, `"type":"portmap","markMasqBit":5`},
		"snat":                      {`"type":"portmap"`, `"type":"portmap","snat":false`},
		"promiscuous":               {`"isGateway":true`, `"isGateway":true,"promiscMode":true`},
		"cniVersion":                {`"cniVersion":"1.1.0"`, `"cniVersion":"0.2.0"`},
	} {
		m.write(strings.Replace(fmt.Sprintf(bridgeChain, m.leases), change[0], change[1], 1))
		if err := m.net.Ready(); err == nil || !strings.Contains(err.Error(), field) || !errors.Is(err, network.ErrNotReady) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestBuiltinLoopback answers as the program does.
func TestBuiltinLoopback(t *testing.T) {
	var seen []string
	for _, types := range [][]string{nil, own.ReferenceTypes()} {
		m := newMachine(t, reference)
		m.serve(types...)

		m.write(fmt.Sprintf(strings.Replace(bridgeChain, `{"type":"portmap"`, `{"type":"loopback"},{"type":"portmap"`, 1), m.leases))
		pod, ns := m.pod("one")
		err := netns.Do(ns, func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(lo)
		})
		if err != nil {
			t.Fatal(err)
		}
		m.attach(pod)
		port := echo(t, ns)
		seen = append(seen, reached(ns, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)).String()))
		m.detach(pod)
		m.clean()
	}
	if seen[0] != "yes" || seen[1] != "yes" {
		t.Errorf("127.0.0.1 of the pod is reached: %q", seen)
	}
}
