package own

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netns/netnstest"
	"crisp/network/own/link"
	"crisp/network/own/rules"
)

// asPlugin makes this test's program the plugin, for tests that kill it.
const asPlugin = "CRISP_TEST_OWN_PLUGIN"

// TestPluginProgram is the plugin as a program, when it is started by start.
func TestPluginProgram(t *testing.T) {
	if os.Getenv(asPlugin) == "" {
		return
	}
	p, err := Open(false)
	if err != nil {
		t.Fatal(err)
	}
	var call Call
	if err := json.NewDecoder(os.Stdin).Decode(&call); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Call(t.Context(), call); err != nil {
		t.Fatal(err)
	}
}

// start starts the plugin as a program in the node.
func (n *node) start(command string, p *pod) *exec.Cmd {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	data, err := json.Marshal(n.request(command, p))
	if err != nil {
		n.t.Fatal(err)
	}

	cmd := exec.Command(self, "-test.run=^TestPluginProgram$")
	cmd.Env = append(os.Environ(), asPlugin+"=1")
	cmd.Stdin = bytes.NewReader(data)
	n.inside(n.host, cmd.Start)
	return cmd
}

// TestKilled kills ADD and DEL at random moments, and in between leaves everything to
// DEL or to GC.
func TestKilled(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		rounds := 60
		if testing.Short() {
			rounds = 10
		}
		took := n.program(t)
		killed := 0
		for i := range rounds {
			p := n.pod(fmt.Sprint("victim", i), mappings(mapping(8080, 80, "tcp", ""), mapping(8080, 80, "udp", "")))
			for _, command := range []string{"ADD", "DEL"} {
				cmd := n.start(command, p)
				time.Sleep(rand.N(took * 12 / 10))
				_ = cmd.Process.Kill()
				if cmd.Wait() != nil {
					killed++
				}
			}

			// A second pod gets no address that the first one has, and can have its
			// host port once it is gone.
			other := n.pod(fmt.Sprint("other", i), mappings(mapping(8080, 80, "tcp", "")))
			if i%2 == 0 {
				n.del(p)
			} else if _, err := n.call("GC", nil, map[string]any{"cni.dev/valid-attachments": []types.GCAttachment{}}); err != nil {
				t.Fatalf("GC: %v", err)
			}
			n.add(other)
			n.del(other)
		}

		t.Logf("%d of %d calls were killed in up to %v", killed, 2*rounds, took*12/10)
		if killed < rounds/2 {
			t.Errorf("only %d of %d calls were killed", killed, 2*rounds)
		}
		n.clean()
	})
}

// program returns how long the plugin takes as a program.
func (n *node) program(t *testing.T) time.Duration {
	t.Helper()
	p := n.pod("first", mappings(mapping(8080, 80, "tcp", "")))
	began := time.Now()
	if err := n.start("ADD", p).Wait(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if err := n.start("DEL", p).Wait(); err != nil {
		t.Fatal(err)
	}
	return took
}

// TestPortTaken refuses a second pod on a host port, by name, and leaves nothing of it
// and all of the first.
func TestPortTaken(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		first := n.add(n.pod("first", mappings(mapping(8080, 80, "tcp", ""))))
		n.serve(first.ns, 80)
		second := n.pod("second", mappings(mapping(8081, 80, "tcp", ""), mapping(8080, 80, "tcp", "")))
		err := n.tryAdd(second)
		if codeOf(err) != 101 || !strings.Contains(err.Error(), "8080/tcp") || !strings.Contains(err.Error(), link.Name("first", "eth0")) {
			t.Errorf("second pod: %v", err)
		}
		n.del(second)
		if seen, err := ask(n.outside, "tcp", nodeV4+":8080"); err != nil {
			t.Errorf("first pod: %q, %v", seen, err)
		}
		if got := n.leased(); !slices.Contains(got, first.addr(true)) || len(got) != 2 {
			t.Errorf("leases are %v", got)
		}

		// The pod itself can have a host port but once.
		twice := n.pod("twice", mappings(mapping(8082, 80, "tcp", ""), mapping(8082, 81, "tcp", "0.0.0.0")))
		if err := n.tryAdd(twice); codeOf(err) != 101 || !strings.Contains(err.Error(), "8082/tcp is asked for twice") {
			t.Errorf("one host port for two of the pod's: %v", err)
		}
		n.del(twice)

		// Another protocol, or one address of the node, is another port.
		third := n.add(n.pod("third", mappings(mapping(8080, 80, "udp", ""), mapping(8080, 80, "tcp", outsideV4))))
		n.del(third)
		n.del(first)
		n.add(second)
		n.del(second)
		n.clean()
	})
}

