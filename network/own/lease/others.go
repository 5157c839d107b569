package lease

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Meets reports whether the pod that has a lease of another network and the one that asks
// would meet, so that they must not have the same address. Networks that share no bridge
// and that the node does not route may have the same addresses.
type Meets func(Owner) bool

// others are the networks whose leases are beside a store's: a configuration that was
// renamed while pods ran, two of one bridge, or the default network's and an add-on's.
type others struct {
	dirs  []string
	meets Meets
	// passed are the networks because of which an address was passed over.
	passed map[string]bool
}

// others looks for the networks beside the store's own.
func (s *Store) others(meets Meets) (*others, error) {
	o := &others{meets: meets, passed: map[string]bool{}}
	own := filepath.Dir(s.dir)
	for i, parent := range append([]string{own}, s.beside...) {
		if i > 0 && parent == own {
			continue
		}
		entries, err := os.ReadDir(parent)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look for other networks' leases: %w", err)
		}
		for _, e := range entries {
			if dir := filepath.Join(parent, e.Name()); e.IsDir() && dir != s.dir {
				o.dirs = append(o.dirs, dir)
			}
		}
	}
	return o, nil
}

// have reports whether another network has leased an address to a pod that would meet its
// new owner. A lease without an owner may be one that is being written.
func (o *others) have(addr netip.Addr) bool {
	for _, dir := range o.dirs {
		text, err := read(filepath.Join(dir, addr.String()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || text == "" || o.meets(parseOwner(text)) {
			o.passed[dir] = true
			return true
		}
	}
	return false
}

// explain adds the networks that have addresses of a set to an error that there are none.
func (o *others) explain(err error) error {
	if len(o.passed) == 0 {
		return err
	}
	return fmt.Errorf("%w, some by other networks, whose leases can be removed if they have no pods: %s",
		err, strings.Join(slices.Sorted(maps.Keys(o.passed)), ", "))
}
