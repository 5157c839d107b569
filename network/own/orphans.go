package own

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"crisp/network/own/lease"
	"crisp/network/own/link"
	"crisp/network/own/rules"
	"crisp/runtime/failpoint"
)

// orphans are what the node has of crisp's own network and no attachment has.
type orphans struct {
	// leases are those of one network, by its configuration.
	leases map[*conf][]lease.Held
	// links are the owners of interfaces by name, and networks theirs.
	links    map[string]lease.Owner
	networks map[string]string
	// elements are those of the packet filter.
	elements *rules.Elements
}

// examineOrphans looks for what belongs to no attachment. Everything is listed before
// the attachments are: those are recorded before anything is made for them, so that
// what has no record then has no pod.
func (x *examiner) examineOrphans(ctx context.Context) error {
	o, err := x.list()
	if err != nil {
		return err
	}
	calls, err := x.Attached()
	if err != nil {
		return err
	}
	owners, names := map[lease.Owner]bool{}, map[string]bool{}
	for _, call := range calls {
		owners[lease.Owner{ID: call.ID, IfName: call.IfName}] = true
		owners[lease.Owner{ID: call.ID}] = true // old releases of host-local
		names[link.Name(call.ID, call.IfName)] = true
	}

	// An interface goes with its lease, which proves whose it is.
	dead := map[string]bool{}
	for _, c := range x.confs {
		for _, held := range o.leases[c] {
			if !owners[held.Owner] {
				x.orphanLease(ctx, o, c, held, dead)
			}
		}
	}
	x.orphanLinks(o, names, dead)
	x.orphanElements(o, names)
	return nil
}

// list lists what the node has.
func (x *examiner) list() (*orphans, error) {
	o := &orphans{leases: map[*conf][]lease.Held{}, links: map[string]lease.Owner{}, networks: map[string]string{}, elements: &rules.Elements{}}
	seen := map[string]bool{}
	for _, c := range x.confs {
		dir := filepath.Join(c.IPAM.DataDir, c.Name)
		if seen[dir] {
			continue
		}
		seen[dir] = true
		var err error
		if o.leases[c], err = lease.Look(c.IPAM.DataDir, c.Name).List(); err != nil {
			x.add(Finding{Level: LevelFail, About: "network " + c.Name, Text: err.Error(), Advice: "remove what is no lease, or repair the disk"})
		}
	}

	labels, err := x.host.Owned()
	if err != nil {
		return nil, err
	}
	for name, label := range labels {
		if network, owner, ok := labelled(label); ok {
			o.links[name], o.networks[name] = owner, network
		}
	}
	if x.table != nil {
		o.elements, err = x.table.List()
	}
	return o, err
}

// orphanLease reports a lease without an attachment, and removes everything of its owner
// if that is certainly no pod.
func (x *examiner) orphanLease(ctx context.Context, o *orphans, c *conf, held lease.Held, dead map[string]bool) {
	f := Finding{Level: LevelWarn, About: "network " + c.Name, Advice: adviceRepair}
	switch {
	case held.Owner == (lease.Owner{}):
		f.Text = fmt.Sprintf("the lease of %s has no owner: a process was killed while it wrote it", held.Addr)
	case x.Foreign(c.Name, held.Owner.ID):
		return // of a pod that another runtime has
	default:
		f.Text = fmt.Sprintf("the lease of %s belongs to the pod %s, which does not exist", held.Addr, held.Owner.ID)
	}

	dead[link.Name(held.Owner.ID, held.Owner.IfName)] = true
	if held.Owner != (lease.Owner{}) && !x.Sole && !x.Private(c.IPAM.DataDir) {
		f.Text = fmt.Sprintf("the lease of %s belongs to the pod %s, of which this daemon knows nothing", held.Addr, held.Owner.ID)
		f.Advice = adviceSole
		x.add(f)
		return
	}
	x.mend(f, func() error { return x.discard(ctx, o, c, held.Owner) })
}

// discard removes everything of a lease's owner, in the order of DEL. What has been listed
// is not listed again for each.
func (x *examiner) discard(ctx context.Context, o *orphans, c *conf, gone lease.Owner) error {
	name := link.Name(gone.ID, gone.IfName)
	if x.table == nil && !errors.Is(x.unfiltered, rules.ErrUnsupported) {
		return fmt.Errorf("what leads to it is unknown: %w", x.unfiltered)
	}
	if x.table != nil && gone.ID != "" {
		hide := func() error { return conceal(x.host, x.table, o.elements, c.Name+"/"+name) }
		if err := failpoint.Between("network collect rules", hide); err != nil {
			return err
		}
	}

	if gone.ID != "" {
		if err := failpoint.Between("network collect links", func() error { return x.remove(x.host, name, nil) }); err != nil {
			return err
		}
	}
	return failpoint.Between("network collect leases", func() error {
		return x.withLeases(ctx, c, func(s *lease.Store) error {
			// Under the lock, a lease without an owner is not one that is being written.
			valid := func(o lease.Owner) bool { return o != gone }
			return s.Collect(ctx, valid, func(lease.Owner, netip.Addr) error { return nil })
		})
	})
}

// orphanLinks reports interfaces without an attachment and without a lease.
func (x *examiner) orphanLinks(o *orphans, names, dead map[string]bool) {
	for _, name := range slices.Sorted(maps.Keys(o.links)) {
		known := slices.ContainsFunc(x.confs, func(c *conf) bool { return c.Name == o.networks[name] })
		if names[name] || dead[name] || x.Foreign(o.networks[name], o.links[name].ID) {
			continue
		}
		f := Finding{
			Level: LevelWarn, About: "network " + o.networks[name], Advice: adviceSole,
			Text: fmt.Sprintf("interface %s was made for the pod %s, of which this daemon knows nothing", name, o.links[name].ID),
		}
		if !x.Sole || !known {
			x.add(f)
			continue
		}
		delete(o.links, name)
		x.mend(f, func() error { return x.remove(x.host, name, nil) })
	}
}

// orphanElements reports host ports that lead to no interface, and those of interfaces
// without an attachment.
func (x *examiner) orphanElements(o *orphans, names map[string]bool) {
	for _, owner := range o.elements.Owners() {
		name := interfaceOf(owner)
		network, _, _ := strings.Cut(owner, "/")
		if _, present := o.links[name]; present || names[name] || x.host.Exists(name) {
			continue
		}
		f := Finding{
			Level: LevelWarn, About: "network " + network, Advice: adviceRepair,
			Text: fmt.Sprintf("host ports of %s lead to a pod that does not exist", name),
		}
		x.mend(f, func() error { return conceal(x.host, x.table, o.elements, owner) })
	}
}

// labelled reads the label of an interface: see label.
func labelled(text string) (network string, o lease.Owner, ok bool) {
	rest, ok := strings.CutPrefix(text, Type+" ")
	if !ok {
		return "", lease.Owner{}, false
	}
	network, rest, _ = strings.Cut(rest, " ")
	at := strings.LastIndexByte(rest, '/')
	if at < 0 {
		return "", lease.Owner{}, false
	}
	return network, lease.Owner{ID: rest[:at], IfName: rest[at+1:]}, true
}