// TestUDPMoves sends to a UDP host port without a pause while the pod is replaced.
func TestUDPMoves(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		var conn net.Conn
		n.inside(n.outside, func() error {
			var err error
			conn, err = net.Dial("udp", nodeV4+":5353")
			return err
		})
		defer conn.Close()

		for i := range 3 {
			// Before the first one is there, the node remembers packets to itself.
			conn.Write([]byte("?"))
			p := n.add(n.pod(fmt.Sprint("dns", i), mappings(mapping(5353, 53, "udp", ""))))
			n.serve(p.ns, 53)
			if !answers(conn) {
				t.Errorf("pod %d does not get packets of a client that has sent before", i)
			}
			n.del(p)
		}
	})
}

// TestUDPForgotten sends to a UDP host port without a pause while its pod goes, in each way
// that it can: the next one who gets the packets is the node.
func TestUDPForgotten(t *testing.T) {
	for name, remove := range map[string]func(n *node, p *pod) error{
		"DEL": func(n *node, p *pod) error { _, err := n.call("DEL", p, nil); return err },
		"DEL of portmap without a result": func(n *node, p *pod) error {
			n.inside(p.ns, func() error { return withLink("eth0", netlink.LinkSetDown) }) // not to answer
			p.raw = nil
			return n.chained("DEL", TypePortmap, p, map[string]any{"runtimeConfig": p.args})
		},
		"GC":      func(n *node, _ *pod) error { _, err := n.call("GC", nil, nil); return err },
		"orphans": func(n *node, _ *pod) error { n.examine(repair); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, ModeBridge)
			p := n.add(n.pod("dns", mappings(mapping(5353, 53, "udp", ""))))
			n.serve(p.ns, 53)
			var conn net.Conn
			n.inside(n.outside, func() error {
				var err error
				conn, err = net.Dial("udp", nodeV4+":5353")
				return err
			})
			defer conn.Close()
			if !answers(conn) {
				t.Fatal("the pod does not answer")
			}

			if err := remove(n, p); err != nil {
				t.Fatal(err)
			}
			netnstest.Serve(t, n.host, "udp", netip.MustParseAddrPort(nodeV4+":5353"))
			if !answers(conn) {
				t.Error("packets still go to the pod that is gone")
			}
			p.raw = nil
			n.del(p)
		})
	}
}

// answers sends until there is an answer, for up to two seconds.
func answers(conn net.Conn) bool {
	for range 20 {
		conn.Write([]byte("?"))
		conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if size, err := conn.Read(make([]byte, 100)); err == nil && size > 0 {
			return true
		}
	}
	return false
}

// TestIsolated keeps pods from each other, also when they use the node as a router, and
// leaves all other ways.
func TestIsolated(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		n.conf["isolatePods"] = true
		// Otherwise the kernel translates frames on the bridge and does not route
		// them, so that host ports of other pods are isolated too: see
		// docs/network.md.
		n.inside(n.host, func() error {
			for _, name := range []string{"iptables", "ip6tables"} {
				err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte("0"), 0)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
			return nil
		})
		web := n.add(n.pod("web", mappings(mapping(8080, 80, "tcp", ""))))
		client := n.add(n.pod("client", nil))
		n.serve(web.ns, 80)
		n.serve(n.outside, 9000)

		for _, v4 := range []bool{true, false} {
			node, outside, gateway := nodeV4, outsideV4, "10.77.0.1"
			if !v4 {
				node, outside, gateway = nodeV6, outsideV6, "fd77::1"
			}
			for to, ok := range map[string]bool{
				net.JoinHostPort(web.addr(v4), "80"): false,
				net.JoinHostPort(node, "8080"):       true,
				net.JoinHostPort(outside, "9000"):    true,
			} {
				if _, err := ask(client.ns, "tcp", to); (err == nil) != ok {
					t.Errorf("%s: %v, want success %v", to, err, ok)
				}
			}

			// By way of the node.
			n.inside(client.ns, func() error {
				addr := net.ParseIP(web.addr(v4))
				return netlink.RouteAdd(&netlink.Route{Dst: netlink.NewIPNet(addr), Gw: net.ParseIP(gateway)})
			})
			if _, err := ask(client.ns, "tcp", net.JoinHostPort(web.addr(v4), "80")); err == nil {
				t.Errorf("a pod reaches %s by the node", web.addr(v4))
			}
		}
	})
}

