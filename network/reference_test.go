package network_test

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network"
	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/network/own"
	"crisp/test/testkit"
)

// others are plugins that neither crisp serves nor its tests make.
type others struct {
	// conf has %[1]q for the directory of leases, and %[2]q for another one.
	conf string
	// kind is the kind of interface that the kernel must have, "" for any.
	kind string
	// builtins are served by crisp, within the chain.
	builtins []string
	// prepare changes the node before, and returns what is done after.
	prepare func(m *machine, outside *os.File, dir string) (after func())
	// inside checks what the pod has; detached is what is checked after DEL.
	inside   func(ns *os.File) error
	detached func(m *machine, ns *os.File) error
	// once says that a second DEL fails: the plugin host-device does not expect one.
	once bool
	// silent pods reach nobody.
	silent bool
	// capabilities are asked for and expected to be served.
	capabilities bool
}

// ptpChain is a pod's own network, with plugins that change it. %s is for more of them.
const ptpChain = `{"cniVersion":"1.0.0","name":"test","plugins":[
	{"type":"ptp","ipMasq":true,"mtu":1400,"ipam":{"type":"host-local","dataDir":%%[1]q,"subnet":"10.77.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}%s]}`

const changing = `,{"type":"tuning","dataDir":%[2]q,"capabilities":{"mac":true},"sysctl":{"net.core.somaxconn":"500"},"mtu":1300},
	{"type":"firewall"},{"type":"bandwidth","capabilities":{"bandwidth":true}},{"type":"portmap","capabilities":{"portMappings":true},"snat":true}`

// referenceChains are the plugins by what is tested of them.
func referenceChains() map[string]others {
	onUplink := func(rest string) string {
		return `{"cniVersion":"1.1.0","name":"test","plugins":[` + rest + `]}`
	}
	tuned := func(ns *os.File) error { return errors.Join(sysctlIs(ns, "core/somaxconn", "500"), mtuIs(ns, 1300)) }
	const static = `"ipam":{"type":"static","addresses":[{"address":"192.0.2.50/24"},{"address":"2001:db8::50/64"}]}`

	return map[string]others{
		"macvlan, static": {kind: "macvlan", conf: onUplink(`{"type":"macvlan","master":"up","mode":"bridge",` + static + `}`)},
		"macvlan, old":    {kind: "macvlan", conf: strings.Replace(onUplink(`{"type":"macvlan","master":"up","mode":"bridge",`+static+`}`), "1.1.0", "0.3.1", 1)},
		"macvlan, dhcp":   {kind: "macvlan", prepare: dhcp, conf: onUplink(`{"type":"macvlan","master":"up","ipam":{"type":"dhcp","daemonSocketPath":%[2]q}}`)},
		"ipvlan":          {kind: "ipvlan", conf: onUplink(`{"type":"ipvlan","master":"up","mode":"l2",` + static + `}`)},
		"host-device":     {prepare: lend, detached: givenBack, once: true, conf: onUplink(`{"type":"host-device","device":"lent",` + static + `}`)},
		"ptp":             {conf: fmt.Sprintf(ptpChain, "")},
		"ptp, changed":    {conf: fmt.Sprintf(ptpChain, changing), inside: tuned, capabilities: true},
		"ptp, changed by crisp": {
			conf: fmt.Sprintf(ptpChain, changing), inside: tuned, capabilities: true,
			builtins: []string{own.TypeTuning, own.TypeFirewall, own.TypeBandwidth},
		},
		"ptp, sbr": {
			conf:     fmt.Sprintf(ptpChain, `,{"type":"sbr","table":777}`),
			inside:   func(ns *os.File) error { return hasRule(ns, 777, true) },
			detached: func(_ *machine, ns *os.File) error { return hasRule(ns, 777, false) },
		},
		"crisp-net, sbr": {
			conf: onUplink(`{"type":"crisp-net","mode":"routed","ipMasq":true,"ipam":{"type":"host-local","dataDir":%[1]q,"subnet":"10.77.0.0/24"}},{"type":"sbr","table":777},
				{"type":"tuning","dataDir":%[2]q,"sysctl":{"net.core.somaxconn":"500"},"mtu":1300}`),
			inside:   func(ns *os.File) error { return errors.Join(hasRule(ns, 777, true), tuned(ns)) },
			detached: func(_ *machine, ns *os.File) error { return hasRule(ns, 777, false) },
		},
		"vrf": {
			kind: "vrf", silent: true, conf: fmt.Sprintf(ptpChain, `,{"type":"vrf","vrfname":"blue"}`),
			inside: func(ns *os.File) error { return hasLink(ns, "blue") },
		},
		"dummy": {kind: "dummy", silent: true, conf: onUplink(`{"type":"dummy",` + static + `}`)},
		"bridge, loopback": {
			conf: onUplink(`{"type":"bridge","bridge":"br0","isDefaultGateway":true,"ipMasq":true,"ipam":{"type":"host-local","dataDir":%[1]q,"subnet":"10.77.0.0/24"}},{"type":"loopback"}`),
		},
	}
}

