package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func mustRange(t testing.TB, subnet, start, end string) Range {
	t.Helper()
	var a, b netip.Addr
	if start != "" {
		a, b = netip.MustParseAddr(start), netip.MustParseAddr(end)
	}
	r, err := NewRange(subnet, a, b, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), "net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// always says that the pods of all networks meet.
func always(Owner) bool { return true }

func owner(i int) Owner { return Owner{ID: fmt.Sprint("pod", i), IfName: "eth0"} }

// reserve returns the addresses that are assigned, as text.
func reserve(t testing.TB, s *Store, o Owner, sets []RangeSet, want ...string) (string, error) {
	t.Helper()
	var addrs []netip.Addr
	for _, w := range want {
		addrs = append(addrs, netip.MustParseAddr(w))
	}
	leases, err := s.Reserve(t.Context(), o, sets, addrs, always)
	var list []string
	for _, l := range leases {
		list = append(list, l.Addr.String())
	}
	return strings.Join(list, " "), err
}

func TestReserveGoesRound(t *testing.T) {
	s := open(t)
	sets := []RangeSet{
		{mustRange(t, "10.0.0.0/29", "10.0.0.1", "10.0.0.3"), mustRange(t, "10.1.0.0/24", "10.1.0.7", "10.1.0.8")},
		{mustRange(t, "fd00::/64", "", "")},
	}
	for i, want := range []string{"10.0.0.2 fd00::2", "10.0.0.3 fd00::3", "10.1.0.7 fd00::4", "10.1.0.8 fd00::5"} {
		if got, err := reserve(t, s, owner(i), sets); got != want || err != nil {
			t.Errorf("pod %d has %q, %v; want %q", i, got, err, want)
		}
	}

	if _, err := reserve(t, s, owner(9), sets); !errors.Is(err, ErrExhausted) {
		t.Errorf("exhausted: %v", err)
	}
	if own, err := s.Of(owner(9), nil); len(own) > 0 || err != nil {
		t.Errorf("a refused pod has %v, %v", own, err)
	}

	// Of all that are free, the one after the last.
	for _, i := range []int{0, 2} {
		if err := s.Release(t.Context(), owner(i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := reserve(t, s, owner(5), sets); got != "10.0.0.2 fd00::6" || err != nil {
		t.Errorf("reused %q, %v", got, err)
	}
}

func TestReserveRequested(t *testing.T) {
	s := open(t)
	sets := []RangeSet{{mustRange(t, "10.0.0.0/24", "", "")}, {mustRange(t, "fd00::/64", "", "")}}
	if got, err := reserve(t, s, owner(1), sets, "fd00::77", "10.0.0.77"); got != "10.0.0.77 fd00::77" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}

	for name, test := range map[string]struct {
		want string
		err  error
	}{
		"taken":     {"10.0.0.77", ErrTaken},
		"outside":   {"10.9.0.1", ErrOutside},
		"gateway":   {"10.0.0.1", ErrOutside},
		"broadcast": {"10.0.0.255", ErrOutside},
	} {
		if got, err := reserve(t, s, owner(2), sets, test.want); !errors.Is(err, test.err) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		if own, _ := s.Of(owner(2), nil); len(own) > 0 {
			t.Errorf("%s: %v is left", name, own)
		}
	}
}

// TestFormat reads and writes what host-local does.
func TestFormat(t *testing.T) {
	s := open(t)
	sets := []RangeSet{{mustRange(t, "10.0.0.0/24", "", "")}}
	for name, text := range map[string]string{
		"10.0.0.5": "pod5\r\neth0", "10.0.0.6": "pod6", "last_reserved_ip.0": "10.0.0.4", "lock": "", "README": "a foreign file", "10.0.0.7": "",
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	if got, err := reserve(t, s, owner(1), sets); got != "10.0.0.8" || err != nil {
		t.Errorf("after 5 to 7: %q, %v", got, err)
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "10.0.0.8"))
	if err != nil || string(text) != "pod1\r\neth0" {
		t.Errorf("lease is %q, %v", text, err)
	}
	if last, err := os.ReadFile(filepath.Join(s.dir, "last_reserved_ip.0")); err != nil || string(last) != "10.0.0.8" {
		t.Errorf("last is %q, %v", last, err)
	}

	for _, i := range []int{5, 6} {
		if own, err := s.Of(owner(i), nil); len(own) != 1 || err != nil {
			t.Errorf("pod %d has %v, %v", i, own, err)
		}
	}
	// A file without an owner is left by a process that was killed.
	if got, err := reserve(t, s, owner(7), sets, "10.0.0.7"); got != "10.0.0.7" || err != nil {
		t.Errorf("torn lease: %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "README")); err != nil {
		t.Error(err)
	}
}

// TestForeignHint assigns nothing, and does not wait, if what keeps the last address is
// not a file.
func TestForeignHint(t *testing.T) {
	sets := []RangeSet{{mustRange(t, "10.0.0.0/24", "", "")}}
	for name, place := range map[string]func(path string) error{
		"directory":  func(path string) error { return os.Mkdir(path, 0o755) },
		"named pipe": func(path string) error { return unix.Mkfifo(path, 0o600) },
	} {
		s := open(t)
		if err := place(s.path(lastPrefix + "0")); err != nil {
			t.Fatal(err)
		}
		if got, err := reserve(t, s, owner(1), sets); err == nil || !strings.Contains(err.Error(), lastPrefix) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if own, err := s.Of(owner(1), nil); len(own) != 0 || err != nil {
			t.Errorf("%s: leased %v, %v", name, own, err)
		}
	}
}

// TestReleaseOnlyOwn leaves the lease of the pod that has the address now.
func TestReleaseOnlyOwn(t *testing.T) {
	s := open(t)
	sets := []RangeSet{{mustRange(t, "10.0.0.0/24", "", "")}}
	addr := []netip.Addr{netip.MustParseAddr("10.0.0.9")}
	if _, err := reserve(t, s, owner(1), sets, "10.0.0.9"); err != nil {
		t.Fatal(err)
	}
	for _, o := range []Owner{owner(2), {ID: "pod1", IfName: "net1"}} {
		if err := s.Release(t.Context(), o, addr); err != nil {
			t.Fatal(err)
		}
	}
	if own, err := s.Of(owner(1), addr); !slices.Equal(own, addr) || err != nil {
		t.Errorf("pod has %v, %v", own, err)
	}
}

func TestCollect(t *testing.T) {
	s := open(t)
	sets := []RangeSet{{mustRange(t, "10.0.0.0/24", "", "")}}
	for i := range 4 {
		if _, err := reserve(t, s, owner(i), sets); err != nil {
			t.Fatal(err)
		}
	}

	stuck := errors.New("cannot be undone")
	var asked []string
	err := s.Collect(t.Context(), func(o Owner) bool { return o == owner(1) }, func(o Owner, addr netip.Addr) error {
		asked = append(asked, o.ID)
		if o == owner(2) {
			return stuck
		}
		return nil
	})
	slices.Sort(asked)
	if !errors.Is(err, stuck) || !slices.Equal(asked, []string{"pod0", "pod2", "pod3"}) {
		t.Errorf("asked for %v, %v", asked, err)
	}
	for i, kept := range []bool{false, true, true, false} {
		if own, err := s.Of(owner(i), nil); (len(own) == 1) != kept || err != nil {
			t.Errorf("pod %d has %v, %v; want kept %v", i, own, err, kept)
		}
	}
}

// TestOtherNetworks passes over what another network has leased to a pod that meets the
// new one, as after a configuration was renamed.
func TestOtherNetworks(t *testing.T) {
	dir := t.TempDir()
	store := func(network string) *Store {
		s, err := Open(dir, network)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	old, renamed := store("old"), store("new")
	sets := []RangeSet{{mustRange(t, "10.0.0.0/24", "10.0.0.2", "10.0.0.14")}}
	for i := range 11 {
		if _, err := reserve(t, old, owner(i), sets); err != nil {
			t.Fatal(err)
		}
	}
	// One that is being written, and what is no network.
	if err := os.WriteFile(old.path("10.0.0.13"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "10.0.0.14"), []byte("pod\r\neth0"), 0o600); err != nil {
		t.Fatal(err)
	}

	if got, err := reserve(t, renamed, owner(20), sets, "10.0.0.4"); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "networks") || !strings.Contains(err.Error(), "old") {
		t.Errorf("an address of the other network: %q, %v", got, err)
	}
	if got, err := reserve(t, renamed, owner(21), sets); got != "10.0.0.14" || err != nil {
		t.Errorf("the first free address: %q, %v", got, err)
	}
	if got, err := reserve(t, renamed, owner(22), sets); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "old") {
		t.Errorf("all are in use: %q, %v", got, err)
	}
	for _, i := range []int{20, 22} {
		if own, err := renamed.Of(owner(i), nil); len(own) != 0 || err != nil {
			t.Errorf("a refused pod has %v, %v", own, err)
		}
	}

	apart := func(o Owner) bool { return o != owner(2) }
	leases, err := renamed.Reserve(t.Context(), owner(23), sets, nil, apart)
	if err != nil || len(leases) != 1 || leases[0].Addr.String() != "10.0.0.4" {
		t.Errorf("the address of a pod that it does not meet: %v, %v", leases, err)
	}
}

// TestOtherDirectories has networks with directories of leases of their own, as the
// default network and that of an add-on have.
func TestOtherDirectories(t *testing.T) {
	first, second, absent := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "none")
	store := func(dir, network string) *Store {
		s, err := Open(dir, network, first, second, absent)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	sets := []RangeSet{{mustRange(t, "10.0.0.0/24", "10.0.0.2", "10.0.0.5")}}

	for i, s := range []*Store{store(first, "default"), store(second, "addon"), store(first, "default"), store(absent, "third")} {
		want := fmt.Sprint("10.0.0.", 2+i)
		if got, err := reserve(t, s, owner(i), sets); got != want || err != nil {
			t.Errorf("address %d: %q, %v, want %s", i, got, err, want)
		}
	}
	_, err := reserve(t, store(first, "default"), owner(9), sets)
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), filepath.Join(second, "addon")) || strings.Contains(err.Error(), filepath.Join(first, "default")) {
		t.Errorf("all are in use: %v", err)
	}
}

// TestNoAddressTwice assigns and releases from many goroutines, each with a store of
// its own as processes have, for two networks.
func TestNoAddressTwice(t *testing.T) {
	dir := t.TempDir()
	sets := []RangeSet{{mustRange(t, "10.0.0.0/24", "", "")}}
	var used sync.Map
	var clients sync.WaitGroup

	for client := range 32 {
		clients.Go(func() {
			s, err := Open(dir, fmt.Sprint("net", client%2))
			if err != nil {
				t.Error(err)
				return
			}
			for round := range 20 {
				o := owner(client*1000 + round)
				leases, err := s.Reserve(t.Context(), o, sets, nil, always)
				if err != nil {
					t.Error(err)
					return
				}
				addr := leases[0].Addr
				if other, taken := used.LoadOrStore(addr, o.ID); taken {
					t.Errorf("%s was assigned to %s and %s", addr, other, o.ID)
				}
				used.Delete(addr)
				if err := s.Release(t.Context(), o, []netip.Addr{addr}); err != nil {
					t.Error(err)
				}
			}
		})
	}

	clients.Wait()
}

func TestRangesThatAreRefused(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"subnet":"10.0.0.0/24"}`:                                               true,
		`{"subnet":"10.0.0.0/30","rangeStart":"10.0.0.2"}`:                       true,
		`{"subnet":"10.0.0.1/24"}`:                                               false,
		`{"subnet":"10.0.0.0/31"}`:                                               false,
		`{"subnet":"10.0.0.0"}`:                                                  false,
		`{"subnet":"10.0.0.0/24","gateway":"10.0.1.1"}`:                          false,
		`{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}`: false,
		`{"subnet":"10.0.0.0/24","rangestop":"10.0.0.9"}`:                        false,
		`{}`: false,
	} {
		var r Range
		if err := r.UnmarshalJSON([]byte(text)); (err == nil) != ok || err != nil && !errors.Is(err, ErrInvalidRange) {
			t.Errorf("%s: %v", text, err)
		}
	}

	a, b := mustRange(t, "10.0.0.0/24", "", ""), mustRange(t, "10.0.0.128/25", "", "")
	six := mustRange(t, "fd00::/64", "", "")
	for name, sets := range map[string][]RangeSet{"none": {}, "empty": {{}}, "overlap": {{a, b}}, "overlapping sets": {{a}, {b}}, "two families": {{a, six}}} {
		if err := Check(sets); !errors.Is(err, ErrInvalidRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Check([]RangeSet{{a}, {six}}); err != nil {
		t.Error(err)
	}
}

// BenchmarkReserve assigns an address while many others are assigned.
func BenchmarkReserve(b *testing.B) {
	for _, full := range []int{10, 1000} {
		b.Run(fmt.Sprint(full), func(b *testing.B) {
			s := open(b)
			sets := []RangeSet{{mustRange(b, "10.0.0.0/16", "", "")}}
			for i := range full {
				if _, err := s.Reserve(b.Context(), owner(i), sets, nil, always); err != nil {
					b.Fatal(err)
				}
			}

			for b.Loop() {
				leases, err := s.Reserve(b.Context(), owner(-1), sets, nil, always)
				if err != nil {
					b.Fatal(err)
				}
				if err := s.Release(b.Context(), owner(-1), []netip.Addr{leases[0].Addr}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