// TestLocalnetIsGuarded sends packets for 127.0.0.1 to the node from a pod.
func TestLocalnetIsGuarded(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		p := n.add(n.pod("attacker", mappings(mapping(8080, 80, "tcp", ""))))
		n.serve(n.host, 9000, "127.0.0.1")

		n.inside(p.ns, func() error {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/route_localnet", []byte("1"), 0); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			local, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_LOCAL, LinkIndex: lo.Attrs().Index}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
			if err != nil {
				return err
			}
			for _, r := range local {
				if r.Dst != nil && r.Dst.IP[0] == 127 {
					if err := netlink.RouteDel(&r); err != nil {
						return err
					}
				}
			}
			return netlink.RouteAdd(&netlink.Route{Dst: netlink.NewIPNet(net.IPv4(127, 0, 0, 1)), Gw: net.IPv4(10, 77, 0, 1)})
		})
		if seen, err := ask(p.ns, "tcp", "127.0.0.1:9000"); err == nil {
			t.Errorf("a pod reaches the node's 127.0.0.1, as %q", seen)
		}
	})
}

// TestNoRouters reads whether interfaces to pods, and of pods that others can send to,
// accept routers (CVE-2020-10749).
func TestNoRouters(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		p := n.add(n.pod("pod", nil))
		defer n.del(p)
		accepts := func(ns *os.File, name string) string {
			var text []byte
			n.inside(ns, func() error {
				var err error
				text, err = os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/accept_ra")
				return err
			})
			return strings.TrimSpace(string(text))
		}

		if n.conf["mode"] == ModeRouted {
			if got := accepts(n.host, link.Name("pod", "eth0")); got != "0" {
				t.Errorf("the node's end has accept_ra %s", got)
			}
			return
		}
		if got := accepts(n.host, DefaultBridge); got != "0" {
			t.Errorf("the bridge has accept_ra %s", got)
		}
		if got := accepts(p.ns, "eth0"); got != "0" {
			t.Errorf("the pod has accept_ra %s", got)
		}
	})
}

// TestBandwidth measures what passes in a second, both ways.
func TestBandwidth(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		const rate = 40_000_000 // bits per second
		p := n.add(n.pod("slow", map[string]any{"bandwidth": map[string]any{
			"ingressRate": rate, "ingressBurst": 1<<32 - 1, "egressRate": rate / 2, "egressBurst": 1<<32 - 1,
		}}))

		for name, try := range map[string]struct {
			from, to *os.File
			addr     string
			want     float64
		}{
			"ingress": {n.outside, p.ns, p.addr(true), rate},
			"egress":  {p.ns, n.outside, outsideV4, rate / 2},
		} {
			if try.from == n.outside {
				n.inside(n.outside, func() error {
					return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4(10, 77, 0, 0), Mask: net.CIDRMask(24, 32)}, Gw: net.ParseIP(nodeV4)})
				})
			}
			if got := netnstest.Throughput(t, try.from, try.to, netip.MustParseAddr(try.addr)); got < try.want*0.85 || got > try.want*1.1 {
				t.Errorf("%s: %.1f Mbit/s, want %.1f", name, got/1e6, try.want/1e6)
			}
		}
		n.del(p)
		n.clean()
	})
}

