package link

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// remember makes entries as clients of these addresses of the node would.
func remember(t *testing.T, handle *netlink.Handle, protocol uint8, targets ...string) {
	t.Helper()
	for _, text := range targets {
		to := netip.MustParseAddrPort(text)
		family, client := netlink.InetFamily(unix.AF_INET), net.ParseIP("198.51.100.9").To4()
		if to.Addr().Is6() {
			family, client = unix.AF_INET6, net.ParseIP("2001:db8:9::9")
		}

		node := net.IP(to.Addr().AsSlice())
		flow := &netlink.ConntrackFlow{
			FamilyType: uint8(family), TimeOut: 100,
			Forward: netlink.IPTuple{SrcIP: client, DstIP: node, SrcPort: 999, DstPort: to.Port(), Protocol: protocol},
			Reverse: netlink.IPTuple{SrcIP: node, DstIP: client, SrcPort: to.Port(), DstPort: 999, Protocol: protocol},
		}
		if protocol == unix.IPPROTO_TCP {
			flow.ProtoInfo = &netlink.ProtoInfoTCP{State: nlEstablished}
		}
		if err := handle.ConntrackCreate(netlink.ConntrackTable, family, flow); err != nil {
			t.Fatalf("remember %s: %v", text, err)
		}
	}
}

// nlEstablished is TCP_CONNTRACK_ESTABLISHED.
const nlEstablished = 3

// remembered lists the targets of all entries.
func remembered(t *testing.T, handle *netlink.Handle) (targets []string) {
	t.Helper()
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := handle.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range flows {
			addr, _ := netip.AddrFromSlice(f.Forward.DstIP)
			target := netip.AddrPortFrom(addr.Unmap(), f.Forward.DstPort).String()
			if f.Forward.Protocol == unix.IPPROTO_TCP {
				target = "tcp " + target
			}
			targets = append(targets, target)
		}
	}
	slices.Sort(targets)
	return targets
}

// TestForgetUDP forgets what clients sent to ports of the node and nothing else, as the
// kernel finds it and as it is found in a list.
func TestForgetUDP(t *testing.T) {
	testkit.Root(t)
	for name, forget := range map[string]func(*netlink.Handle, uint8, []UDPPort) error{"kernel": forgetFamily, "list": forgetListed} {
		t.Run(name, func(t *testing.T) {
			if name == "kernel" && !testkit.KernelAtLeast(t, 6, 8) {
				testkit.Skip(t, "linux 6.8", "the kernel cannot look for entries to delete")
			}
			err := netns.Do(netnstest.New(t), func() error {
				handle, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
				if err != nil {
					return err
				}
				defer handle.Close()
				remember(t, handle, unix.IPPROTO_UDP, "192.0.2.1:53", "192.0.2.2:53", "192.0.2.1:54", "192.0.2.1:55", "192.0.2.2:55", "[2001:db8::1]:53", "[2001:db8::1]:55")
				remember(t, handle, unix.IPPROTO_TCP, "192.0.2.1:53")
				if got := remembered(t, handle); len(got) != 8 {
					t.Fatalf("remembered are %q", got)
				}

				if err := forget(handle, unix.AF_INET, []UDPPort{{Port: 53}, {netip.MustParseAddr("192.0.2.2"), 55}, {Port: 56}}); err != nil {
					return err
				}
				want := []string{"192.0.2.1:54", "192.0.2.1:55", "[2001:db8::1]:53", "[2001:db8::1]:55", "tcp 192.0.2.1:53"}
				if got := remembered(t, handle); !slices.Equal(got, want) {
					t.Errorf("remembered are %q, want %q", got, want)
				}
				if err := forget(handle, unix.AF_INET6, []UDPPort{{netip.MustParseAddr("2001:db8::1"), 53}, {netip.IPv6Unspecified(), 56}}); err != nil {
					return err
				}
				want = slices.DeleteFunc(want, func(s string) bool { return s == "[2001:db8::1]:53" })
				if got := remembered(t, handle); !slices.Equal(got, want) {
					t.Errorf("remembered are %q, want %q", got, want)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// BenchmarkForgetUDP forgets a port of which nothing is remembered, which is the usual case.
func BenchmarkForgetUDP(b *testing.B) {
	testkit.Root(b)
	for name, forget := range map[string]func(*netlink.Handle, uint8, []UDPPort) error{"kernel": forgetFamily, "list": forgetListed} {
		b.Run(name, func(b *testing.B) {
			handle, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
			if err != nil {
				b.Fatal(err)
			}
			defer handle.Close()
			for b.Loop() {
				if err := forget(handle, unix.AF_INET, []UDPPort{{Port: 1}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
