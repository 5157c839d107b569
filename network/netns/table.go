package netns

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// RemoveTable removes the table of this name, of family inet, from the packet filter
// of a network namespace. It is no error if there is none.
func RemoveTable(ns *os.File, name string) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return fmt.Errorf("remove packet filter table %s: %w", name, err)
	}

	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove packet filter table %s: %w", name, err)
	}
	return nil
}

// Hold drops what sockets in a network namespace send to others and get from them, until
// [RemoveTable] removes the table of this name. Neighbours still find its addresses. It is no error if it is held
// already.
func Hold(ns *os.File, name string) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return fmt.Errorf("hold the network by table %s: %w", name, err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
	conn.FlushTable(table)

	var loopback [unix.IFNAMSIZ]byte
	copy(loopback[:], "lo")
	for name, at := range map[string]struct {
		hook   *nftables.ChainHook
		device expr.MetaKey
	}{"in": {nftables.ChainHookInput, expr.MetaKeyIIFNAME}, "out": {nftables.ChainHookOutput, expr.MetaKeyOIFNAME}} {
		protocols := &nftables.Set{Table: table, Anonymous: true, Constant: true, KeyType: nftables.TypeInetProto}
		err := conn.AddSet(protocols, []nftables.SetElement{{Key: []byte{unix.IPPROTO_TCP}}, {Key: []byte{unix.IPPROTO_UDP}}, {Key: []byte{unix.IPPROTO_SCTP}}})
		if err != nil {
			return fmt.Errorf("hold the network by table %s: %w", name, err)
		}
		chain := conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: at.hook, Priority: nftables.ChainPriorityRaw})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: at.device, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: loopback[:]},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: protocols.Name, SetID: protocols.ID},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("hold the network by table %s: %w", name, err)
	}
	return nil
}
