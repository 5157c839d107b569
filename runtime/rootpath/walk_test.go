package rootpath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func measure(t *testing.T, dir string) Usage {
	t.Helper()
	u, err := Measure(t.Context(), openDir(t, dir))
	must(t, err)
	return u
}

// Deep trees are counted completely, without more descriptors.
func TestMeasureDeep(t *testing.T) {
	for _, tt := range []struct {
		name  string
		depth int
		bush  int
	}{{"d", 30_000, 0}, {strings.Repeat("n", 255), 2_000, 0}, {"bushy", 3_000, 3}} {
		t.Run(fmt.Sprintf("%.5s%d", tt.name, tt.depth), func(t *testing.T) {
			root, dir, _ := tree(t)
			must(t, os.Mkdir(dir+"/volume", 0o755))
			inner := chain(t, dir+"/volume", tt.name, tt.depth, tt.bush)
			must(t, unix.Mknodat(int(inner.Fd()), "hidden", unix.S_IFREG|0o600, 0))

			want := uint64(tt.depth + 2)
			if tt.bush > 0 {
				want += 2 * uint64((tt.depth+tt.bush-1)/tt.bush)
			}

			before := openDescriptors(t)
			limitDescriptors(t, maxDepth+16)
			if u := measure(t, dir+"/volume"); u.Inodes != want || u.Partial {
				t.Errorf("%+v, want %d inodes", u, want)
			}

			if after := openDescriptors(t); after > before+1 { // of openDir
				t.Errorf("%d descriptors before, %d after", before, after)
			}
			must(t, RemoveAll(t.Context(), root, "volume"))
		})
	}
}

// Directories are read in batches; no entry is missed or counted twice when the
// walk returns to them, near the top or deep down.
func TestMeasureWide(t *testing.T) {
	_, dir, _ := tree(t)
	const dirs, files = 300, 400
	want := uint64(1)
	for _, prefix := range []string{"", strings.Repeat("d/", 2*maxDepth)} {
		must(t, os.MkdirAll(dir+"/"+prefix+"wide", 0o755))
		for i := range dirs {
			must(t, os.MkdirAll(fmt.Sprintf("%s/%swide/%d/sub", dir, prefix, i), 0o755))
		}
		for i := range files {
			must(t, os.WriteFile(fmt.Sprintf("%s/%swide/f%d", dir, prefix, i), nil, 0o600))
		}
		want += 1 + 2*dirs + files + uint64(strings.Count(prefix, "/"))
	}

	if u := measure(t, dir); u.Inodes != want || u.Partial {
		t.Errorf("%+v, want %d inodes", u, want)
	}
}

// A file with several names counts once, however many such files exist.
func TestMeasureLinks(t *testing.T) {
	_, dir, _ := tree(t)
	must(t, os.WriteFile(dir+"/a", make([]byte, 1<<20), 0o600))
	for i := range 9 {
		must(t, os.Link(dir+"/a", fmt.Sprintf("%s/b%d", dir, i)))
	}

	if u := measure(t, dir); u.Inodes != 2 || u.Bytes < 1<<20 || u.Bytes > 1<<20+64<<10 {
		t.Errorf("%+v", u)
	}

	// Of several trees it counts in the first.
	other := t.TempDir()
	must(t, os.Link(dir+"/a", other+"/a"))
	k := NewMeter()
	for i, path := range []string{dir, other} {
		u, err := k.Measure(t.Context(), openDir(t, path))
		must(t, err)
		if want := uint64(2 - i); u.Inodes != want || (u.Bytes >= 1<<20) != (i == 0) {
			t.Errorf("tree %d: %+v, want %d inodes", i, u, want)
		}
	}

	// Beyond the bound each name counts for its share.
	m := measurer{linked: map[fileID]struct{}{}}
	const inodes, names = maxLinked + 10_000, 3
	for range names {
		for i := range uint64(inodes) {
			m.add(&unix.Stat_t{Ino: i, Nlink: names, Blocks: 8, Mode: unix.S_IFREG})
		}
	}

	if len(m.linked) > maxLinked {
		t.Errorf("remembers %d files", len(m.linked))
	}
	if u := m.usage(false); u.Inodes != inodes || u.Bytes < inodes*4096 || u.Bytes > inodes*4097 {
		t.Errorf("%+v, want %d inodes", u, inodes)
	}
}

func TestMeasureCancelled(t *testing.T) {
	_, dir, _ := tree(t)
	for i := range 2 * ctxEvery {
		must(t, os.WriteFile(fmt.Sprintf("%s/%d", dir, i), nil, 0o600))
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	u, err := Measure(ctx, openDir(t, dir))
	if !errors.Is(err, cause) || !u.Partial || u.Inodes < ctxEvery/2 {
		t.Errorf("%+v, %v", u, err)
	}
}

// Deep directories are moved continuously. The walk terminates, never counts
// files outside, and reports when it has missed something.
func TestMeasureAgainstMoves(t *testing.T) {
	_, dir, _ := tree(t)
	deep := dir + "/in/" + strings.Repeat("d/", 2*maxDepth)
	must(t, os.MkdirAll(deep+"x/y", 0o755))
	must(t, os.MkdirAll(dir+"/elsewhere/x", 0o755))

	for i := range 200 {
		must(t, os.WriteFile(fmt.Sprintf("%sx/y/%d", deep, i), nil, 0o600))
		must(t, os.WriteFile(fmt.Sprintf("%s/elsewhere/%d", dir, i), nil, 0o600))
	}

	whole := measure(t, dir+"/in")
	stop := exchange(t, deep+"x", dir+"/elsewhere/x")
	defer stop()
	partial, walks := 0, 0
	for end := time.Now().Add(raceTime); time.Now().Before(end); walks++ {
		u := measure(t, dir+"/in")
		if u.Inodes > whole.Inodes {
			t.Fatalf("%+v, more than the %+v that exist", u, whole)
		}
		if u.Partial {
			partial++
		}
	}
	t.Logf("%d of %d walks were partial", partial, walks)
}