// TestCheckFinds breaks attachments in different ways.
func TestCheckFinds(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		for name, damage := range map[string]func(p *pod) error{
			"address": func(*pod) error {
				l, _ := netlink.LinkByName("eth0")
				a, _ := netlink.AddrList(l, unix.AF_INET)
				return netlink.AddrDel(l, &a[0])
			},
			"route": func(*pod) error {
				return netlink.RouteDel(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}})
			},
			"hardware address": func(*pod) error {
				l, _ := netlink.LinkByName("eth0")
				return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 9})
			},
			"link":    func(*pod) error { l, _ := netlink.LinkByName("eth0"); return netlink.LinkDel(l) },
			"lease":   func(p *pod) error { return os.Remove(filepath.Join(n.leases, "test", p.addr(true))) },
			"ports":   func(*pod) error { n.nft("flush", "map", "inet", rules.TableName, "ports4"); return nil },
			"ruleset": func(*pod) error { n.nft("flush", "ruleset"); return nil },
		} {
			p := n.add(n.pod(name, mappings(mapping(8080, 80, "tcp", ""))))
			if _, err := n.call("CHECK", p, nil); err != nil {
				t.Errorf("%s: before: %v", name, err)
			}
			n.inside(p.ns, func() error { return damage(p) })
			if _, err := n.call("CHECK", p, nil); codeOf(err) != 104 {
				t.Errorf("%s: after: %v", name, err)
			}
			n.del(p)
		}
		n.clean()

		// The table is made again.
		p := n.add(n.pod("again", mappings(mapping(8080, 80, "tcp", ""))))
		n.serve(p.ns, 80)
		if _, err := ask(n.outside, "tcp", nodeV4+":8080"); err != nil {
			t.Error(err)
		}
	})
}

// TestDelAfterOthers detaches a pod whose result a plugin later in the chain has changed.
func TestDelAfterOthers(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		for _, ips := range []string{`[{"address":"10.42.0.9/24"}]`, `[{"address":"10.42.0.9/24"},{"address":"fd77::2/64"}]`, `[]`} {
			p := n.add(n.pod("changed", mappings(mapping(8080, 80, "tcp", ""))))
			p.raw = json.RawMessage(`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],"ips":` + ips + `}`)
			n.del(p)
			n.clean()
			n.del(p)
		}
	})
}

// TestTwoAddresses leads the host ports of a pod with two addresses of a family to the
// first, and takes them back.
func TestTwoAddresses(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		ipam := n.conf["ipam"].(map[string]any)
		ipam["ranges"] = [][]map[string]any{{{"subnet": "10.77.0.0/24"}}, {{"subnet": "10.78.0.0/24"}}}
		p := n.add(n.pod("two", mappings(mapping(8080, 80, "tcp", ""))))
		n.serve(p.ns, 80)
		if _, err := ask(n.outside, "tcp", nodeV4+":8080"); err != nil {
			t.Error(err)
		}
		if _, err := n.call("CHECK", p, nil); err != nil {
			t.Error(err)
		}
		n.del(p)
		n.clean()
	})
}

// TestGCKeepsValid removes all attachments but those that are valid.
func TestGCKeepsValid(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		gone := n.add(n.pod("gone", mappings(mapping(8080, 80, "tcp", ""))))
		kept := n.add(n.pod("kept", mappings(mapping(8081, 80, "tcp", ""))))
		n.serve(kept.ns, 80)
		valid := []types.GCAttachment{{ContainerID: "kept", IfName: "eth0"}}
		if _, err := n.call("GC", nil, map[string]any{"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}); err != nil {
			t.Fatal(err)
		}

		if _, err := n.call("CHECK", gone, nil); err == nil {
			t.Error("an invalid attachment was kept")
		}
		if _, err := n.call("CHECK", kept, nil); err != nil {
			t.Errorf("a valid attachment: %v", err)
		}
		if _, err := ask(n.outside, "tcp", nodeV4+":8081"); err != nil {
			t.Errorf("a valid attachment: %v", err)
		}
		n.del(kept)
		n.clean()
	})
}

// TestGCKeepsOldLease keeps the lease of a valid attachment that an old release of
// host-local wrote, without its interface, by either name of the field.
func TestGCKeepsOldLease(t *testing.T) {
	n := newNode(t, ModeRouted)
	dir := filepath.Join(n.leases, "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]string{"10.77.0.9": "old", "10.77.0.10": "gone"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(id), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	for _, field := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} {
		if _, err := n.call("GC", nil, map[string]any{field: []types.GCAttachment{{ContainerID: "old", IfName: "eth0"}}}); err != nil {
			t.Fatal(err)
		}
		if leased := n.leased(); !slices.Equal(leased, []string{"10.77.0.9"}) {
			t.Errorf("%s: leased are %q", field, leased)
		}
	}
}