// TestReferencePlugins attaches pods by each of the reference plugins, alone and chained,
// checks and detaches them, and expects nothing to be left.
func TestReferencePlugins(t *testing.T) {
	for name, test := range referenceChains() {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, reference)
			if test.kind != "" {
				testkit.Interface(t, test.kind)
			}
			outside := m.world()
			netnstest.Serve(t, outside, "tcp", netip.AddrPortFrom(netip.MustParseAddr(outsideV4), outsidePort))
			dir := filepath.Join(t.TempDir(), "dir")
			after := func() {}
			if test.prepare != nil {
				after = test.prepare(m, outside, dir)
			}
			m.write(format(test.conf, m.leases, dir))
			m.serve(test.builtins...)

			before := m.iptables()
			for i := range 2 { // what is left would be in the way of the second
				m.throughLife(t, test, outside, fmt.Sprint("pod", i))
			}
			after()
			m.settled("up", "br0", "lent")
			m.released()
			if left := m.iptables(); !slices.Equal(left, before) {
				t.Errorf("iptables had %q and has %q", before, left)
			}
		})
	}
}

// format fills in a configuration, which need not use both.
func format(conf, leases, dir string) string {
	return strings.NewReplacer("%[1]q", fmt.Sprintf("%q", leases), "%[2]q", fmt.Sprintf("%q", dir)).Replace(conf)
}

// throughLife attaches a pod, tries it, and detaches it twice.
func (m *machine) throughLife(t *testing.T, test others, outside *os.File, id string) {
	t.Helper()
	if err := errors.Join(m.net.Ready(), netns.Do(m.host, func() error { return m.net.Status(t.Context()) })); err != nil {
		t.Fatal(err)
	}
	pod, ns := m.pod(id)
	if test.capabilities {
		pod.MAC = chosenMAC
		pod.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "100M", "kubernetes.io/egress-bandwidth": "100M"}
		pod.PortMappings = []network.PortMapping{{Protocol: "tcp", ContainerPort: podPort, HostPort: hostPort}}
	}
	result := m.attach(pod)
	if len(result.IPs) == 0 || len(result.Unserved) > 0 {
		t.Errorf("attached as %+v", result)
	}
	for _, addr := range result.IPs {
		if !usable(t, ns, addr) {
			t.Errorf("the pod does not have %s", addr)
		}
	}
	if err := netns.Do(m.host, func() error { return m.net.CheckPod(t.Context(), pod.ID) }); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if found := m.check(network.Check{}); len(found) > 0 {
		t.Errorf("found %+v", found)
	}

	if test.inside != nil {
		if err := test.inside(ns); err != nil {
			t.Error(err)
		}
	}
	if !test.silent {
		if answer := seen(ns, "tcp", netip.AddrPortFrom(netip.MustParseAddr(outsideV4), outsidePort)); answer == "no" {
			t.Error("the pod does not reach outside")
		}
	}
	if test.capabilities {
		netnstest.Serve(t, ns, "tcp", netip.AddrPortFrom(netip.IPv6Unspecified(), podPort))
		if answer := seen(outside, "tcp", netip.AddrPortFrom(netip.MustParseAddr(nodeV4), hostPort)); answer != outsideV4 {
			t.Errorf("the host port is reached as %q", answer)
		}
		if l := attributesIn(t, ns, "eth0"); !strings.Contains(l, chosenMAC) {
			t.Errorf("the pod's interface has %s", l)
		}
	}

	m.detach(pod)
	if !test.once {
		m.detach(pod)
	}
	for end := time.Now().Add(10 * time.Second); hasLink(ns, "eth0") == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Error("the pod's interface is left")
			break
		}
	}
	if test.detached != nil {
		if err := test.detached(m, ns); err != nil {
			t.Error(err)
		}
	}
}

