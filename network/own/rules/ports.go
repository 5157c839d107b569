package rules

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Port exposes a port of a pod on the node.
type Port struct {
	// Protocol is IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP.
	Protocol uint8
	// HostAddr restricts it to one address of the node. Zero means all addresses,
	// an unspecified one all of its family.
	HostAddr          netip.Addr
	HostPort, PodPort uint16
}

// Pod is a pod with host ports.
type Pod struct {
	// Owner names the pod in elements, in up to 128 bytes.
	Owner string
	Addrs []netip.Addr
	Ports []Port
	// Routed pods are not on a bridge.
	Routed bool
}

// element is an element of a set.
type element struct {
	set string
	nftables.SetElement
}

// elements are the elements of a pod. Of several addresses of a family, the host ports
// lead to the first.
func (p *Pod) elements() []element {
	var all []element
	add := func(set string, key, value []byte) {
		all = append(all, element{set, nftables.SetElement{Key: key, Val: value, Comment: p.Owner}})
	}

	for i, addr := range p.Addrs {
		if slices.ContainsFunc(p.Addrs[:i], func(earlier netip.Addr) bool { return earlier.Is4() == addr.Is4() }) {
			continue
		}
		f := familyOf(addr)
		own := addr.AsSlice()
		used := false
		for _, port := range p.Ports {
			host := port.HostAddr.Unmap()
			if host.IsValid() && host.Is4() != addr.Is4() {
				continue
			}

			used = true
			target := slices.Concat(own, padPort(port.PodPort))
			service := slices.Concat(pad(port.Protocol), padPort(port.HostPort))
			if host.IsValid() && !host.IsUnspecified() {
				add("addr"+f.suffix, slices.Concat(host.AsSlice(), service), target)
			} else {
				add("ports"+f.suffix, service, target)
			}
			add("backend"+f.suffix, slices.Concat(own, pad(port.Protocol), padPort(port.PodPort)), nil)
		}
		if used && p.Routed {
			add("self"+f.suffix, slices.Concat(own, own), nil)
		}
	}

	// Two host ports may lead to the same port of the pod.
	slices.SortFunc(all, func(a, b element) int {
		return cmpElement(a, b)
	})
	return slices.CompactFunc(all, func(a, b element) bool { return cmpElement(a, b) == 0 && bytes.Equal(a.Val, b.Val) })
}

func cmpElement(a, b element) int {
	if a.set != b.set {
		return bytes.Compare([]byte(a.set), []byte(b.set))
	}
	return bytes.Compare(a.Key, b.Key)
}

// Publish makes all host ports of a pod work, or none. The error is [ErrPortTaken]
// if one belongs to another pod. alive reports whether the owner of an element still
// exists; what is left of others is replaced.
func (t *Table) Publish(ctx context.Context, p Pod, alive func(owner string) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	add := p.elements()
	if len(add) == 0 {
		return nil
	}
	for i := range add[1:] {
		if cmpElement(add[i], add[i+1]) == 0 {
			return fmt.Errorf("publish host ports: %w: %s is asked for twice, for different ports of the pod", ErrPortTaken, describe(add[i]))
		}
	}
	err := t.again(ctx, func() error { return t.publish(ctx, add, p.Owner, alive) })
	if err != nil {
		return fmt.Errorf("publish host ports: %w", explain(err))
	}
	return nil
}

func (t *Table) publish(ctx context.Context, add []element, owner string, alive func(string) bool) error {
	if err := t.ensure(ctx); err != nil {
		return err
	}
	// Usually nothing is in the way, so nothing is asked first.
	err := t.change(nil, add)
	if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	stale, err := t.stale(add, owner, alive)
	if err != nil {
		return err
	}
	return t.change(stale, add)
}

// stale returns the elements that are in the way of others and have no owner any
// more, or [ErrPortTaken].
func (t *Table) stale(add []element, owner string, alive func(string) bool) ([]element, error) {
	var stale []element
	for _, e := range add {
		present, err := t.find(e)
		if err != nil {
			return nil, err
		}
		if present == nil || present.Comment == owner && bytes.Equal(present.Val, e.Val) {
			continue
		}
		if present.Comment != owner && alive(present.Comment) {
			return nil, fmt.Errorf("%w: %s by %s", ErrPortTaken, describe(e), present.Comment)
		}
		stale = append(stale, element{e.set, *present})
	}
	return stale, nil
}

