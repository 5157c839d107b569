package spec

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/cri/spec/cdi"
	"crisp/network/netdev"
)

// allAccess permits to create a device node, to read it and to write it.
const allAccess = "rwm"

// devices sets the devices in addition to those that every container has, and
// the rules of the device controller.
func (b *builder) devices() error {
	rules := DeviceRules()
	var nodes []specs.LinuxDevice
	if b.privileged {
		rules = []specs.LinuxDeviceCgroup{{Allow: true, Access: allAccess}}
		host, err := b.Node.Devices("/dev")
		if err != nil {
			return fmt.Errorf("list the node's devices: %w", err)
		}
		nodes = host
	}

	for _, d := range b.Config.GetDevices() {
		found, err := b.Node.Devices(d.GetHostPath())
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return invalid("device %q: %w", d.GetHostPath(), err)
		case err != nil:
			return fmt.Errorf("look up device %q: %w", d.GetHostPath(), err)
		case len(found) == 0:
			return invalid("no device at host path %q", d.GetHostPath())
		}

		for _, node := range found {
			below := strings.TrimPrefix(node.Path, path.Clean(d.GetHostPath()))
			node.Path = path.Join(d.GetContainerPath(), below)
			b.own(&node)
			if nodes, err = addDevice(nodes, node); err != nil {
				return err
			}

			if !b.privileged {
				rules = append(rules, deviceRule(node, d.GetPermissions()))
			}
		}
	}

	b.out.Spec.Linux.Devices = nodes
	b.out.Spec.Linux.Resources.Devices = rules
	return nil
}

// cdi adds the CDI devices that the container requests.
func (b *builder) cdi() error {
	names, err := cdi.Names(b.Config)
	switch {
	case err != nil:
		return invalid("%w", err)
	case len(names) == 0:
		return nil
	case b.CDI == nil:
		return unsupported("CDI devices")
	}

	before := slices.Clone(b.out.Spec.Mounts)
	sources, err := b.CDI(b.out.Spec, names)
	if err != nil {
		return invalid("%w", err)
	}
	if err := checkEdits(b.out.Spec); err != nil {
		return fmt.Errorf("CDI devices %q: %w", names, err)
	}
	if err := b.checkAddedSources(before); err != nil {
		return fmt.Errorf("CDI devices %q: %w", names, err)
	}

	b.out.CDI, b.out.HookSources = names, sources
	sortMounts(b.out.Spec.Mounts)
	return nil
}

// checkAddedSources refuses bind mounts, in addition to those before, of what the node
// does not have: a specification may be older than the driver's files.
func (b *builder) checkAddedSources(before []specs.Mount) error {
	for _, m := range b.out.Spec.Mounts {
		known := slices.ContainsFunc(before, func(o specs.Mount) bool { return o.Source == m.Source })
		bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		if known || !bind || !path.IsAbs(m.Source) {
			continue
		}

		_, err := b.Node.Resolve(m.Source, false)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return unsupported("mount at %s of %s, which is not on the node", m.Destination, m.Source)
		case err != nil:
			return fmt.Errorf("look up the source of the mount at %s: %w", m.Destination, err)
		}
	}
	return nil
}

// checkNetDevices refuses network devices that cannot be moved into the pod. One
// without another name keeps its own.
func checkNetDevices(s *specs.Spec) error {
	list := s.Linux.NetDevices
	if len(list) == 0 {
		return nil
	}
	if !slices.ContainsFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace }) {
		return invalid("network devices %q in the node's network: the pod has no network of its own", slices.Sorted(maps.Keys(list)))
	}

	taken := map[string]string{}
	for _, host := range slices.Sorted(maps.Keys(list)) {
		d := list[host]
		if d.Name == "" {
			d.Name = host
			list[host] = d
		}
		for _, name := range []string{host, d.Name} {
			if err := netdev.CheckName(name); err != nil {
				return invalid("%w", err)
			}
		}
		if other := taken[d.Name]; other != "" || d.Name == "lo" {
			return invalid("network device %s cannot be called %s in the pod: %s", host, d.Name, cmp.Or(other, "the loopback interface")+" is")
		}
		taken[d.Name] = host
	}
	return nil
}

// own makes the container's user the owner of a configured device, if the
// node's configuration requires it.
func (b *builder) own(d *specs.LinuxDevice) {
	if !b.Defaults.DeviceOwnership {
		return
	}
	if uid := b.sc.GetRunAsUser(); uid != nil {
		id := uint32(uid.GetValue())
		d.UID = &id
	}
	if gid := b.sc.GetRunAsGroup(); gid != nil {
		id := uint32(gid.GetValue())
		d.GID = &id
	}
}

// addDevice appends a device, replacing the same one at the same path. Two
// different devices cannot share a path.
func addDevice(list []specs.LinuxDevice, d specs.LinuxDevice) ([]specs.LinuxDevice, error) {
	i := slices.IndexFunc(list, func(o specs.LinuxDevice) bool { return o.Path == d.Path })
	if i < 0 {
		return append(list, d), nil
	}
	if o := list[i]; o.Type != d.Type || o.Major != d.Major || o.Minor != d.Minor {
		return nil, invalid("two devices at %s: %s %d:%d and %s %d:%d", d.Path, o.Type, o.Major, o.Minor, d.Type, d.Major, d.Minor)
	}
	list[i] = d
	return list, nil
}

func deviceRule(d specs.LinuxDevice, access string) specs.LinuxDeviceCgroup {
	if access == "" {
		access = allAccess
	}
	return specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: access}
}

// DeviceRules returns the rules of a container without devices of its own: the
// first denies everything, the others allow mknod, which alone gives no access,
// and the devices that every container has.
func DeviceRules() []specs.LinuxDeviceCgroup {
	const wildcard = -1
	rule := func(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if major != wildcard {
			r.Major = &major
		}
		if minor != wildcard {
			r.Minor = &minor
		}
		return r
	}

	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: allAccess},
		rule("c", wildcard, wildcard, "m"),
		rule("b", wildcard, wildcard, "m"),
		rule("c", 1, 3, allAccess),          // null
		rule("c", 1, 5, allAccess),          // zero
		rule("c", 1, 7, allAccess),          // full
		rule("c", 1, 8, allAccess),          // random
		rule("c", 1, 9, allAccess),          // urandom
		rule("c", 5, 0, allAccess),          // tty
		rule("c", 5, 1, allAccess),          // console
		rule("c", 5, 2, allAccess),          // ptmx
		rule("c", 136, wildcard, allAccess), // pts/*
	}
}