// iptables returns the rules that are not of a chain, sorted.
func (m *machine) iptables() []string {
	m.t.Helper()
	var rules []string
	for line := range strings.Lines(m.run("iptables-save")) {
		// The programs keep chains of their own, and rules that are not of a pod.
		if strings.Contains(line, "10.77.") || strings.Contains(line, fmt.Sprint(hostPort)) {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	slices.Sort(rules)
	return rules
}

// lend makes an interface of the node whose other end is outside.
func lend(m *machine, outside *os.File, _ string) func() {
	m.t.Helper()
	err := netns.Do(m.host, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lent"}, PeerName: "lent", PeerNamespace: netlink.NsFd(outside.Fd())})
	})
	if err != nil {
		m.t.Fatal(err)
	}

	err = netns.Do(outside, func() error {
		up, err := netlink.LinkByName("up")
		if err != nil {
			return err
		}
		// The network moves from the one to the other.
		return netlink.LinkSetDown(up)
	})
	if err != nil {
		m.t.Fatal(err)
	}
	address(m.t, outside, "lent", outsideV4+"/24", outsideV6+"/64")
	return func() {}
}

// givenBack expects the lent interface on the node.
func givenBack(m *machine, _ *os.File) error { return hasLink(m.host, "lent") }

func hasLink(ns *os.File, name string) error {
	return netns.Do(ns, func() error {
		_, err := netlink.LinkByName(name)
		return err
	})
}

// hasRule expects a rule for a table of routes, or none.
func hasRule(ns *os.File, table int, want bool) error {
	return netns.Do(ns, func() error {
		rules, err := netlink.RuleList(netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		if has := slices.ContainsFunc(rules, func(r netlink.Rule) bool { return r.Table == table }); has != want {
			return fmt.Errorf("rule for table %d: %v, want %v", table, has, want)
		}
		return nil
	})
}

func sysctlIs(ns *os.File, name, want string) error {
	return netns.Do(ns, func() error {
		value, err := os.ReadFile("/proc/sys/net/" + name)
		if err == nil && strings.TrimSpace(string(value)) != want {
			err = fmt.Errorf("%s is %s, want %s", name, value, want)
		}
		return err
	})
}

func mtuIs(ns *os.File, want int) error {
	return netns.Do(ns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil && l.Attrs().MTU != want {
			err = fmt.Errorf("MTU is %d, want %d", l.Attrs().MTU, want)
		}
		return err
	})
}

// dhcp runs the daemon of the plugin dhcp on the node, and a server outside. After the test
// every lease must have been given back.
func dhcp(m *machine, outside *os.File, socket string) func() {
	m.t.Helper()
	var given, released atomic.Int32
	serveDHCP(m.t, outside, &given, &released)

	daemon := exec.Command(filepath.Join(m.bins[0], "dhcp"), "daemon", "-socketpath", socket, "-broadcast")
	daemon.Stderr = m.t.Output()
	if err := netns.Do(m.host, daemon.Start); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = daemon.Process.Signal(unix.SIGTERM)
		_ = daemon.Wait() // by the signal
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(end) {
			m.t.Fatal(err)
		}
	}
	return func() {
		for end := time.Now().Add(5 * time.Second); released.Load() < 2 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if given.Load() != 2 || released.Load() != 2 {
			m.t.Errorf("%d leases were given, %d given back", given.Load(), released.Load())
		}
	}
}