// TestRefused makes ADD fail in every way that input can, and expects nothing to be
// left of it.
func TestRefused(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		good, err := json.Marshal(n.conf)
		if err != nil {
			t.Fatal(err)
		}
		subnet := func(list ...string) map[string]any {
			var ranges [][]map[string]any
			for _, s := range list {
				ranges = append(ranges, []map[string]any{{"subnet": s}})
			}
			return map[string]any{"type": "host-local", "dataDir": n.leases, "ranges": ranges}
		}
		for name, test := range map[string]struct {
			change map[string]any
			code   uint
			text   string
		}{
			"unknown field":      {map[string]any{"ipmask": true}, types.ErrInvalidNetworkConfig, "ipmask"},
			"unknown ipam field": {map[string]any{"ipam": map[string]any{"type": "host-local", "range": 1}}, types.ErrInvalidNetworkConfig, "range"},
			"unknown capability": {map[string]any{"capabilities": map[string]bool{"infinibandGUID": true}}, types.ErrInvalidNetworkConfig, "infinibandGUID"},
			"mode":               {map[string]any{"mode": "tunnel"}, types.ErrInvalidNetworkConfig, "tunnel"},
			"ipam type":          {map[string]any{"ipam": map[string]any{"type": "dhcp"}}, types.ErrInvalidNetworkConfig, "dhcp"},
			"overlap":            {map[string]any{"ipam": subnet("10.1.0.0/16", "10.1.2.0/24")}, types.ErrInvalidNetworkConfig, "overlaps"},
			"IPv4 in IPv6":       {map[string]any{"ipam": subnet("::ffff:10.1.0.0/112")}, types.ErrInvalidNetworkConfig, "IPv4 in IPv6"},
			"multicast":          {map[string]any{"ipam": subnet("224.1.0.0/16")}, types.ErrInvalidNetworkConfig, "multicast"},
			"loopback":           {map[string]any{"ipam": subnet("127.1.0.0/16")}, types.ErrInvalidNetworkConfig, "loopback"},
			"no range":           {map[string]any{"ipam": subnet()}, types.ErrInvalidNetworkConfig, "no ranges"},
			"mtu":                {map[string]any{"mtu": 60, "ipam": subnet("10.1.0.0/16")}, types.ErrInvalidNetworkConfig, "between 68"},
			"mtu of IPv6":        {map[string]any{"mtu": 1279}, types.ErrInvalidNetworkConfig, "between 1280"},
			"bridge's name":      {map[string]any{"bridge": "a/b"}, types.ErrInvalidNetworkConfig, "a/b"},
			"chained":            {map[string]any{"prevResult": map[string]any{"cniVersion": "1.1.0"}}, types.ErrInvalidNetworkConfig, "first"},
			"collision":          {map[string]any{"name": "collide", "ipam": subnet("192.0.2.0/24")}, 102, "by up"},
			"address outside":    {map[string]any{"args": map[string]any{"cni": map[string]any{"ips": []string{"10.9.9.9"}}}}, 100, "10.9.9.9"},
			"protocol":           {map[string]any{"runtimeConfig": mappings(mapping(1, 1, "icmp", ""))}, types.ErrInvalidNetworkConfig, "icmp"},
			"hardware address":   {map[string]any{"runtimeConfig": map[string]any{"mac": "01:00:00:00:00:01"}}, types.ErrInvalidNetworkConfig, "01:00"},
		} {
			n.conf = map[string]any{}
			if err := json.Unmarshal(good, &n.conf); err != nil {
				t.Fatal(err)
			}
			for k, v := range test.change {
				n.conf[k] = v
			}
			p := n.pod("refused", nil)
			if err := n.tryAdd(p); codeOf(err) != test.code || !strings.Contains(fmt.Sprint(details(err)), test.text) {
				t.Errorf("%s: %v, want code %d and %q", name, details(err), test.code, test.text)
			}
			n.del(p)
		}

		n.conf = map[string]any{}
		if err := json.Unmarshal(good, &n.conf); err != nil {
			t.Fatal(err)
		}
		n.refusedByState(t)
		n.clean()
	})
}

