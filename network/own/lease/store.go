package lease

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultDir is where host-local keeps its leases.
	DefaultDir = "/var/lib/cni/networks"

	lockName   = "lock"
	lastPrefix = "last_reserved_ip."
	lineBreak  = "\r\n"

	// lockInterval is how often a lock that another process holds is tried.
	lockInterval = time.Millisecond
	// maxOwner bounds how much of a lease's file is read, in bytes.
	maxOwner = 4 << 10
	// probes is how many addresses are tried before the directory is listed:
	// usually the one after the last is free.
	probes = 8
)

// Owner is the attachment that has a lease.
type Owner struct{ ID, IfName string }

// Lease is an address that was assigned.
type Lease struct {
	Addr netip.Addr
	// Range is the range that it is from.
	Range Range
}

// Store has the leases of one network.
type Store struct {
	dir string
	// beside are more directories of networks' leases.
	beside []string
}

// Open returns the store of a network in dataDir, which it creates; "" is
// [DefaultDir]. The name of the network must be valid in CNI. The leases of other
// networks are in dataDir, too, and in the directories beside it, which need not exist.
func Open(dataDir, network string, beside ...string) (*Store, error) {
	s := Look(dataDir, network)
	s.beside = beside
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory of leases: %w", err)
	}
	return s, nil
}

// Look returns the store of a network, of which only [Store.Of] and [Store.List] may be
// used: it creates nothing.
func Look(dataDir, network string) *Store {
	if dataDir == "" {
		dataDir = DefaultDir
	}
	return &Store{dir: filepath.Join(dataDir, network)}
}

// Reserve assigns an address of each range set to an attachment: one of want if
// that is in the set, else the next free one. What another network has leased to a pod
// that meets this one is not free. It assigns all of them or none. The errors are
// [ErrExhausted], [ErrTaken] and [ErrOutside].
func (s *Store) Reserve(ctx context.Context, o Owner, sets []RangeSet, want []netip.Addr, meets Meets) ([]Lease, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	others, err := s.others(meets)
	if err != nil {
		return nil, err
	}

	want = slices.Clone(want)
	var leases []Lease
	for i, set := range sets {
		l, err := s.fromSet(o, i, set, &want, others)
		if err != nil {
			return nil, errors.Join(err, s.undo(leases))
		}
		leases = append(leases, l)
	}

	if len(want) > 0 {
		return nil, errors.Join(fmt.Errorf("assign address %s: %w", want[0], ErrOutside), s.undo(leases))
	}
	return leases, nil
}

// fromSet assigns one address of a set, and removes it from want if it is there.
func (s *Store) fromSet(o Owner, index int, set RangeSet, want *[]netip.Addr, others *others) (Lease, error) {
	for i, addr := range *want {
		r, ok := set.find(addr)
		if !ok {
			continue
		}

		*want = slices.Delete(*want, i, i+1)
		free, err := s.assign(o, addr, true, others)
		if err != nil {
			return Lease{}, err
		}
		if !free {
			return Lease{}, others.explain(fmt.Errorf("assign address %s: %w", addr, ErrTaken))
		}
		return Lease{Addr: addr, Range: r}, nil
	}

	l, err := s.next(o, set, s.last(index), others)
	if errors.Is(err, ErrExhausted) {
		return Lease{}, others.explain(err)
	}
	if err != nil {
		return Lease{}, err
	}
	// Only a hint for the next call: a torn or missing one costs some probes.
	if err := write(s.path(lastPrefix+strconv.Itoa(index)), 0, l.Addr.String()); err != nil {
		return Lease{}, errors.Join(fmt.Errorf("note that %s was assigned last: %w", l.Addr, err), s.undo([]Lease{l}))
	}
	return l, nil
}

// next assigns the first free address after last, going round. After a few
// addresses that are taken it lists the directory, once, instead of trying all.
func (s *Store) next(o Owner, set RangeSet, last netip.Addr, others *others) (Lease, error) {
	c := newCursor(set, last)
	for range probes {
		addr, ok := c.next()
		if !ok {
			return Lease{}, exhausted(set)
		}
		free, err := s.assign(o, addr, false, others)
		if err != nil {
			return Lease{}, err
		}
		if free {
			return Lease{Addr: addr, Range: c.current()}, nil
		}
	}

	taken, err := s.taken()
	if err != nil {
		return Lease{}, err
	}
	for c = newCursor(set, last); ; {
		addr, ok := c.next()
		if !ok {
			return Lease{}, exhausted(set)
		}
		if taken[addr] {
			continue
		}
		free, err := s.assign(o, addr, true, others)
		if err != nil {
			return Lease{}, err
		}
		if free {
			return Lease{Addr: addr, Range: c.current()}, nil
		}
	}
}

func exhausted(set RangeSet) error {
	var names []string
	for _, r := range set {
		names = append(names, r.Start.String()+"-"+r.End.String())
	}
	return fmt.Errorf("assign an address of %s: %w: all are assigned to pods", strings.Join(names, ", "), ErrExhausted)
}

