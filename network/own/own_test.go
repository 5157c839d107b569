package own

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

	"crisp/network/netdev"
	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// node is a network namespace with the plugin, connected to another one that stands
// for the rest of the world.
type node struct {
	t       *testing.T
	host    *os.File
	outside *os.File
	leases  string
	plugin  *Plugin
	// conf is the configuration, to which add and del add their arguments.
	conf map[string]any
}

// Addresses of the node and of the world outside.
const (
	nodeV4, nodeV6       = "192.0.2.1", "2001:db8::1"
	outsideV4, outsideV6 = "192.0.2.2", "2001:db8::2"
	uplinkMTU            = 1400
)

func newNode(t *testing.T, mode string) *node {
	t.Helper()
	testkit.Root(t)
	testkit.Leaks(t)
	n := &node{t: t, host: netnstest.New(t), outside: netnstest.New(t), leases: t.TempDir()}
	n.connect()
	n.conf = map[string]any{
		"cniVersion": "1.1.0", "name": "test", "type": Type, "mode": mode, "ipMasq": true,
		"capabilities": map[string]bool{"portMappings": true, "bandwidth": true, "ips": true, "mac": true},
		"ipam": map[string]any{
			"type": "host-local", "dataDir": n.leases,
			"ranges": [][]map[string]any{{{"subnet": "10.77.0.0/24"}}, {{"subnet": "fd77::/64"}}},
		},
	}
	n.open()
	return n
}

// open starts the plugin as the daemon does.
func (n *node) open() {
	n.t.Helper()
	n.inside(n.host, func() error {
		var err error
		n.plugin, err = Open(true)
		return err
	})
	n.t.Cleanup(func() {
		if err := n.plugin.Close(); err != nil {
			n.t.Error(err)
		}
	})
}

// inside runs f in a namespace.
func (n *node) inside(ns *os.File, f func() error) {
	n.t.Helper()
	if err := netns.Do(ns, f); err != nil {
		n.t.Fatal(err)
	}
}

// connect makes a link between the node and the world, which knows no route to pods.
func (n *node) connect() {
	n.t.Helper()
	n.inside(n.host, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up", MTU: uplinkMTU}, PeerName: "up", PeerNamespace: netlink.NsFd(n.outside.Fd())}
		return netlink.LinkAdd(veth)
	})

	for _, side := range []struct {
		ns       *os.File
		v4, v6   string
		default4 string
	}{{n.host, nodeV4, nodeV6, outsideV4}, {n.outside, outsideV4, outsideV6, ""}} {
		n.inside(side.ns, func() error {
			l, err := netlink.LinkByName("up")
			if err != nil {
				return err
			}
			v4, _ := netlink.ParseAddr(side.v4 + "/24")
			v6, _ := netlink.ParseAddr(side.v6 + "/64")
			v6.Flags = 0x02 // without duplicate detection
			if err := errors.Join(netlink.AddrAdd(l, v4), netlink.AddrAdd(l, v6), netlink.LinkSetUp(l)); err != nil || side.default4 == "" {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(side.default4)})
		})
	}
}

// pod is a namespace that is attached.
type pod struct {
	id     string
	ns     *os.File
	path   string
	args   map[string]any
	result *types100.Result
	raw    json.RawMessage
}

// pod makes a namespace. args are its runtime arguments.
func (n *node) pod(id string, args map[string]any) *pod {
	n.t.Helper()
	p := &pod{id: id, ns: netnstest.New(n.t), path: filepath.Join(n.t.TempDir(), "ns"), args: args}
	if err := netns.Pin(p.ns, p.path); err != nil {
		n.t.Fatal(err)
	}
	path := p.path
	n.t.Cleanup(func() {
		if err := netns.Unpin(path); err != nil {
			n.t.Error(err)
		}
	})
	return p
}

// call makes a call as libcni does.
func (n *node) call(command string, p *pod, more map[string]any) ([]byte, error) {
	return n.plugin.Call(n.t.Context(), n.requestWith(command, p, more))
}

func (n *node) request(command string, p *pod) Call { return n.requestWith(command, p, nil) }

func (n *node) requestWith(command string, p *pod, more map[string]any) Call {
	conf := maps.Clone(n.conf)
	maps.Copy(conf, more)
	call := Call{Command: command}
	if p != nil {
		call.ID, call.NetNS, call.IfName = p.id, p.path, "eth0"
		if len(p.args) > 0 {
			conf["runtimeConfig"] = p.args
		}
		if p.raw != nil && command != "ADD" {
			conf["prevResult"] = p.raw
		}
	}

	data, err := json.Marshal(conf)
	if err != nil {
		panic(err) // maps of JSON's own types
	}
	call.Config = data
	return call
}