// describe names a host port.
func describe(e element) string {
	key := e.Key[len(e.Key)-8:]
	return fmt.Sprintf("%d/%s", binary.BigEndian.Uint16(key[4:]), protocolName(key[0]))
}

// protocolName is how configurations call a protocol.
func protocolName(protocol uint8) string {
	return map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[protocol]
}

// String is "tcp 192.0.2.1:8080 > 10.77.0.2:80", with * for all addresses of the node.
func (x Exposed) String() string {
	host := "*"
	if x.HostAddr.IsValid() {
		host = x.HostAddr.String()
	}
	return fmt.Sprintf("%s %s > %s", protocolName(x.Protocol), net.JoinHostPort(host, fmt.Sprint(x.HostPort)), netip.AddrPortFrom(x.Target, x.PodPort))
}

// Withdraw removes the host ports of a pod. What belongs to others is left.
func (t *Table) Withdraw(p Pod) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Twice in one transaction, a removal fails as if another process had been faster.
	once := slices.CompactFunc(p.elements(), func(a, b element) bool { return cmpElement(a, b) == 0 })
	return t.remove(once, func(owner string) bool { return owner == p.Owner })
}

// Elements are what the sets have of pods, as of when they were listed.
type Elements struct{ byOwner map[string][]element }

// List lists the elements of all sets. It is not an error if there is no table.
func (t *Table) List() (*Elements, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.list()
}

func (t *Table) list() (*Elements, error) {
	all := &Elements{byOwner: map[string][]element{}}
	complete, err := t.hasChain(layoutChain)
	if err != nil || !complete {
		return all, err
	}

	for name, set := range t.sets {
		if set.Interval {
			continue
		}
		elements, err := t.conn.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("list set %s: %w", name, explain(err))
		}
		for _, e := range elements {
			all.byOwner[e.Comment] = append(all.byOwner[e.Comment], element{name, e})
		}
	}
	return all, nil
}

// Owners lists the owners of elements.
func (e *Elements) Owners() []string { return slices.Sorted(maps.Keys(e.byOwner)) }

// HostPorts returns the host ports that an owner has.
func (e *Elements) HostPorts(owner string) []Exposed {
	var all []Exposed
	for _, one := range e.byOwner[owner] {
		for _, f := range families {
			if one.set != "addr"+f.suffix && one.set != "ports"+f.suffix {
				continue
			}
			if port, ok := exposed(f, one.SetElement); ok {
				all = append(all, port)
			}
		}
	}
	return all
}

// Remove removes the elements of an owner that were listed, and are still its own. It
// returns the host ports among them.
func (t *Table) Remove(listed *Elements, owner string) ([]Port, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.removeOwners(listed, func(other string) bool { return other == owner })
}

// Sweep removes the elements of all owners that are not alive, and returns the host ports
// among them.
func (t *Table) Sweep(alive func(owner string) bool) ([]Port, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	listed, err := t.list()
	if err != nil {
		return nil, err
	}
	return t.removeOwners(listed, func(owner string) bool { return !alive(owner) })
}

func (t *Table) removeOwners(listed *Elements, gone func(owner string) bool) ([]Port, error) {
	var elements []element
	var ports []Port
	for owner, own := range listed.byOwner {
		if !gone(owner) {
			continue
		}
		elements = append(elements, own...)
		for _, x := range listed.HostPorts(owner) {
			ports = append(ports, x.Port)
		}
	}
	return ports, t.remove(elements, gone)
}

// remove removes elements if their owner is one of those given. Another process may
// remove them at the same time.
func (t *Table) remove(elements []element, by func(owner string) bool) error {
	for {
		var present []element
		for _, e := range elements {
			found, err := t.find(e)
			if err != nil {
				return fmt.Errorf("withdraw host ports: %w", err)
			}
			if found != nil && by(found.Comment) {
				present = append(present, element{e.set, *found})
			}
		}

		if len(present) == 0 {
			return nil
		}
		err := t.change(present, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("withdraw host ports: %w", explain(err))
		}
	}
}