// assign creates a lease unless another network has the address. Two networks have no lock
// in common: each creates its lease and then looks, so that at least one sees the other's.
func (s *Store) assign(o Owner, addr netip.Addr, reclaim bool, others *others) (bool, error) {
	if others.have(addr) {
		return false, nil
	}
	free, err := s.create(o, addr, reclaim)
	if !free || err != nil || !others.have(addr) {
		return free, err
	}
	return false, s.undo([]Lease{{Addr: addr}})
}

// create writes the file of a lease. It returns false if the address is taken. With
// reclaim, it takes over a file without an owner.
func (s *Store) create(o Owner, addr netip.Addr, reclaim bool) (bool, error) {
	path := s.path(addr.String())
	err := write(path, os.O_EXCL, o.text())
	if errors.Is(err, fs.ErrExist) {
		if owner, e := s.owner(addr); !reclaim || e != nil || owner != "" {
			return false, nil
		}
		err = write(path, 0, o.text())
	}
	if err != nil {
		return false, fmt.Errorf("write lease of %s: %w", addr, err)
	}
	return true, nil
}

// Release gives back addresses of an attachment. Known ones are those of its
// result; without any, all leases are searched. What belongs to another owner is
// left.
func (s *Store) Release(ctx context.Context, o Owner, known []netip.Addr) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()

	if len(known) == 0 {
		if known, err = s.of(o); err != nil {
			return err
		}
	}
	for _, addr := range known {
		if !s.owns(o, addr) {
			continue
		}
		if err := os.Remove(s.path(addr.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("release %s: %w", addr, err)
		}
	}
	return nil
}

// Of returns the addresses that an attachment has. If known is not empty only those
// are considered, else all leases are read.
func (s *Store) Of(o Owner, known []netip.Addr) ([]netip.Addr, error) {
	if len(known) == 0 {
		return s.of(o)
	}
	var own []netip.Addr
	for _, addr := range known {
		if s.owns(o, addr) {
			own = append(own, addr)
		}
	}
	return own, nil
}

func (s *Store) of(o Owner) ([]netip.Addr, error) {
	taken, err := s.taken()
	if err != nil {
		return nil, err
	}

	var own []netip.Addr
	for addr := range taken {
		if s.owns(o, addr) {
			own = append(own, addr)
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return own, nil
}

// Collect releases the leases of owners that are not valid, and those without an
// owner. gone is called for each before it is released, and keeps it by an error.
func (s *Store) Collect(ctx context.Context, valid func(Owner) bool, gone func(Owner, netip.Addr) error) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()

	taken, err := s.taken()
	if err != nil {
		return err
	}

	var errs []error
	for addr := range taken {
		o, err := s.ownerOf(addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if o != (Owner{}) && valid(o) {
			continue
		}

		if err := gone(o, addr); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := os.Remove(s.path(addr.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("release %s: %w", addr, err))
		}
	}
	return errors.Join(errs...)
}

// owns reports whether a lease belongs to an owner. Old releases of host-local wrote
// the ID alone.
func (s *Store) owns(o Owner, addr netip.Addr) bool {
	text, err := s.owner(addr)
	return err == nil && (text == o.text() || text == o.ID)
}

// owner returns the content of a lease, "" if it was never written.
func (s *Store) owner(addr netip.Addr) (string, error) {
	text, err := read(s.path(addr.String()))
	if err != nil {
		return "", fmt.Errorf("read lease of %s: %w", addr, err)
	}
	return text, nil
}

// taken lists the addresses that have a file. Other files are ignored.
func (s *Store) taken() (map[netip.Addr]bool, error) {
	d, err := os.Open(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	defer d.Close()

	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	taken := make(map[netip.Addr]bool, len(names))
	for _, name := range names {
		// A name that is not in canonical form is no lease that this package wrote.
		if addr, err := netip.ParseAddr(name); err == nil && addr.String() == name {
			taken[addr] = true
		}
	}
	return taken, nil
}

// undo removes leases that were just created.
func (s *Store) undo(leases []Lease) error {
	var errs []error
	for _, l := range leases {
		errs = append(errs, os.Remove(s.path(l.Addr.String())))
	}
	return errors.Join(errs...)
}

// last returns the address of a range set that was assigned last, if it is known.
func (s *Store) last(index int) netip.Addr {
	text, err := read(s.path(lastPrefix + strconv.Itoa(index)))
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}
	}
	return addr
}

// lock excludes all other goroutines and processes.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(s.path(lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock leases: %w", err)
	}

	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock leases: %w", err), f.Close())
		}

		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock leases in %s, which another process has locked: %w", s.dir, context.Cause(ctx)), f.Close())
		case <-time.After(lockInterval):
		}
	}
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func (o Owner) text() string { return strings.TrimSpace(o.ID) + lineBreak + o.IfName }

// write writes a small file, a new one with the flag O_EXCL. It does not truncate a
// file to nothing first, as ext4 would then write it to the disk when it is closed. It
// waits for no reader of a named pipe.
func write(path string, flags int, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK|flags, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		if flags&os.O_EXCL != 0 {
			err = errors.Join(err, os.Remove(path))
		}
		return errors.Join(err, f.Close())
	}
	if flags&os.O_EXCL == 0 {
		if err := f.Truncate(int64(len(text))); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// read returns the trimmed text of a small regular file.
func read(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxOwner))
	return strings.TrimSpace(string(data)), err
}

// strict decodes JSON without fields that are unknown.
func strict(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(into)
}