func (n *node) tryAdd(p *pod) error {
	output, err := n.call("ADD", p, nil)
	if err != nil {
		return err
	}
	p.raw = output
	result, err := types100.NewResult(output)
	if err != nil {
		return err
	}
	p.result, err = types100.GetResult(result)
	return err
}

func (n *node) add(p *pod) *pod {
	n.t.Helper()
	if err := n.tryAdd(p); err != nil {
		n.t.Fatalf("ADD %s: %v", p.id, err)
	}
	return p
}

func (n *node) del(p *pod) {
	n.t.Helper()
	if _, err := n.call("DEL", p, nil); err != nil {
		n.t.Fatalf("DEL %s: %v", p.id, err)
	}
}

// addr returns the pod's address of IPv4 or IPv6.
func (p *pod) addr(v4 bool) string {
	for _, ip := range p.result.IPs {
		if (ip.Address.IP.To4() != nil) == v4 {
			return ip.Address.IP.String()
		}
	}
	return ""
}

// leased lists the addresses that are leased.
func (n *node) leased() []string {
	n.t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.leases, "test"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err == nil {
			list = append(list, e.Name())
		}
	}
	return list
}

// nft returns what nft prints in the node.
func (n *node) nft(args ...string) string {
	n.t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		testkit.Skip(n.t, "nft", err.Error())
	}
	var out []byte
	n.inside(n.host, func() error {
		var err error
		out, err = exec.CommandContext(n.t.Context(), "nft", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft %v: %w: %s", args, err, out)
		}
		return nil
	})
	return string(out)
}

// links lists the interfaces in a namespace.
func (n *node) links(ns *os.File) []string {
	n.t.Helper()
	var names []string
	n.inside(ns, func() error {
		list, err := netdev.Dump(netlink.LinkList)
		for _, l := range list {
			names = append(names, l.Attrs().Name)
		}
		return err
	})
	slices.Sort(names)
	return names
}

// clean fails the test if anything of a pod is left.
func (n *node) clean() {
	n.t.Helper()
	if left := n.leased(); len(left) > 0 {
		n.t.Errorf("leases are left: %v", left)
	}
	for line := range strings.Lines(n.nft("list", "ruleset")) {
		if strings.Contains(line, "comment \"test/") {
			n.t.Errorf("element is left: %s", line)
		}
	}

	n.settle("ifb0", "ifb1")
}

// settle waits until the node has no interfaces of pods but some: they are deleted a little
// later.
func (n *node) settle(others ...string) {
	n.t.Helper()
	var left []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		left = slices.DeleteFunc(n.links(n.host), func(name string) bool {
			return !strings.HasPrefix(name, "veth") && !strings.HasPrefix(name, "ifb") || slices.Contains(others, name)
		})
		if len(left) == 0 {
			return
		}
	}
	n.t.Errorf("interfaces are left: %v", left)
}

// serve answers on a port of a namespace with the client's address, by each protocol. A
// server with several addresses must name them: see [netnstest.Serve].
func (n *node) serve(ns *os.File, port uint16, addrs ...string) {
	n.t.Helper()
	if len(addrs) == 0 {
		addrs = []string{"::"}
	}
	for _, addr := range addrs {
		for _, protocol := range netnstest.Protocols() {
			netnstest.Serve(n.t, ns, protocol, netip.AddrPortFrom(netip.MustParseAddr(addr), port))
		}
	}
}

// ask connects from a namespace and returns the address that the server saw.
func ask(from *os.File, protocol, to string) (string, error) {
	return netnstest.Ask(from, protocol, netip.MustParseAddrPort(to), 3*time.Second)
}

// bothModes runs a test with a bridge, and routed.
func bothModes(t *testing.T, test func(t *testing.T, n *node)) {
	for _, mode := range []string{ModeBridge, ModeRouted} {
		t.Run(mode, func(t *testing.T) { test(t, newNode(t, mode)) })
	}
}

func mappings(list ...map[string]any) map[string]any { return map[string]any{"portMappings": list} }

func mapping(hostPort, containerPort int, protocol, hostIP string) map[string]any {
	return map[string]any{"hostPort": hostPort, "containerPort": containerPort, "protocol": protocol, "hostIP": hostIP}
}

