package lease

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
)

// Held is a lease as it is in the store.
type Held struct {
	Addr netip.Addr
	// Owner is zero if the file has none: see the package's documentation. It has no
	// IfName if an old release of host-local wrote it.
	Owner Owner
}

// List returns all leases, by address, and with an error those that can be read. A
// directory that does not exist has none.
func (s *Store) List() ([]Held, error) {
	taken, err := s.taken()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}

	var list []Held
	var errs []error
	for addr := range taken {
		o, err := s.ownerOf(addr)
		if errors.Is(err, fs.ErrNotExist) {
			continue // released since
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, Held{addr, o})
	}
	slices.SortFunc(list, func(a, b Held) int { return a.Addr.Compare(b.Addr) })
	return list, errors.Join(errs...)
}

// ownerOf returns the owner of a lease, zero if it was never written.
func (s *Store) ownerOf(addr netip.Addr) (Owner, error) {
	text, err := s.owner(addr)
	if err != nil {
		return Owner{}, err
	}
	return parseOwner(text), nil
}

// parseOwner reads what [Owner] writes, or an ID alone.
func parseOwner(text string) Owner {
	id, ifName, _ := strings.Cut(text, lineBreak)
	return Owner{ID: id, IfName: ifName}
}

// Claim assigns addresses that an attachment already has, and whose leases are lost.
// The error is [ErrTaken] if one is assigned to another pod.
func (s *Store) Claim(ctx context.Context, o Owner, addrs []netip.Addr) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()

	for _, addr := range addrs {
		if s.owns(o, addr) {
			continue
		}
		free, err := s.create(o, addr, true)
		if err != nil {
			return err
		}
		if !free {
			return fmt.Errorf("assign address %s again: %w", addr, ErrTaken)
		}
	}
	return nil
}
