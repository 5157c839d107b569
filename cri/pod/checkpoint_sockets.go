package pod

import (
	"cmp"
	"fmt"

	"golang.org/x/sys/unix"

	"crisp/network/netns"
	"crisp/runtime/criu"
	"crisp/runtime/untrusted"
)

// checkSaveable tells what the processes of a container have that cannot be saved, such as a
// connection to another container of the pod, of which each would have one end alone. peers
// describes one that may be to the node: CRIU knows whether it is, and not how it is called.
func (p *pod) checkSaveable(id string, pids []int) (peers string, err error) {
	own, err := criu.Saveable(pids)
	if err != nil || len(own) == 0 {
		return "", err
	}
	ns, err := p.record().openNetwork()
	if err != nil {
		return "", fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	all, err := netns.UnixSockets(ns)
	if err != nil {
		return "", err
	}

	for inode, pid := range own {
		s := all[inode]
		if _, inside := own[s.Peer]; s.Peer == 0 || inside {
			continue
		}
		at := untrusted.Of(cmp.Or(s.Name, all[s.Peer].Name, "without a name")).Message(unix.PathMax)
		if other := p.holderOf(id, s.Peer); other != "" {
			return "", fmt.Errorf("%w: process %d is connected to container %s by the Unix socket %s, and each would be saved with one end alone", criu.ErrRefused, pid, other, at)
		}
		peers = fmt.Sprintf("process %d is connected to a process outside of the container, by the Unix socket %s", pid, at)
	}
	return peers, nil
}

// holderOf is the name of the container of the pod, but the one with this ID, that has a
// socket, "" for none.
func (p *pod) holderOf(id string, socket uint32) string {
	for _, c := range p.record().Containers {
		if c.ID == id || !p.runs(c.ID) {
			continue
		}
		group, err := p.groupOf(c)
		if err != nil {
			continue
		}
		pids, err := group.Pids()
		if err != nil {
			continue
		}
		if own, err := criu.Saveable(pids); err == nil && own[socket] != 0 {
			return c.Config.Msg.GetMetadata().GetName()
		}
	}
	return ""
}
