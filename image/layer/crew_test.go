package layer

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOrderHolds unpacks archives of random entries whose names get into each
// other's way, once with small files, which the crew makes, and once with
// files too big for it, which are made in order.
func TestOrderHolds(t *testing.T) {
	whole := 0
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 1))
		names := []string{"a", "b", "d", "d/a", "d/b", "d/d", "d/d/a", "l", "l/a", "l/d/b", "e/f/a"}
		pick := func() string { return names[random.IntN(len(names))] }
		var small, big []entry
		for i := range 2 + random.IntN(14) {
			name := pick()
			var e entry
			switch random.IntN(16) {
			case 0, 1, 2:
				e = directory(name, 0o755)
			case 3:
				e = link(name, path.Base(pick()))
			case 4:
				e = hard(name, pick())
			case 5:
				e = reg(path.Join(path.Dir(name), ".wh."+path.Base(name)), "")
			default:
				content := fmt.Sprintf("%d ", i)
				small = append(small, reg(name, content))
				big = append(big, reg(name, content+strings.Repeat(".", maxSmallFile)))
				continue
			}
			small, big = append(small, e), append(big, e)
		}

		one, other := newSandbox(t), newSandbox(t)
		u, err := one.unpack(false, small...)
		v, verr := other.unpack(false, big...)
		if (err == nil) != (verr == nil) || errors.Is(err, ErrInvalid) != errors.Is(verr, ErrInvalid) {
			t.Errorf("seed %d: %v, in order %v", seed, err, verr)
			continue
		}
		if err != nil {
			continue // what is there then is thrown away
		}

		whole++
		want := other.listing()
		for name, what := range want {
			want[name] = strings.TrimRight(what, ".")
		}

		if got := one.listing(); !maps.Equal(got, want) {
			t.Errorf("seed %d: %v\nin order: %v", seed, got, want)
		}
		if u.usage.Inodes != v.usage.Inodes {
			t.Errorf("seed %d: %d inodes, in order %d", seed, u.usage.Inodes, v.usage.Inodes)
		}
	}

	if whole < 5 {
		t.Errorf("only %d archives could be unpacked", whole)
	}
}

// TestCrewErrors checks that the error of a file made beside the archive's
// reader ends the unpacking and names the file.
func TestCrewErrors(t *testing.T) {
	s := newSandbox(t)
	if err := unix.Mount("tmpfs", s.tree, "tmpfs", 0, "nr_inodes=50"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(s.tree, 0); err != nil {
			t.Error(err)
		}
	})

	root, err := os.Open(s.tree)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()

	s.root = root
	var entries []entry
	for i := range 1000 {
		entries = append(entries, reg(fmt.Sprintf("file%d", i), "x"))
	}

	_, err = s.unpack(true, entries...)
	if !errors.Is(err, unix.ENOSPC) || strings.Count(err.Error(), "unpack") != 1 {
		t.Errorf("error %v, want one of no space in one file", err)
	}
}