// change removes and adds elements in one transaction.
func (t *Table) change(remove, add []element) error {
	for _, e := range remove {
		if err := t.conn.SetDeleteElements(t.sets[e.set], []nftables.SetElement{e.SetElement}); err != nil {
			return err
		}
	}
	for _, e := range add {
		if err := t.conn.SetAddElements(t.sets[e.set], []nftables.SetElement{e.SetElement}); err != nil {
			return err
		}
	}
	return t.conn.Flush()
}

// Published reports whether all elements of a pod are there.
func (t *Table) Published(p Pod) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range p.elements() {
		found, err := t.find(e)
		if err != nil || found == nil || found.Comment != p.Owner {
			return false, err
		}
	}
	return true, nil
}

// Exposed is a host port that is published.
type Exposed struct {
	Port
	// Target is the pod's address.
	Target netip.Addr
}

// exposed reads an element of a map: see [Pod.elements].
func exposed(f family, e nftables.SetElement) (Exposed, bool) {
	const service = 8 // the protocol and the port, padded
	size := int(f.size)
	if len(e.Key) < service || len(e.Val) < size+4 {
		return Exposed{}, false
	}

	host, key := e.Key[:len(e.Key)-service], e.Key[len(e.Key)-service:]
	x := Exposed{Port: Port{
		Protocol: key[0], HostPort: binary.BigEndian.Uint16(key[4:]), PodPort: binary.BigEndian.Uint16(e.Val[size:]),
	}}
	x.Target, _ = netip.AddrFromSlice(e.Val[:size])
	x.HostAddr, _ = netip.AddrFromSlice(host) // none is all addresses
	return x, true
}

// find returns the element of a key, nil if there is none.
func (t *Table) find(e element) (*nftables.SetElement, error) {
	key, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_DATA_VALUE, Data: e.Key}})
	if err != nil {
		return nil, err
	}
	item, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_SET_ELEM_KEY | unix.NLA_F_NESTED, Data: key}})
	if err != nil {
		return nil, err
	}
	list, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: item}})
	if err != nil {
		return nil, err
	}

	answer, err := t.get(unix.NFT_MSG_GETSETELEM, []netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: text(TableName)},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: text(e.set)},
		{Type: unix.NFTA_SET_ELEM_LIST_ELEMENTS | unix.NLA_F_NESTED, Data: list},
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // the element, or the table
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", e.set, explain(err))
	}

	for _, m := range answer {
		if found, err := decode(m.Data); found != nil || err != nil {
			return found, err
		}
	}
	return nil, nil
}

// decode reads the one element of an answer.
func decode(data []byte) (*nftables.SetElement, error) {
	const header = 4 // struct nfgenmsg
	if len(data) < header {
		return nil, fmt.Errorf("answer has %d bytes", len(data))
	}

	list, err := netlink.NewAttributeDecoder(data[header:])
	if err != nil {
		return nil, err
	}
	var found *nftables.SetElement
	for list.Next() {
		if list.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			list.Nested(func(items *netlink.AttributeDecoder) error {
				for items.Next() {
					found = &nftables.SetElement{}
					items.Nested(func(item *netlink.AttributeDecoder) error { return decodeItem(item, found) })
				}
				return nil
			})
		}
	}
	return found, list.Err()
}

func decodeItem(item *netlink.AttributeDecoder, into *nftables.SetElement) error {
	value := func(dest *[]byte) func(*netlink.AttributeDecoder) error {
		return func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				if ad.Type() == unix.NFTA_DATA_VALUE {
					*dest = ad.Bytes()
				}
			}
			return nil
		}
	}

	for item.Next() {
		switch item.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			item.Nested(value(&into.Key))
		case unix.NFTA_SET_ELEM_DATA:
			item.Nested(value(&into.Val))
		case unix.NFTA_SET_ELEM_USERDATA:
			into.Comment, _ = userdata.GetString(item.Bytes(), userdata.NFTNL_UDATA_SET_ELEM_COMMENT)
		}
	}
	return nil
}