// TestEveryWay tries each way to and from a pod, in both families and by TCP, UDP and SCTP,
// and which address the other side sees.
func TestEveryWay(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		web := n.add(n.pod("web", mappings(
			mapping(8080, 80, "tcp", ""), mapping(8080, 80, "udp", ""), mapping(8080, 80, "sctp", ""),
			mapping(8081, 80, "tcp", nodeV4), mapping(8081, 80, "tcp", nodeV6), mapping(8082, 80, "tcp", "127.0.0.1"),
		)))
		client := n.add(n.pod("client", nil))
		n.serve(web.ns, 80)
		n.serve(n.host, 9000, nodeV4, nodeV6, "10.77.0.1", "fd77::1")
		n.serve(n.outside, 9000)

		for _, protocol := range netnstest.Protocols() {
			t.Run(protocol, func(t *testing.T) {
				const tracked = "/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established"
				if _, err := os.Stat(tracked); protocol == "sctp" && err != nil {
					testkit.Skip(t, "connection tracking of SCTP", err.Error())
				}
				n.everyWay(t, protocol, web, client)
			})
		}

		for to, ok := range map[string]bool{
			"127.0.0.1:8080": true, "127.0.0.1:8082": true, nodeV4 + ":8081": true, net.JoinHostPort(nodeV6, "8081"): true,
			"127.0.0.1:8081": false, nodeV4 + ":8082": false, nodeV4 + ":80": false,
		} {
			if _, err := ask(n.host, "tcp", to); (err == nil) != ok {
				t.Errorf("%s from the node: %v, want success %v", to, err, ok)
			}
		}
		if t.Failed() {
			t.Log(n.nft("list", "ruleset"))
		}

		for range 2 {
			n.del(web)
			n.del(client)
		}
		n.clean()
	})
}

// everyWay tries each way by one protocol.
func (n *node) everyWay(t *testing.T, protocol string, web, client *pod) {
	t.Helper()
	for _, v4 := range []bool{true, false} {
		node, outside, gateway := nodeV4, outsideV4, "10.77.0.1"
		if !v4 {
			node, outside, gateway = nodeV6, outsideV6, "fd77::1"
		}

		pod, own := web.addr(v4), client.addr(v4)
		masked := own // a client's address as another pod sees it by a host port
		if n.conf["mode"] == ModeBridge {
			masked = gateway
		}
		for name, try := range map[string]struct {
			from *os.File
			to   string
			port int
			seen string
		}{
			"pod to pod":               {client.ns, pod, 80, own},
			"node to pod":              {n.host, pod, 80, gateway},
			"pod to node":              {client.ns, node, 9000, own},
			"pod to gateway":           {client.ns, gateway, 9000, own},
			"pod to outside":           {client.ns, outside, 9000, node},
			"host port from outside":   {n.outside, node, 8080, outside},
			"host port from the node":  {n.host, node, 8080, ""},
			"host port from a pod":     {client.ns, node, 8080, masked},
			"host port from itself":    {web.ns, node, 8080, gateway},
			"host port of the gateway": {client.ns, gateway, 8080, masked},
		} {
			seen, err := ask(try.from, protocol, net.JoinHostPort(try.to, fmt.Sprint(try.port)))
			if err != nil || try.seen != "" && seen != try.seen {
				t.Errorf("%s, IPv4 %v: server saw %q, %v; want %q", name, v4, seen, err, try.seen)
			}
		}
	}
}

// TestResult compares the answer with what is in the pod.
func TestResult(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		p := n.add(n.pod("one", map[string]any{"ips": []string{"10.77.0.44/24"}, "mac": "02:00:00:00:00:44"}))
		defer n.del(p)
		own := p.result.Interfaces[*p.result.IPs[0].Interface]
		if p.addr(true) != "10.77.0.44" || own.Name != "eth0" || own.Sandbox != p.path || own.Mac != "02:00:00:00:00:44" {
			t.Errorf("result is %s", p.raw)
		}

		n.inside(p.ns, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			if a := l.Attrs(); a.MTU != uplinkMTU || a.HardwareAddr.String() != own.Mac {
				t.Errorf("MTU is %d, want the default route's %d; hardware address is %s", a.MTU, uplinkMTU, a.HardwareAddr)
			}
			routes, err := netlink.RouteGet(net.ParseIP(outsideV4))
			if err != nil || len(routes) != 1 || routes[0].Gw.String() != "10.77.0.1" {
				t.Errorf("way outside is %v, %v", routes, err)
			}
			return nil
		})
		if _, err := n.call("CHECK", p, nil); err != nil {
			t.Errorf("CHECK: %v", err)
		}
	})
}

func TestVersions(t *testing.T) {
	n := newNode(t, ModeRouted)
	for i, version := range versions {
		n.conf["cniVersion"] = version
		p := n.pod(fmt.Sprint("pod", i), nil)
		if output, err := n.call("ADD", p, nil); err != nil || !strings.Contains(string(output), `"cniVersion":"`+version+`"`) {
			t.Errorf("version %s: %s, %v", version, output, err)
		}
		n.del(p)
	}
	n.clean()
	for _, version := range []string{"", "0.2.0", "0.3.0", "2.0.0"} {
		n.conf["cniVersion"] = version
		if err := n.tryAdd(n.pod("other"+version, nil)); codeOf(err) != types.ErrInvalidNetworkConfig {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

// codeOf returns the specification's code of an error.
func codeOf(err error) uint {
	var coded *types.Error
	if errors.As(err, &coded) {
		return coded.Code
	}
	return 0
}
