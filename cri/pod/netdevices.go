package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"crisp/network/netdev"
	"crisp/network/netns"
)

// lendDevices does nothing: a pod gets network devices with the containers that
// request them.
func (p *pod) lendDevices(context.Context) error { return nil }

// returnDevices gives the node its network devices back, while the pod's namespace
// exists. After a reboot it has them.
func (p *pod) returnDevices(context.Context) error {
	r := p.record()
	if len(r.NetDevices) == 0 || r.BootID != p.m.bootID {
		return nil
	}
	ns, err := p.openNetwork(r)
	if err != nil {
		return fmt.Errorf("return network devices: %w", err)
	}
	defer ns.Close()

	for _, host := range slices.Sorted(maps.Keys(r.NetDevices)) {
		// The pod's end must not depend on a device that somebody has renamed or
		// replaced. The kernel gives physical ones back with the namespace.
		warn(netdev.Return(ns, host, r.NetDevices[host]), "return a network device", "sandbox", r.ID)
	}
	return p.update(func(r *Record) { r.NetDevices = nil })
}

// openNetwork opens the pod's network namespace.
func (p *pod) openNetwork(r *Record) (*os.File, error) {
	if r.NetNS == "" {
		return nil, fmt.Errorf("sandbox %s has the node's network: %w", r.ID, ErrInvalid)
	}
	return netns.Open(r.NetNS)
}

// moveDevices moves the network devices that a container requests into its pod. An
// earlier container of the pod may have requested the same.
func (k *creation) moveDevices(context.Context) error {
	devices := k.spec.Linux.NetDevices
	if len(devices) == 0 {
		return nil
	}
	ns, err := k.p.openNetwork(k.p.record())
	if err != nil {
		return err
	}
	defer ns.Close()

	for _, host := range slices.Sorted(maps.Keys(devices)) {
		if err := k.p.borrow(ns, host, devices[host].Name); err != nil {
			return err
		}
	}
	return nil
}

// borrow moves one device into the pod, unless it is there.
func (p *pod) borrow(ns *os.File, host, name string) error {
	switch now, known := p.record().NetDevices[host]; {
	case known && now != name:
		return fmt.Errorf("network device %s is called %s for another container of the pod, not %s: %w", host, now, name, ErrInvalid)
	case known:
		if there, err := netdev.Has(ns, name); there || err != nil {
			return err
		}
	}

	// Recorded first, so that it is returned whatever happens.
	if err := p.claim(host, name); err != nil {
		return err
	}
	if err := netdev.Move(ns, host, name); err != nil {
		return errors.Join(err, p.claim(host, ""))
	}
	return nil
}

// claim records that the pod has a device, or with an empty name that it has not.
func (p *pod) claim(host, name string) error {
	return p.update(func(r *Record) {
		next := maps.Clone(r.NetDevices)
		if next == nil {
			next = map[string]string{}
		}
		if next[host] = name; name == "" {
			delete(next, host)
		}
		r.NetDevices = next
	})
}

// keepDevices leaves the devices to the pod: other containers may use them, and
// the next attempt of this one.
func (k *creation) keepDevices(context.Context) error { return nil }
