// Package netdev moves network devices of the node into the network namespace of
// a pod, and back.
//
// A device keeps its addresses and its MTU. It gets another name if that is
// requested, in the same call of the kernel, so that nobody sees it with a name
// that it must not have.
//
//	node  eth1 ──Move──▶ pod  net1
//	node  eth1 ◀─Return─ pod  net1
//
// What comes back is what was lent: a container that may configure the pod's network
// can rename the device, put another in its place, and give it any address. So the
// device is known by its index, which nobody can change, and its kind, and the node
// gives it the addresses that it had there.
//
// See the network devices of the OCI runtime specification:
// https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config-linux.md#network-devices
package netdev

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"crisp/network/netns"
)

var (
	// ErrNotFound means that the node has no device of that name. Another pod may
	// have it.
	ErrNotFound = errors.New("no such network device on the node")
	// ErrNameTaken means that the namespace has another device of that name.
	ErrNameTaken = errors.New("another network device has this name")
	// ErrName means that no device can have such a name.
	ErrName = errors.New("invalid name of a network device")
	// ErrImmovable means that the kernel does not move the device.
	ErrImmovable = errors.New("the network device cannot leave its namespace")
)

// CheckName returns [ErrName] unless a device can have the name.
func CheckName(name string) error {
	const special = "/: \t\n\v\f\r%\x00"
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsAny(name, special) {
		return fmt.Errorf("%w: %q", ErrName, name)
	}
	return nil
}

// place runs a function in a network namespace.
type place func(func() error) error

// here is the place of the caller, the node.
func here(f func() error) error { return f() }

func in(ns *os.File) place {
	return func(f func() error) error { return netns.Do(ns, f) }
}

// Device is a device that was lent, or is to be, as far as it is known.
type Device struct {
	// Name is that in the pod, Index the number there, 0 until it is moved.
	Name  string
	Index int `json:",omitempty"`
	// Kind is the kernel's name of its driver's kind.
	Kind string `json:",omitempty"`
	// Up and Addresses (CIDR) are what it has on the node.
	Up        bool     `json:",omitempty"`
	Addresses []string `json:",omitempty"`
}

// Examine returns the node's device host, for a pod in which it is to be called name.
func Examine(host, name string) (Device, error) {
	for _, n := range []string{host, name} {
		if err := CheckName(n); err != nil {
			return Device{}, err
		}
	}
	link, err := find(host)
	if err != nil {
		return Device{}, fmt.Errorf("move network device %s into the pod: %w", host, err)
	}
	d := Device{Name: name, Kind: link.Type(), Up: link.Attrs().Flags&net.FlagUp != 0}
	if d.Addresses, err = lasting(link); err != nil {
		return Device{}, fmt.Errorf("move network device %s into the pod: %w", host, err)
	}
	return d, nil
}

// Move moves the node's device host into a namespace, where it gets its name and its
// addresses and is up. It returns the index there. After an error the node has it,
// unless that fails too, and [Refused] is false.
func Move(ns *os.File, host string, d Device) (index int, err error) {
	err = transfer(here, host, ns, d.Name)
	if err == nil {
		if index, err = settle(in(ns), d.Name, d.Addresses, true); err != nil {
			err = errors.Join(err, Return(ns, host, d))
		}
	}
	if err != nil {
		return 0, fmt.Errorf("move network device %s into the pod: %w", host, err)
	}
	return index, nil
}

// Refused reports whether an error of [Move] means that nothing was moved.
func Refused(err error) bool {
	return errors.Is(err, ErrName) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrNameTaken) || errors.Is(err, ErrImmovable)
}

// Has reports whether a namespace has a device of that name.
func Has(ns *os.File, name string) (bool, error) {
	err := in(ns)(func() error { return free(name) })
	switch {
	case errors.Is(err, ErrNameTaken):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("network device %s of the pod: %w", name, err)
	}
	return false, nil
}

