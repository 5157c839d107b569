package netdev

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// onNode runs a test in a namespace that stands for the node, with a device of the
// given name.
func onNode(t *testing.T, name string, test func(t *testing.T, pod *os.File)) {
	t.Helper()
	testkit.Root(t)
	node, pod := netnstest.New(t), netnstest.New(t)
	err := netns.Do(node, func() error {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1400}, PeerName: "peer"}))
		test(t, pod)
		return nil
	})
	must(t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func address(t *testing.T, cidr string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	return a
}

// describe returns whether a device is there, with its MTU, state and addresses.
func describe(name string) string {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return "none"
	}
	out := []string{"down"}
	if link.Attrs().Flags&net.FlagUp != 0 {
		out[0] = "up"
	}
	if link.Attrs().MTU == 1400 {
		out = append(out, "1400")
	}

	addresses, _ := netlink.AddrList(link, netlink.FAMILY_ALL)
	for _, a := range addresses {
		if a.IP.IsGlobalUnicast() {
			out = append(out, a.IPNet.String())
		}
	}
	return strings.Join(out, " ")
}

// lend moves a device into the pod and returns what is known of it then.
func lend(t *testing.T, pod *os.File, host, name string) (Device, error) {
	t.Helper()
	d, err := Examine(host, name)
	if err == nil {
		d.Index, err = Move(pod, host, d)
	}
	return d, err
}

func describeIn(t *testing.T, ns *os.File, name string) (state string) {
	t.Helper()
	must(t, netns.Do(ns, func() error { state = describe(name); return nil }))
	return state
}

// TestMove moves a device there and back.
func TestMove(t *testing.T) {
	onNode(t, "eth1", func(t *testing.T, pod *os.File) {
		link, err := netlink.LinkByName("eth1")
		must(t, err)
		for _, cidr := range []string{"192.0.2.7/24", "2001:db8::7/64"} {
			must(t, netlink.AddrAdd(link, address(t, cidr)))
		}
		must(t, netlink.LinkSetUp(link))

		want := "up 1400 192.0.2.7/24 2001:db8::7/64"
		for range 2 {
			d, err := lend(t, pod, "eth1", "net1")
			must(t, err)
			if has, err := Has(pod, "net1"); err != nil || !has {
				t.Errorf("the pod has it: %v, error %v", has, err)
			}
			if here, there := describe("eth1"), describeIn(t, pod, "net1"); here != "none" || there != want {
				t.Errorf("on the node %s, in the pod %s, want %s", here, there, want)
			}

			must(t, Return(pod, "eth1", d))
			must(t, Return(pod, "eth1", d))
			if here, there := describe("eth1"), describeIn(t, pod, "net1"); here != want || there != "none" {
				t.Errorf("on the node %s, want %s, in the pod %s", here, want, there)
			}
		}
	})
}

// TestNames moves a device whose name the pod uses for its own interface, and
// returns one whose name the node has given to another meanwhile.
func TestNames(t *testing.T) {
	onNode(t, "eth0", func(t *testing.T, pod *os.File) {
		must(t, netns.Do(pod, func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "pods"})
		}))

		if _, err := lend(t, pod, "eth0", "eth0"); !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), "eth0") {
			t.Errorf("a taken name: error %v", err)
		}
		if state := describe("eth0"); state != "down 1400" {
			t.Errorf("after an error the node's device is %s", state)
		}

		d, err := lend(t, pod, "eth0", "data")
		must(t, err)
		if state := describeIn(t, pod, "data"); state != "up 1400" {
			t.Errorf("in the pod it is %s", state)
		}
		if state := describeIn(t, pod, "eth0"); state != "down" {
			t.Errorf("the pod's own interface is %s", state)
		}

		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "another"}))
		if err := Return(pod, "eth0", d); !errors.Is(err, ErrNameTaken) {
			t.Errorf("return to a taken name: error %v", err)
		}
		if here, there := describe("dev0"), describeIn(t, pod, "data"); here != "down 1400" || there != "none" {
			t.Errorf("on the node %s, in the pod %s", here, there)
		}
	})
}

// TestRefused moves nothing.
func TestRefused(t *testing.T) {
	onNode(t, "eth1", func(t *testing.T, pod *os.File) {
		for _, c := range []struct {
			host, name string
			want       error
		}{
			{"eth9", "net1", ErrNotFound}, {"lo", "net1", ErrImmovable},
			{"eth1", "", ErrName}, {"eth1", "a/b", ErrName}, {"eth1", "%d", ErrName}, {"eth1", "a b", ErrName}, {"eth1", "..", ErrName},
			{"eth1", "sixteencharacter", ErrName}, {"../eth1", "net1", ErrName},
		} {
			if _, err := lend(t, pod, c.host, c.name); !errors.Is(err, c.want) {
				t.Errorf("move %s to %s: error %v, want %v", c.host, c.name, err, c.want)
			}
		}
		if state := describe("eth1"); state != "down 1400" {
			t.Errorf("the device is %s", state)
		}
		must(t, Return(pod, "eth9", Device{Name: "net9"}))
	})
}

// TestHostilePod lends a device to a pod that renames it, puts another in its place and
// gives both addresses: the node gets its own back, with what it had.
func TestHostilePod(t *testing.T) {
	onNode(t, "eth1", func(t *testing.T, pod *os.File) {
		d, err := lend(t, pod, "eth1", "net1")
		must(t, err)
		must(t, netns.Do(pod, func() error {
			own, err := netlink.LinkByName("net1")
			must(t, err)
			must(t, netlink.LinkSetDown(own))
			must(t, netlink.LinkSetName(own, "hidden"))
			must(t, netlink.AddrAdd(own, address(t, "203.0.113.1/1")))
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "net1"}, PeerName: "evil"})
		}))

		must(t, Return(pod, "eth1", d))
		if here := describe("eth1"); here != "down 1400" {
			t.Errorf("the node gets %s", here)
		}
		if there := describeIn(t, pod, "net1"); there != "down" {
			t.Errorf("the pod's own device is %s", there)
		}
		must(t, netns.Do(pod, func() error {
			own, err := netlink.LinkByName("net1")
			must(t, err)
			must(t, netlink.LinkDel(own))
			return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "net1", Index: d.Index}})
		}))
		if err := Return(pod, "eth2", d); err != nil || describe("eth2") != "none" {
			t.Errorf("a device of another kind with the same index: error %v, the node has %s", err, describe("eth2"))
		}
	})
}

// TestDump asks again for a list that was interrupted, and not for ever.
func TestDump(t *testing.T) {
	for _, c := range []struct {
		interrupted int
		err         error
	}{{0, nil}, {3, nil}, {1000, netlink.ErrDumpInterrupted}} {
		asked := 0
		list, err := Dump(func() ([]int, error) {
			if asked++; asked <= c.interrupted {
				return []int{1}, netlink.ErrDumpInterrupted
			}
			return []int{1, 2}, nil
		})
		if !errors.Is(err, c.err) || err == nil && len(list) != 2 || asked > dumpTries {
			t.Errorf("interrupted %d times: %v, error %v, asked %d times", c.interrupted, list, err, asked)
		}
	}
}
