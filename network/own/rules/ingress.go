package rules

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ingressChain drops what pods of a bridge must not receive. It is made when the first
// bridge needs it.
const ingressChain = "ingress"

// Sets of the chain, of bridges by name: all whose pods receive nothing from the pods of
// others among them, those whose pods reach each other, and those whose pods do not.
const (
	policedSet  = "policed"
	togetherSet = "together"
	apartSet    = "apart"
)

// ingressSets describes the sets of the chain.
func ingressSets(table *nftables.Table) map[string]*nftables.Set {
	pair := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	all := map[string]*nftables.Set{}
	for name, key := range map[string]nftables.SetDatatype{policedSet: nftables.TypeIFName, togetherSet: pair, apartSet: pair} {
		all[name] = &nftables.Set{Name: name, Table: table, KeyType: key, Concatenation: name != policedSet, KeyByteOrder: binaryutil.NativeEndian}
	}
	return all
}

// policy are the elements by which the pods of a bridge receive nothing from those of
// other such bridges, and with apart not from each other, as far as the node routes
// between them. Apart comes before together, whichever was first.
func policy(bridge string, apart bool) []element {
	name, second := interfaceName(bridge), togetherSet
	if apart {
		second = apartSet
	}
	return []element{
		{policedSet, nftables.SetElement{Key: name}},
		{second, nftables.SetElement{Key: slices.Concat(name, name)}},
	}
}

// Police keeps pods of other policed bridges from sending to those of a bridge, and with
// apart also its own. It applies until the table is removed.
func (t *Table) Police(ctx context.Context, bridge string, apart bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if present, err := t.polices(bridge, apart); present || err != nil {
		return err
	}
	err := t.again(ctx, func() error {
		if err := t.ensure(ctx); err != nil {
			return err
		}
		present, err := t.hasChain(ingressChain)
		if err != nil {
			return err
		}
		if !present {
			if err := t.addIngress(); err != nil {
				return err
			}
		}

		for _, e := range policy(bridge, apart) {
			if err := t.conn.SetAddElements(t.ingress[e.set], []nftables.SetElement{e.SetElement}); err != nil {
				return err
			}
		}
		return t.conn.Flush()
	})
	if err != nil {
		return fmt.Errorf("isolate bridge %s: %w", bridge, explain(err))
	}
	return nil
}

// Polices reports whether [Table.Police] applies to a bridge.
func (t *Table) Polices(bridge string, apart bool) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.polices(bridge, apart)
}

func (t *Table) polices(bridge string, apart bool) (bool, error) {
	present, err := t.hasChain(ingressChain)
	if !present || err != nil {
		return false, err
	}
	for _, e := range policy(bridge, apart) {
		if found, err := t.find(e); found == nil || err != nil {
			return false, err
		}
	}
	return true, nil
}

// addIngress queues the chain and its sets. Another process may do so at the same time.
func (t *Table) addIngress() error {
	for _, s := range t.ingress {
		if err := t.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	chain := t.conn.AddChain(&nftables.Chain{
		Name: ingressChain, Table: t.table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	t.conn.FlushChain(chain)

	const words = unix.IFNAMSIZ / 4
	load := func(key expr.MetaKey, word uint32) []expr.Any {
		return []expr.Any{&expr.Meta{Key: key, Register: firstRegister + word}}
	}
	within := func(name string) []expr.Any {
		return []expr.Any{&expr.Lookup{SourceRegister: firstRegister, SetName: name, SetID: t.ingress[name].ID}}
	}
	both := slices.Concat(load(expr.MetaKeyIIFNAME, 0), load(expr.MetaKeyOIFNAME, words))
	t.rule(chain, both, within(apartSet), verdict(expr.VerdictDrop))
	t.rule(chain, both, within(togetherSet), verdict(expr.VerdictAccept))
	t.rule(chain, load(expr.MetaKeyIIFNAME, 0), within(policedSet), load(expr.MetaKeyOIFNAME, 0), within(policedSet), verdict(expr.VerdictDrop))
	return nil
}
