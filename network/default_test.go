package network_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"crisp/network"
	"crisp/network/cni"
	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/test/testkit"
)

// bare is a node without a network configuration.
func bare(t *testing.T, useDefault bool) *machine {
	t.Helper()
	testkit.Root(t)
	testkit.Leaks(t)
	m := &machine{t: t, host: netnstest.New(t), confDir: filepath.Join(t.TempDir(), "net.d")}
	m.reopen(t.TempDir(), useDefault)
	return m
}

// reopen opens the network as the next daemon does.
func (m *machine) reopen(cache string, useDefault bool, cluster ...netip.Prefix) {
	m.t.Helper()
	if m.net != nil {
		m.net.Close()
	}
	err := netns.Do(m.host, func() error {
		var err error
		m.net, err = network.Open(network.Options{ConfDir: m.confDir, CacheDir: cache, Own: true, Default: useDefault, Cluster: cluster})
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(m.net.Close)
}

// TestDefaultNetworkOff says what the node waits for.
func TestDefaultNetworkOff(t *testing.T) {
	m := bare(t, false)
	err := m.net.Status(t.Context())
	if !errors.Is(err, network.ErrNotReady) || !errors.Is(err, cni.ErrNoConfig) || !strings.Contains(err.Error(), m.confDir) || !strings.Contains(err.Error(), "default_network") {
		t.Errorf("status is %v", err)
	}
	if err := m.net.SetPodCIDR("not a CIDR"); err != nil {
		t.Errorf("a pod CIDR matters: %v", err)
	}
	if _, err := os.Stat(filepath.Join(m.confDir)); err == nil {
		t.Error("the configuration directory was made")
	}
}

// TestDefaultNetwork attaches pods without any configuration. One that appears later
// applies to new pods, and those attached before are detached as they were attached.
func TestDefaultNetwork(t *testing.T) {
	m := bare(t, true)
	cache := t.TempDir()
	m.reopen(cache, true)
	// A route to the first subnet that would be chosen.
	if err := netns.Do(m.host, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(10, 213, 7, 0), Mask: net.CIDRMask(24, 32)}})
	}); err != nil {
		t.Fatal(err)
	}

	if err := m.net.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	one, oneNS := m.pod("default-one")
	first := m.attach(one)
	if want := netip.MustParsePrefix("10.214.0.0/16"); len(first.IPs) != 1 || !want.Contains(first.IPs[0]) {
		t.Errorf("pod has %v, want one of %s", first.IPs, want)
	}

	// The subnet is chosen once.
	m.reopen(cache, true)
	two, twoNS := m.pod("default-two")
	second := m.attach(two)
	port := echo(t, oneNS)
	if err := talk(twoNS, netip.AddrPortFrom(first.IPs[0], uint16(port)).String()); err != nil {
		t.Errorf("from %v to %v: %v", second.IPs, first.IPs, err)
	}

	if err := m.net.SetPodCIDR("10.99.3.0/24,fd99::/64"); err != nil {
		t.Fatal(err)
	}
	three, _ := m.pod("default-three")
	if ips := m.attach(three).IPs; len(ips) != 2 || !netip.MustParsePrefix("10.99.3.0/24").Contains(ips[0]) || !netip.MustParsePrefix("fd99::/64").Contains(ips[1]) {
		t.Errorf("with a pod CIDR, a pod has %v", ips)
	}
	for _, wrong := range []string{"10.99.3.1", "10.99.3.0/32", "10.99.3.0/24,10.99.3.0/24", "x"} {
		if err := m.net.SetPodCIDR(wrong); !errors.Is(err, network.ErrInvalid) {
			t.Errorf("pod CIDR %q: %v", wrong, err)
		}
	}

	// The configuration is of the same subnet, and has its own directory of leases.
	if err := m.net.SetPodCIDR("10.77.0.0/24"); err != nil {
		t.Fatal(err)
	}
	four, _ := m.pod("default-four")
	same := m.attach(four).IPs
	if err := os.Mkdir(m.confDir, 0o755); err != nil {
		t.Fatal(err)
	}
	m.leases = t.TempDir()
	m.configure(ownBridge)
	five, _ := m.pod("default-five")
	if ips := m.attach(five).IPs; !netip.MustParsePrefix("10.77.0.0/24").Contains(ips[0]) || ips[0] == same[0] {
		t.Errorf("with a configuration, a pod has %v; one of the default network has %v", ips, same)
	}
	for _, pod := range []network.Attachment{one, two, three, four, five} {
		m.detach(pod)
	}
	m.released()
	for _, ip := range first.IPs {
		if _, err := os.Stat(filepath.Join(cache, "leases", "crisp", ip.String())); err == nil {
			t.Errorf("lease of %s is left", ip)
		}
	}
}

// TestDefaultNetworkOfCluster waits for the node's part of a cluster's networks. What an
// earlier daemon chose by itself, or had in another cluster, is not used for it.
func TestDefaultNetworkOfCluster(t *testing.T) {
	m := bare(t, true)
	cache := t.TempDir()
	m.reopen(cache, true)
	alone, _ := m.pod("alone")
	m.attach(alone)

	cluster := []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd99::/48")}
	waits := func() {
		t.Helper()
		err := m.net.Status(t.Context())
		if !errors.Is(err, network.ErrNotReady) || !strings.Contains(err.Error(), "waits for") || !strings.Contains(err.Error(), "kubelet") {
			t.Errorf("status is %v", err)
		}
	}
	m.reopen(cache, true, cluster...)
	waits()
	for _, foreign := range []string{"10.98.3.0/24", "10.0.0.0/8", "10.99.3.0/24,fd98::/64"} {
		if err := m.net.SetPodCIDR(foreign); !errors.Is(err, network.ErrInvalid) || !strings.Contains(err.Error(), "cluster_cidrs") {
			t.Errorf("pod CIDR %q: %v", foreign, err)
		}
	}
	waits()

	// kubelet passes it on once: the next daemon knows it.
	if err := m.net.SetPodCIDR("10.99.3.0/24,fd99:0:0:3::/64"); err != nil {
		t.Fatal(err)
	}
	for _, of := range [][]netip.Prefix{cluster, nil, cluster} {
		m.reopen(cache, true, of...)
		if err := m.net.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(cache, "default.conflist"))
		if err != nil {
			t.Fatal(err)
		}
		if direct := strings.Contains(string(text), `"fd99::/48"`); direct != (len(of) > 0) {
			t.Errorf("in the cluster %v, the configuration is %s", of, text)
		}
	}
	member, _ := m.pod("member")
	if ips := m.attach(member).IPs; len(ips) != 2 || !netip.MustParsePrefix("10.99.3.0/24").Contains(ips[0]) {
		t.Errorf("with a pod CIDR, a pod has %v", ips)
	}

	m.reopen(cache, true, netip.MustParsePrefix("10.55.0.0/16"))
	waits()
	m.detach(alone)
	m.detach(member)
	if left, err := filepath.Glob(filepath.Join(cache, "leases", "crisp", "*[.:]*[.:]*")); err != nil || len(left) > 0 {
		t.Errorf("leases are left: %q, %v", left, err)
	}
}