// Return moves a device in a namespace back to the node, where it is called host and
// has what it had. If another one has that name it is called dev0, dev1 and so on,
// which is an error. Without such a device there is nothing to do.
func Return(ns *os.File, host string, d Device) error {
	node, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("return network device %s: open the node's network namespace: %w", host, err)
	}
	defer node.Close()

	name, err := d.whereabouts(ns)
	if err == nil {
		err = transfer(in(ns), name, node, host)
	}
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case errors.Is(err, ErrNameTaken):
		// The pod's end must not depend on it.
		other, again := returnAnyhow(ns, name, node)
		return fmt.Errorf("return network device %s: %w; it is called %s now", host, errors.Join(err, again), other)
	case err == nil:
		_, err = settle(here, host, d.Addresses, d.Up)
	}
	if err != nil {
		return fmt.Errorf("return network device %s: %w", host, err)
	}
	return nil
}

// whereabouts returns the name that a device has in a namespace by now. One that was
// interrupted while it was moved is known by its name only.
func (d Device) whereabouts(ns *os.File) (name string, err error) {
	err = in(ns)(func() error {
		link, err := find(d.Name)
		if d.Index > 0 {
			link, err = netlink.LinkByIndex(d.Index)
		}
		switch {
		case errors.As(err, &netlink.LinkNotFoundError{}), errors.Is(err, unix.ENODEV):
			return ErrNotFound
		case err != nil:
			return err
		case d.Kind != "" && link.Type() != d.Kind:
			return ErrNotFound // another device in its place
		}
		name = link.Attrs().Name
		return nil
	})
	return name, err
}

// returnAnyhow gives a device back with the first name of dev0, dev1 and so on that
// is free.
func returnAnyhow(ns *os.File, name string, node *os.File) (other string, err error) {
	const tries = 100
	for i := range tries {
		other = fmt.Sprintf("dev%d", i)
		if err = transfer(in(ns), name, node, other); !errors.Is(err, ErrNameTaken) {
			break
		}
	}
	return other, err
}

// transfer moves a device, which loses its addresses by that. It moves nothing if
// the name is taken.
func transfer(from place, device string, to *os.File, name string) error {
	// The kernel would move the device first, and then not rename it.
	if err := in(to)(func() error { return free(name) }); err != nil {
		return err
	}
	return from(func() error {
		link, err := find(device)
		if err != nil {
			return err
		}
		return send(link, to, name)
	})
}

// free returns [ErrNameTaken] if the current namespace has a device of that name.
func free(name string) error {
	_, err := find(name)
	switch {
	case err == nil:
		return fmt.Errorf("call it %s: %w", name, ErrNameTaken)
	case errors.Is(err, ErrNotFound):
		return nil
	}
	return err
}

// find returns a device of the current namespace.
func find(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	// The library also returns devices that have it as another name.
	if errors.As(err, &netlink.LinkNotFoundError{}) || err == nil && link.Attrs().Name != name {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("look for it: %w", err)
	}
	return link, nil
}

// lasting returns a device's addresses that neither the kernel nor a router has
// given it.
func lasting(link netlink.Link) ([]string, error) {
	all, err := Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list its addresses: %w", err)
	}
	var list []string
	for _, a := range all {
		if a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unix.IFA_F_PERMANENT != 0 {
			list = append(list, a.IPNet.String())
		}
	}
	return list, nil
}

// send moves a device of the current namespace to another and gives it a name.
func send(link netlink.Link, to *os.File, name string) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(to.Fd()))))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))

	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	switch {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("call it %s: %w", name, ErrNameTaken)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", ErrImmovable, err)
	case err != nil:
		return fmt.Errorf("call it %s: %w", name, err)
	}
	return nil
}

// settle gives a moved device its addresses, switches it on if it is to be up, and
// returns its index.
func settle(at place, name string, addresses []string, up bool) (index int, err error) {
	err = at(func() error {
		link, err := find(name)
		if err != nil {
			return err
		}
		index = link.Attrs().Index
		for _, text := range addresses {
			address, err := netlink.ParseAddr(text)
			if err == nil {
				err = netlink.AddrReplace(link, address)
			}
			if err != nil {
				return fmt.Errorf("keep its address %s: %w", text, err)
			}
		}

		if !up {
			return nil
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("switch it on: %w", err)
		}
		return nil
	})
	return index, err
}
