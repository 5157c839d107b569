package own

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netdev"
	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/network/own/link"
)

// occupancy is what the node is known to have of addresses, by those who look into pods.
type occupancy struct {
	live sync.Map // of pods' names, by address
	most atomic.Int64
	now  atomic.Int64
	// spaces are namespaces that no pod uses.
	spaces chan *os.File
}

// enter notes the addresses of a pod that runs.
func (o *occupancy) enter(pod string, addrs []netip.Addr) error {
	for _, addr := range addrs {
		if other, taken := o.live.LoadOrStore(addr, pod); taken {
			return fmt.Errorf("%s is used by %s and %s", addr, other, pod)
		}
	}
	for now := o.now.Add(1); ; {
		most := o.most.Load()
		if now <= most || o.most.CompareAndSwap(most, now) {
			return nil
		}
	}
}

// leave notes that a pod is about to go.
func (o *occupancy) leave(addrs []netip.Addr) {
	o.now.Add(-1)
	for _, addr := range addrs {
		o.live.Delete(addr)
	}
}

// TestManyClients attaches and detaches 2,016 pods from 32 clients: no address is used
// twice at once, as seen in the pods, none is lost, and neither rules nor interfaces grow.
func TestManyClients(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		const clients, rounds, stay = 32, 63, 3
		first := n.add(n.pod("first", mappings(mapping(9999, 80, "tcp", ""))))
		size := func() string { return fmt.Sprint(n.ruleCount(), " rules, ", len(n.links(n.host)), " interfaces") }
		before := size()

		// More than are used at once, so that what is retired has been deleted by the time
		// that a namespace is used again.
		o := occupancy{spaces: make(chan *os.File, 4*clients*stay)}
		for range cap(o.spaces) {
			o.spaces <- netnstest.New(t)
		}
		var attached atomic.Int64
		var running sync.WaitGroup
		for c := range clients {
			running.Go(func() {
				var present []*guest
				for r := range rounds {
					g, err := n.enter(&o, fmt.Sprintf("pod-%d-%d", c, r), 10000+c*stay+r%stay)
					if err != nil {
						t.Error(err)
						return
					}
					attached.Add(1)
					present = append(present, g)
					if len(present) == stay || r == rounds-1 {
						for _, g := range present {
							n.leave(t, &o, g)
						}
						present = nil
					}
				}
			})
		}
		running.Wait()

		t.Logf("%d pods, up to %d at once", attached.Load(), o.most.Load())
		if attached.Load() != clients*rounds || o.most.Load() < clients {
			t.Errorf("%d pods were attached, up to %d at once", attached.Load(), o.most.Load())
		}
		if leased := n.leased(); len(leased) != 2 {
			t.Errorf("leases are %q", leased)
		}
		n.settle("ifb0", "ifb1", link.Name("first", "eth0"))
		if after := size(); after != before {
			t.Errorf("the node had %s and has %s", before, after)
		}
		n.del(first)
		n.clean()
	})
}

// guest is a pod in a namespace that is used again.
type guest struct {
	*pod
	addrs []netip.Addr
}

// enter attaches a pod, and looks inside which addresses it has.
func (n *node) enter(o *occupancy, id string, hostPort int) (*guest, error) {
	ns := <-o.spaces
	p := &pod{id: id, ns: ns, path: fmt.Sprint("/proc/self/fd/", ns.Fd()), args: mappings(mapping(hostPort, 80, "tcp", ""), mapping(hostPort, 80, "udp", ""))}
	if err := n.tryAdd(p); err != nil {
		return nil, fmt.Errorf("ADD %s: %w", id, details(err))
	}

	g := &guest{pod: p}
	err := netns.Do(ns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		list, err := netdev.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, unix.AF_UNSPEC) })
		for _, a := range list {
			if addr, ok := netip.AddrFromSlice(a.IP); ok && !a.IP.IsLinkLocalUnicast() {
				g.addrs = append(g.addrs, addr.Unmap())
			}
		}
		return err
	})
	if err == nil && len(g.addrs) != 2 {
		err = fmt.Errorf("%s has the addresses %v", id, g.addrs)
	}
	if err == nil {
		err = o.enter(id, g.addrs)
	}
	return g, err
}

// leave detaches a pod.
func (n *node) leave(t *testing.T, o *occupancy, g *guest) {
	o.leave(g.addrs)
	if _, err := n.call("DEL", g.pod, nil); err != nil {
		t.Errorf("DEL %s: %v", g.id, details(err))
	}
	o.spaces <- g.ns
}

// ruleCount counts the lines of the packet filter's rules, and the elements of pods.
func (n *node) ruleCount() int {
	text := n.nft("list", "ruleset")
	return strings.Count(text, "\n") + strings.Count(text, "comment")
}
