package network_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"crisp/network"
	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/network/portforward"
	"crisp/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// machine stands for a node: a network namespace in which the network and its
// plugins run, so that the real machine's is not touched.
type machine struct {
	t               testing.TB
	host            *os.File
	leases, confDir string
	cache, common   string
	bins, builtins  []string
	net             *network.Network
	// initial are the interfaces that the namespace has from its beginning.
	initial []string
}

const bridgeChain = `{"cniVersion":"1.1.0","name":"test","plugins":[
	{"type":"bridge","bridge":"br0","isGateway":true,"ipMasq":true,"hairpinMode":true,
	 "ipam":{"type":"host-local","dataDir":%q,"routes":[{"dst":"0.0.0.0/0"}],
	         "ranges":[[{"subnet":"10.77.0.0/20"}],[{"subnet":"fd77::/64"}]]}},
	{"type":"portmap","capabilities":{"portMappings":true}}]}`

// The same network by crisp's own plugin, with a bridge and routed.
const (
	ownChain = `{"cniVersion":"1.1.0","name":"test","plugins":[
	{"type":"crisp-net","mode":%q,"bridge":"br0","ipMasq":true,"capabilities":{"portMappings":true},
	 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.77.0.0/20"}],[{"subnet":"fd77::/64"}]]}}]}`
	reference, ownBridge, ownRouted = "reference", "bridge", "routed"
)

// newMachine makes a machine, of which nothing must be left at the end of the test.
func newMachine(t testing.TB, kind string) *machine {
	t.Helper()
	testkit.Root(t)
	testkit.Leaks(t)
	return makeMachine(t, kind)
}

