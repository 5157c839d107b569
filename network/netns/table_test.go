package netns_test

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/test/testkit"
)

// TestHold holds a network namespace, in which a server neither hears its clients nor refuses
// them, while its own loopback interface goes on.
func TestHold(t *testing.T) {
	testkit.Root(t)
	pod, client := netnstest.New(t), netnstest.New(t)
	addr := connect(t, pod, client)
	for _, protocol := range []string{"tcp", "udp"} {
		netnstest.Serve(t, pod, protocol, netip.AddrPortFrom(addr, 80))
	}
	ask := func(protocol string) error {
		_, err := netnstest.Ask(client, protocol, netip.AddrPortFrom(addr, 80), 300*time.Millisecond)
		return err
	}
	inside := func() error {
		_, err := netnstest.Ask(pod, "tcp", netip.AddrPortFrom(addr, 80), time.Second)
		return err
	}

	for range 2 {
		if err := netns.Hold(pod, "held"); err != nil {
			t.Fatal(err)
		}
	}
	for _, protocol := range []string{"tcp", "udp"} {
		if ask(protocol) == nil {
			t.Errorf("a held namespace answers by %s", protocol)
		}
	}
	if err := inside(); err != nil {
		t.Errorf("its own loopback interface: %v", err)
	}

	if err := netns.RemoveTable(pod, "held"); err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"tcp", "udp"} {
		if err := ask(protocol); err != nil {
			t.Errorf("let in again, by %s: %v", protocol, err)
		}
	}
}

// connect connects two network namespaces, and returns the address of the first.
func connect(t *testing.T, a, b *os.File) netip.Addr {
	t.Helper()
	addr := netip.MustParseAddr("10.9.8.1")
	err := netns.Do(a, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b", PeerNamespace: netlink.NsFd(b.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return up("a", addr)
	})
	if err == nil {
		err = netns.Do(b, func() error { return up("b", addr.Next()) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func up(name string, addr netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}
