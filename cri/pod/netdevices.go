package pod

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crisp/network/netdev"
	"crisp/network/netns"
)

// borrowDevices moves network devices of the node into the pod, for a container
// that requests them. They stay the pod's until it ends: other containers may use
// them, and the next attempt of this one.
func (p *pod) borrowDevices(devices map[string]specs.LinuxNetDevice) error {
	if len(devices) == 0 {
		return nil
	}
	ns, err := p.openNetwork()
	if err != nil {
		return err
	}
	defer ns.Close()

	for _, host := range slices.Sorted(maps.Keys(devices)) {
		if err := p.borrow(ns, host, devices[host].Name); err != nil {
			return err
		}
	}
	return nil
}

// openNetwork opens the pod's network namespace.
func (p *pod) openNetwork() (*os.File, error) {
	r := p.record()
	if r.NetNS == "" {
		return nil, fmt.Errorf("sandbox %s has the node's network: %w", r.ID, ErrInvalid)
	}
	return netns.Open(r.NetNS)
}

// borrow moves one device into the pod, unless it is there.
func (p *pod) borrow(ns *os.File, host, name string) error {
	switch now, known := p.record().NetDevices[host]; {
	case known && now.Name != name:
		return fmt.Errorf("network device %s is called %s for another container of the pod, not %s: %w", host, now.Name, name, ErrInvalid)
	case known:
		if there, err := netdev.Has(ns, name); there || err != nil {
			return err
		}
	}

	d, err := netdev.Examine(host, name)
	if err != nil {
		return err
	}
	// Recorded first, so that it is returned whatever happens.
	if err := p.claim(host, &d); err != nil {
		return err
	}
	d.Index, err = netdev.Move(ns, host, d)
	switch {
	case err == nil:
		return p.claim(host, &d)
	case netdev.Refused(err):
		err = errors.Join(err, p.claim(host, nil))
	}
	return err
}

// claim records that the pod has a device, or has not.
func (p *pod) claim(host string, d *netdev.Device) error {
	return p.update(func(r *Record) {
		next := maps.Clone(r.NetDevices)
		if next == nil {
			next = map[string]netdev.Device{}
		}
		if delete(next, host); d != nil {
			next[host] = *d
		}
		r.NetDevices = next
	})
}

// returnDevices gives the node its network devices back, while the pod's namespace
// exists. After a reboot it has them. The pod's end does not depend on a device, or
// a namespace, that somebody has renamed, replaced or removed: the kernel gives
// physical devices back with the namespace.
func (p *pod) returnDevices() error {
	r := p.record()
	if len(r.NetDevices) == 0 || r.BootID != p.m.bootID {
		return nil
	}
	ns, err := p.openNetwork()
	if err != nil {
		warn(err, "return network devices", "sandbox", r.ID)
		return nil
	}
	defer ns.Close()

	for _, host := range slices.Sorted(maps.Keys(r.NetDevices)) {
		warn(netdev.Return(ns, host, r.NetDevices[host]), "return a network device", "sandbox", r.ID)
	}
	return p.update(func(r *Record) { r.NetDevices = nil })
}