// TestRenamed attaches pods after the configuration has been given another name: the pods
// of the old one keep their addresses for themselves.
func TestRenamed(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		old := n.add(n.pod("old", nil))
		n.serve(old.ns, 80)
		n.conf["name"] = "renamed"
		taken := n.pod("taken", map[string]any{"ips": []string{old.addr(true) + "/24"}})
		if err := n.tryAdd(taken); err == nil || !strings.Contains(err.Error(), old.addr(true)) {
			t.Errorf("the address of a pod of the old name: %v", err)
		}

		young := n.add(n.pod("new", nil))
		if young.addr(true) == old.addr(true) || young.addr(false) == old.addr(false) {
			t.Errorf("addresses %v are assigned twice", young.result.IPs)
		}
		for _, addr := range []string{old.addr(true), old.addr(false)} {
			if _, err := ask(young.ns, "tcp", net.JoinHostPort(addr, "80")); err != nil {
				t.Errorf("from the new pod to the old one: %v", err)
			}
		}
		n.del(young)
		n.conf["name"] = "test"
		n.del(old)
		n.clean()
	})
}

// TestApart assigns the same address in two networks that the node does not route, on two
// bridges, and not on one.
func TestApart(t *testing.T) {
	n := newNode(t, ModeBridge)
	attach := func(name, bridge string, p *pod) string {
		t.Helper()
		n.conf = map[string]any{
			"cniVersion": "1.1.0", "name": name, "type": TypeBridge, "bridge": bridge,
			"ipam": map[string]any{"type": "host-local", "dataDir": n.leases, "subnet": "10.77.0.0/24"},
		}
		call := n.request("ADD", p)
		call.Type = TypeBridge
		output, err := n.plugin.Call(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			call.Command = "DEL"
			if _, err := n.plugin.Call(context.Background(), call); err != nil {
				t.Error(err)
			}
		})

		var result types100.Result
		if err := json.Unmarshal(output, &result); err != nil {
			t.Fatal(err)
		}
		return result.IPs[0].Address.IP.String()
	}

	first, apart := attach("first", "one", n.pod("first", nil)), attach("apart", "two", n.pod("apart", nil))
	beside := attach("beside", "one", n.pod("beside", nil))
	if apart != first || beside == first {
		t.Errorf("the first pod has %s, one on another bridge %s, and one on the same %s", first, apart, beside)
	}
}

// TestShortResult gives back addresses that a plugin later in the chain took out of the
// result.
func TestShortResult(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		p := n.add(n.pod("pod", nil))
		p.result.IPs = p.result.IPs[:1]
		data, err := json.Marshal(p.result)
		if err != nil {
			t.Fatal(err)
		}
		p.raw = data
		n.del(p)
		n.clean()
	})
}

// TestAddedTwice repeats an ADD, as a runtime that has lost its answer does: it fails, and
// the pod keeps what it has.
func TestAddedTwice(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		p := n.add(n.pod("twice", mappings(mapping(8080, 80, "tcp", ""))))
		n.serve(p.ns, 80)
		if _, err := n.plugin.Call(t.Context(), n.request("ADD", p)); codeOf(err) != 102 {
			t.Errorf("second ADD: %v", err)
		}

		if _, err := n.call("CHECK", p, nil); err != nil {
			t.Errorf("after the second ADD: %v", err)
		}
		if _, err := ask(n.outside, "tcp", nodeV4+":8080"); err != nil {
			t.Errorf("after the second ADD: %v", err)
		}
		if leased := n.leased(); len(leased) != 2 {
			t.Errorf("leases after the second ADD: %q", leased)
		}
		n.del(p)
		n.clean()
	})
}