// Messages and options of DHCP.
const (
	dhcpDiscover, dhcpOffer, dhcpRequest, dhcpAck, dhcpRelease = 1, 2, 3, 5, 7

	optionMask, optionRouter, optionLease, optionMessage, optionServer, optionEnd = 1, 3, 51, 53, 54, 255

	dhcpHeader = 240 // bytes before the options
)

// serveDHCP gives the address 192.0.2.77 to each client. What it gets it reads from the
// interface: a client gives its lease back without an address of its own.
func serveDHCP(t testing.TB, ns *os.File, given, released *atomic.Int32) {
	t.Helper()
	var frames *os.File
	var conn net.PacketConn
	err := netns.Do(ns, func() error {
		const ip = unix.ETH_P_IP<<8 | unix.ETH_P_IP>>8 // in the network's order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, ip&0xffff)
		if err != nil {
			return err
		}
		frames = os.NewFile(uintptr(fd), "frames")
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			failed := raw.Control(func(fd uintptr) {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.BindToDevice(int(fd), "up"))
			})
			return cmp.Or(failed, err)
		}}
		conn, err = config.ListenPacket(t.Context(), "udp4", ":67")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			size, err := frames.Read(buf)
			if err != nil {
				return
			}
			request, answer := toServer(buf[:size]), byte(0)
			switch messageOf(request) {
			case dhcpDiscover:
				answer = dhcpOffer
			case dhcpRequest:
				answer = dhcpAck
				given.Add(1)
			case dhcpRelease:
				released.Add(1)
			}
			if answer != 0 {
				conn.WriteTo(dhcpAnswer(request, answer), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
			}
		}
	}()
	t.Cleanup(func() {
		frames.Close()
		conn.Close()
		<-done
	})
}

// toServer returns the content of a packet to the port of servers, nil of any other.
func toServer(p []byte) []byte {
	const udpHeader = 8
	if len(p) < 20 || p[9] != unix.IPPROTO_UDP {
		return nil
	}
	p = p[min(len(p), int(p[0]&0x0f)*4):]
	if len(p) < udpHeader || binary.BigEndian.Uint16(p[2:]) != 67 {
		return nil
	}
	return p[udpHeader:]
}

// messageOf returns the kind of a message.
func messageOf(p []byte) byte {
	for at := dhcpHeader; at+2 < len(p) && p[at] != optionEnd; at += 2 + int(p[at+1]) {
		if p[at] == optionMessage {
			return p[at+2]
		}
	}
	return 0
}

// dhcpAnswer answers a request.
func dhcpAnswer(request []byte, kind byte) []byte {
	const reply, lease = 2, 3600
	server := netip.MustParseAddr(outsideV4).AsSlice()
	p := slices.Clone(request[:dhcpHeader])
	p[0] = reply
	copy(p[16:], netip.MustParseAddr("192.0.2.77").AsSlice())
	copy(p[20:], server)
	option := func(code byte, value []byte) { p = append(append(p, code, byte(len(value))), value...) }
	option(optionMessage, []byte{kind})
	option(optionServer, server)
	option(optionLease, binary.BigEndian.AppendUint32(nil, lease))
	option(optionMask, []byte{255, 255, 255, 0})
	option(optionRouter, server)
	return append(p, optionEnd)
}