// makeMachine makes one of several machines.
func makeMachine(t testing.TB, kind string) *machine {
	t.Helper()
	bin, err := filepath.Abs(cmp.Or(os.Getenv("CRISP_CNI_BIN"), "../.cache/cni"))
	if err != nil {
		t.Fatal(err)
	}

	if _, err := os.Stat(filepath.Join(bin, "bridge")); kind == reference && err != nil {
		testkit.Skip(t, "cni-plugins", "there are no reference plugins where CRISP_CNI_BIN says, or in .cache/cni")
	}

	m := &machine{t: t, host: netnstest.New(t), leases: t.TempDir(), confDir: t.TempDir(), cache: t.TempDir(), common: t.TempDir(), bins: []string{bin}}
	err = netns.Do(m.host, func() error {
		list, err := netlink.LinkList()
		for _, l := range list {
			m.initial = append(m.initial, l.Attrs().Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	m.configure(kind)
	// The own network is that of the namespace in which it is opened.
	err = netns.Do(m.host, func() error {
		var err error
		m.net, err = network.Open(m.options())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.net.Close)
	return m
}

// configure installs a network configuration.
func (m *machine) configure(kind string) {
	m.t.Helper()
	conf := fmt.Sprintf(bridgeChain, m.leases)
	if kind != reference {
		conf = fmt.Sprintf(ownChain, kind, m.leases)
	}
	if err := os.WriteFile(filepath.Join(m.confDir, "10-test.conflist"), []byte(conf), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// everyKind runs a test with the reference plugins and with the own network.
func everyKind(t *testing.T, test func(*testing.T, *machine)) {
	for _, kind := range []string{reference, ownBridge, ownRouted} {
		t.Run(kind, func(t *testing.T) { test(t, newMachine(t, kind)) })
	}
}

// pod makes a pinned namespace.
func (m *machine) pod(id string) (network.Attachment, *os.File) {
	m.t.Helper()
	ns := netnstest.New(m.t)
	path := filepath.Join(m.t.TempDir(), "ns")
	if err := netns.Pin(ns, path); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := netns.Unpin(path); err != nil {
			m.t.Error(err)
		}
	})
	return network.Attachment{ID: id, NetNS: path, Name: id, Namespace: "default", UID: id}, ns
}

func (m *machine) attach(a network.Attachment) network.Result {
	m.t.Helper()
	var result network.Result
	start := time.Now()
	err := netns.Do(m.host, func() error {
		var err error
		result, err = m.net.Attach(m.t.Context(), a)
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Logf("attached in %v", time.Since(start).Round(time.Millisecond))
	return result
}

func (m *machine) detach(a network.Attachment) {
	m.t.Helper()
	start := time.Now()
	if err := netns.Do(m.host, func() error { return m.net.Detach(m.t.Context(), a) }); err != nil {
		m.t.Fatal(err)
	}
	m.t.Logf("detached in %v", time.Since(start).Round(time.Millisecond))
}

// released fails the test if an address is still leased.
func (m *machine) released() {
	m.t.Helper()
	entries, err := os.ReadDir(filepath.Join(m.leases, "test"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.t.Fatal(err)
	}
	for _, entry := range entries {
		if name := entry.Name(); name != "lock" && !strings.HasPrefix(name, "last_reserved_ip") {
			m.t.Errorf("lease of %s is left", name)
		}
	}
}

// clean fails the test if a lease or a packet filter's rule is left.
func (m *machine) clean() {
	m.t.Helper()
	m.released()
	var rules []byte
	err := netns.Do(m.host, func() error {
		var err error
		rules, err = exec.CommandContext(m.t.Context(), "iptables-save").Output()
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}

	for line := range strings.Lines(string(rules)) {
		if strings.Contains(line, "10.77.") {
			m.t.Errorf("rule is left: %s", line)
		}
	}
}

// echo answers on a port of all addresses in a namespace.
func echo(t testing.TB, ns *os.File) int {
	t.Helper()
	var l net.Listener
	err := netns.Do(ns, func() error {
		var err error
		l, err = net.Listen("tcp", ":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})

	return l.Addr().(*net.TCPAddr).Port
}

// talk sends something to an address and expects it back.
func talk(from *os.File, to string) error { return talkWithin(from, to, 20*time.Second) }

// talkQuickly is talk where it may fail.
func talkQuickly(from *os.File, to string) error { return talkWithin(from, to, 4*time.Second) }

func talkWithin(from *os.File, to string, patience time.Duration) error {
	var conn net.Conn
	err := netns.Do(from, func() error {
		var err error
		conn, err = net.DialTimeout("tcp", to, patience)
		return err
	})
	if err != nil {
		return err
	}

	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "ping"); err != nil {
		return err
	}

	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "ping" {
		return fmt.Errorf("got %q, %v", answer, err)
	}
	return nil
}

func TestPluginsConnectPods(t *testing.T) { everyKind(t, connectPods) }

func connectPods(t *testing.T, m *machine) {
	one, oneNS := m.pod("one")
	two, twoNS := m.pod("two")
	port := echo(t, oneNS)
	one.PortMappings = []network.PortMapping{{Protocol: "TCP", ContainerPort: int32(port), HostPort: 18080}}

	result := m.attach(one)
	m.attach(two)
	if len(result.IPs) != 2 || !result.IPs[0].Is4() || !result.IPs[1].Is6() || len(result.Unserved) > 0 {
		t.Fatalf("attached as %+v", result)
	}
	if !netip.MustParsePrefix("10.77.0.0/24").Contains(result.IPs[0]) {
		t.Errorf("address is %s", result.IPs[0])
	}

	p := strconv.Itoa(port)
	for name, try := range map[string]struct {
		from *os.File
		to   string
	}{
		"host to pod":           {m.host, net.JoinHostPort(result.IPs[0].String(), p)},
		"pod to pod":            {twoNS, net.JoinHostPort(result.IPs[0].String(), p)},
		"host port from host":   {m.host, "10.77.0.1:18080"},
		"host port from a pod":  {twoNS, "10.77.0.1:18080"},
		"host port from itself": {oneNS, "10.77.0.1:18080"},
	} {
		if err := talk(try.from, try.to); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	conn, err := portforward.Dial(t.Context(), oneNS, port)
	if err != nil {
		t.Errorf("forwarded port: %v", err)
	} else {
		conn.Close()
	}

	stats, err := netns.Interfaces(oneNS)
	if err != nil {
		t.Fatal(err)
	}

	if i := slices.IndexFunc(stats, func(s netns.InterfaceStats) bool { return s.Name.Is("eth0") }); i < 0 || stats[i].Rx.Bytes == 0 {
		t.Errorf("interfaces are %+v", stats)
	}

	for range 2 {
		m.detach(one)
		m.detach(two)
	}

	m.clean()
	// Interfaces may be deleted a little later.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		stats, err := netns.Interfaces(oneNS)
		if err == nil && len(stats) == 1 {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("interfaces are %+v, %v", stats, err)
		}
	}
}

// After a restart of the machine the namespace is gone; the lease is not.
func TestPluginsReleaseWhatHasNoNamespace(t *testing.T) { everyKind(t, releaseWithoutNamespace) }

func releaseWithoutNamespace(t *testing.T, m *machine) {
	pod, _ := m.pod("one")
	pod.PortMappings = []network.PortMapping{{ContainerPort: 80, HostPort: 18080}}
	m.attach(pod)
	if err := netns.Unpin(pod.NetNS); err != nil {
		t.Fatal(err)
	}
	m.detach(pod)
	// The bridge plugin keeps its masquerading rules in this case, which do
	// not survive a restart either.
	m.released()
}

func TestPluginsReleaseAfterCancel(t *testing.T) { everyKind(t, releaseAfterCancel) }

func releaseAfterCancel(t *testing.T, m *machine) {
	pod, _ := m.pod("one")
	for _, after := range []time.Duration{time.Microsecond, 100 * time.Microsecond, time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		err := netns.Do(m.host, func() error {
			_, err := m.net.Attach(ctx, pod)
			return err
		})
		cancel()

		if err == nil {
			m.detach(pod)
		}
		m.clean()
	}

	m.attach(pod)
	m.detach(pod)
	m.clean()
}
