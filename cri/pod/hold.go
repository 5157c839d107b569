package pod

import (
	"fmt"
	"net/netip"
	"os"
	"slices"

	"crisp/network/netns"
)

// holdTable is the table of the packet filter in the network namespace of a pod that is
// moving. The other node answers its peers, or this one does, and nobody in between: a peer
// that is told that there is no connection gives it up.
const holdTable = "crisp-move"

// holdNetwork has nothing reach a pod, nor leave it, if it has a network of its own.
func (p *pod) holdNetwork() error {
	return p.inNetwork(func(ns *os.File) error { return netns.Hold(ns, holdTable) })
}

// releaseNetwork undoes [pod.holdNetwork], also if that was not called.
func (p *pod) releaseNetwork() error {
	return p.inNetwork(func(ns *os.File) error { return netns.RemoveTable(ns, holdTable) })
}

// letIn lets through what was held while a pod with the addresses of another node's came
// here. Without them it was not held.
func (p *pod) letIn() error {
	if len(p.record().WantIPs) == 0 {
		return nil
	}
	return p.releaseNetwork()
}

func (p *pod) inNetwork(do func(*os.File) error) error {
	r := p.record()
	if r.NetNS == "" {
		return nil
	}
	ns, err := r.openNetwork()
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	return do(ns)
}

// wantAddresses checks that a pod has the addresses that it came with.
func wantAddresses(want, got []string) error {
	for _, ip := range want {
		if !slices.Contains(got, ip) {
			return fmt.Errorf("%w: the network has given it %q, and it came with %q; do without --keep-address", ErrState, got, ip)
		}
	}
	return nil
}

// kept are the addresses at which peers still know the processes of a pod that is just
// moving here. Later a checkpoint is that of others.
func (r *Record) kept() (list []netip.Addr) {
	if !r.Restoring {
		return nil
	}
	for _, ip := range r.WantIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			list = append(list, addr)
		}
	}
	return list
}