// refusedByState makes ADD fail by what the node or the pod has.
func (n *node) refusedByState(t *testing.T) {
	t.Helper()
	p := n.pod("occupied", nil)
	n.inside(p.ns, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "other"})
	})
	if err := n.tryAdd(p); codeOf(err) != 102 {
		t.Errorf("pod with an eth0: %v", err)
	}
	n.del(p)
	if !slices.Contains(n.links(p.ns), "eth0") {
		t.Error("the foreign eth0 was deleted")
	}

	p = n.pod("no namespace", nil)
	p.path = "/nowhere"
	if err := n.tryAdd(p); codeOf(err) != types.ErrInvalidNetNS {
		t.Errorf("no namespace: %v", err)
	}

	ipam := n.conf["ipam"].(map[string]any)
	whole := ipam["ranges"]
	ipam["ranges"] = [][]map[string]any{{{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.9", "rangeEnd": "10.77.0.9"}}}
	last := n.add(n.pod("last", nil))
	p = n.pod("too many", nil)
	if err := n.tryAdd(p); codeOf(err) != types.ErrTryAgainLater || !strings.Contains(err.Error(), "10.77.0.9") {
		t.Errorf("exhausted: %v", err)
	}
	n.del(last)
	ipam["ranges"] = whole

	if n.conf["mode"] == ModeBridge {
		n.conf["bridge"], n.conf["name"] = "up", "other"
		ipam["ranges"] = [][]map[string]any{{{"subnet": "10.78.0.0/24"}}}
		p = n.pod("no bridge", nil)
		if err := n.tryAdd(p); codeOf(err) != 102 || !strings.Contains(err.Error(), "up") {
			t.Errorf("bridge of a foreign name: %v", err)
		}
		n.del(p)
	}
}

// TestStatusCollides tells what keeps the first pod of a network from being attached
// before there is one.
func TestStatusCollides(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		if _, err := n.call("STATUS", nil, nil); err != nil {
			t.Error(err)
		}
		p := n.add(n.pod("pod", nil))
		if _, err := n.call("STATUS", nil, nil); err != nil {
			t.Errorf("with a pod: %v", err)
		}
		n.del(p)
		if _, err := n.call("STATUS", nil, nil); err != nil {
			t.Errorf("after it: %v", err)
		}

		ipam := map[string]any{"type": "host-local", "dataDir": n.leases, "ranges": [][]map[string]any{{{"subnet": "192.0.2.0/24"}}}}
		_, err := n.call("STATUS", nil, map[string]any{"name": "collide", "ipam": ipam})
		if codeOf(err) != types.ErrPluginNotAvailable || !strings.Contains(err.Error(), "192.0.2.0/24 by up") {
			t.Errorf("subnet of the node's: %v", err)
		}
		n.clean()
	})
}

// TestHint explains unknown fields, and nothing else, by what is refused.
func TestHint(t *testing.T) {
	const hint = "is unknown is refused"
	for config, want := range map[string]bool{
		`{"ipmask":true}`: true,
		`{"ipam":{"ranges":[[{"subnet":"10.0.0.0/24","rangestop":"10.0.0.9"}]]}}`: true,
		`{"ipam":{"ranges":[[{"subnet":"10.0.0.1/24"}]]}}`:                        false,
		`{"mtu":"1500"}`: false,
	} {
		if err := Validate([]byte(config)); err == nil || strings.Contains(fmt.Sprint(details(err)), hint) != want {
			t.Errorf("%s: %v, want the hint: %t", config, details(err), want)
		}
	}
}

// details is an error with the part that CNI keeps apart.
func details(err error) error {
	var coded *types.Error
	if errors.As(err, &coded) {
		return fmt.Errorf("code %d: %s: %s", coded.Code, coded.Msg, coded.Details)
	}
	return err
}

// TestNoIPv6 attaches pods where IPv6 is disabled.
func TestNoIPv6(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		disable := func() error {
			return errors.Join(os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0), os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0))
		}
		p := n.pod("pod", nil)
		n.inside(p.ns, disable)
		n.add(p) // is enabled for the pod's interface
		n.del(p)

		n.inside(n.host, disable)
		n.conf["bridge"] = "br1"
		ipam := n.conf["ipam"].(map[string]any)
		ipam["ranges"] = [][]map[string]any{{{"subnet": "10.79.0.0/24"}}, {{"subnet": "fd79::/64"}}}
		p = n.pod("node", nil)
		if err := n.tryAdd(p); codeOf(err) != 103 || !strings.Contains(err.Error(), "IPv6") {
			t.Errorf("ADD on a node without IPv6: %v", err)
		}
		n.del(p)
		ipam["ranges"] = [][]map[string]any{{{"subnet": "10.79.0.0/24"}}}
		p = n.add(n.pod("four", nil))
		n.del(p)
		n.clean()
	})
}
