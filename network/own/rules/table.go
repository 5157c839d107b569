package rules

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netns"
)

const (
	// TableName is the table's name, in the family inet.
	TableName = "crisp-net"
	// IsolatedGroup is the group of the interfaces through which isolated pods are
	// reached: the bridge, or the host's end of each pod's pair.
	IsolatedGroup = 25467

	// layoutChain marks a complete table of this layout. It has no rules.
	layoutChain = "layout-1"
)

// Table is the table of a network namespace. It is safe for concurrent use, also by
// several processes.
type Table struct {
	mu    sync.Mutex
	conn  *nftables.Conn
	query *netlink.Conn
	table *nftables.Table
	sets  map[string]*nftables.Set
	// ingress are the sets of a chain that not every node needs.
	ingress map[string]*nftables.Set
}

// Open returns the table of a namespace. It creates nothing: the table is made when
// something is added to it.
func Open(host *os.File) (*Table, error) {
	t := &Table{table: &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}}
	t.sets, t.ingress = sets(t.table), ingressSets(t.table)
	err := netns.Do(host, func() error {
		var err error
		if t.conn, err = nftables.New(nftables.AsLasting()); err != nil {
			return err
		}
		t.query, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open packet filter: %w", explain(err)), t.Close())
	}
	return t, nil
}

// Close closes the connections. The table stays.
func (t *Table) Close() error {
	var errs []error
	if t.conn != nil {
		errs = append(errs, t.conn.CloseLasting())
	}
	if t.query != nil {
		errs = append(errs, t.query.Close())
	}
	return errors.Join(errs...)
}

// sets describes the sets and maps, by name.
func sets(table *nftables.Table) map[string]*nftables.Set {
	all := map[string]*nftables.Set{}
	add := func(s *nftables.Set) {
		s.Table, s.KeyByteOrder = table, binaryutil.BigEndian
		all[s.Name] = s
	}

	for _, f := range families {
		port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
		backend := nftables.MustConcatSetType(f.addrType, nftables.TypeInetService)
		add(&nftables.Set{Name: "ports" + f.suffix, IsMap: true, Concatenation: true, KeyType: port, DataType: backend})
		add(&nftables.Set{
			Name: "addr" + f.suffix, IsMap: true, Concatenation: true, DataType: backend,
			KeyType: nftables.MustConcatSetType(f.addrType, nftables.TypeInetProto, nftables.TypeInetService),
		})
		add(&nftables.Set{
			Name: "backend" + f.suffix, Concatenation: true,
			KeyType: nftables.MustConcatSetType(f.addrType, nftables.TypeInetProto, nftables.TypeInetService),
		})
		add(&nftables.Set{Name: "self" + f.suffix, Concatenation: true, KeyType: nftables.MustConcatSetType(f.addrType, f.addrType)})
		add(&nftables.Set{Name: "sources" + f.suffix, IsMap: true, Interval: true, KeyType: f.addrType, DataType: nftables.TypeVerdict})
	}

	return all
}

// ensure makes the table, unless it is complete. An incomplete one, or one of
// another layout, is replaced. The caller holds the lock.
func (t *Table) ensure(ctx context.Context) error {
	for {
		complete, err := t.hasChain(layoutChain)
		if complete || err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("make table %s: %w", TableName, err)
		}

		// Adding before deleting makes the deletion succeed in any case.
		t.conn.AddTable(t.table)
		t.conn.DelTable(t.table)
		t.conn.AddTable(t.table)
		for _, s := range t.sets {
			if err := t.conn.AddSet(s, nil); err != nil {
				return fmt.Errorf("make table %s: set %s: %w", TableName, s.Name, err)
			}
		}
		t.addChains()
		if err := t.conn.Flush(); err != nil {
			return fmt.Errorf("make table %s: %w", TableName, explain(err))
		}
	}
}

// flushes is how often in a row another program may flush the packet filter in the middle
// of a change.
const flushes = 5

// again makes a change, and makes it again if the table vanished meanwhile.
func (t *Table) again(ctx context.Context, change func() error) error {
	for left := flushes; ; left-- {
		err := change()
		if !errors.Is(err, unix.ENOENT) || left == 0 || context.Cause(ctx) != nil {
			return err
		}
	}
}

// hasChain reports whether the table has a chain.
func (t *Table) hasChain(name string) (bool, error) {
	_, err := t.get(unix.NFT_MSG_GETCHAIN, []netlink.Attribute{
		{Type: unix.NFTA_CHAIN_TABLE, Data: text(TableName)},
		{Type: unix.NFTA_CHAIN_NAME, Data: text(name)},
	})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for chain %s: %w", name, explain(err))
	}
	return true, nil
}

// get asks the kernel for one object.
func (t *Table) get(message uint16, attributes []netlink.Attribute) ([]netlink.Message, error) {
	data, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return nil, err
	}
	return t.query.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message), Flags: netlink.Request},
		// struct nfgenmsg: family, version, resource.
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	})
}

// explain adds what an error of the kernel means here.
func explain(err error) error {
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("%w: load the modules nf_tables, nft_chain_nat, nft_nat, nft_masq and nft_fib_inet: %w", ErrUnsupported, err)
	}
	return err
}

// text is a string in netlink's form.
func text(s string) []byte { return append([]byte(s), 0) }
