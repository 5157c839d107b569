package layer

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

const testBoot = "0c2b6c1e"

func openStore(t *testing.T) (*Store, string) {
	t.Helper()
	testkit.Root(t)
	base := t.TempDir()
	temp := filepath.Join(base, "tmp")
	if err := os.Mkdir(temp, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(filepath.Join(base, "layers"), temp, testBoot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, base
}

// stage unpacks a layer on top of parent and returns its chain ID.
func stage(t *testing.T, s *Store, parent digest.Digest, entries ...entry) (*Stage, digest.Digest) {
	t.Helper()
	data := archive(t, entries...)
	diff := digest.FromBytes(data)
	chain := diff

	if parent != "" {
		chain = digest.FromString(parent.String() + " " + diff.String())
	}
	st, err := s.Stage(chain, diff, parent)
	if err != nil {
		t.Fatal(err)
	}

	if err := st.Unpack(t.Context(), source(data), Limits{Bytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	return st, chain
}

func publish(t *testing.T, st *Stage) {
	t.Helper()
	if err := st.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func attributesAt(t *testing.T, path string) (mode, uid, gid uint32, mtime int64) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Mode & 0o7777, st.Uid, st.Gid, st.Mtim.Sec
}

// TestImpliedDirectoriesInherit checks that a layer that puts a file into a
// directory without listing it does not change the directory.
func TestImpliedDirectoriesInherit(t *testing.T) {
	when := time.Unix(1_000_000_000, 0)
	set := func(uid int) func(*tar.Header) {
		return func(h *tar.Header) { h.Uid, h.Gid, h.ModTime = uid, uid+1, when }
	}

	s, base := openStore(t)
	low, lowChain := stage(t, s, "",
		directory(".", 0o711).with(set(1)), directory("tmp", 0o1777).with(set(3)),
		directory("a", 0o700).with(set(5)), directory("a/b", 0o750).with(set(7)), link("l", "tmp"))

	mid, midChain := stage(t, s, lowChain, directory("a", 0o500).with(set(9)), reg(".wh.x", ""))
	high, highChain := stage(t, s, midChain, reg("tmp/f", ""), reg("a/b/f", ""), reg("new/f", ""), reg("l/f", ""))
	publish(t, low)
	publish(t, mid)
	publish(t, high)

	tree := filepath.Join(base, "layers", highChain.Encoded(), treeDir)
	for _, c := range []struct {
		name      string
		mode, uid uint32
	}{{".", 0o711, 1}, {"tmp", 0o1777, 3}, {"a", 0o500, 9}, {"a/b", 0o750, 7}} {
		mode, uid, gid, mtime := attributesAt(t, filepath.Join(tree, c.name))
		if mode != c.mode || uid != c.uid || gid != c.uid+1 || mtime != when.Unix() {
			t.Errorf("%s has mode %o, owner %d:%d, time %d", c.name, mode, uid, gid, mtime)
		}
	}

	for _, name := range []string{"new", "l"} {
		if mode, uid, _, _ := attributesAt(t, filepath.Join(tree, name)); mode != impliedPerm || uid != 0 {
			t.Errorf("%s has mode %o, owner %d", name, mode, uid)
		}
	}
}

// TestAnotherBoot checks that only a layer known to be on disk outlives the boot.
func TestAnotherBoot(t *testing.T) {
	s, base := openStore(t)
	synced, syncedChain := stage(t, s, "", reg("a", "x"))
	publish(t, synced)
	if list := s.Unsynced(); len(list) != 1 || list[0] != syncedChain {
		t.Errorf("not known to be on disk: %v", list)
	}

	if err := s.MarkSynced(syncedChain); err != nil {
		t.Fatal(err)
	}
	if err := s.MarkSynced(digest.FromString("no layer")); err != nil {
		t.Errorf("mark a layer that is gone: %v", err)
	}

	torn, tornChain := stage(t, s, syncedChain, reg("b", "x"))
	publish(t, torn)
	for _, c := range []struct {
		boot string
		want bool
	}{{testBoot, true}, {"another boot", false}, {testBoot, false}} {
		again, err := Open(filepath.Join(base, "layers"), filepath.Join(base, "tmp"), c.boot)
		if err != nil {
			t.Fatal(err)
		}

		_, ok := again.Get(tornChain)
		if _, old := again.Get(syncedChain); !old || ok != c.want {
			t.Errorf("boot %q: layer on disk is here: %v, the other one: %v, want %v", c.boot, old, ok, c.want)
		}
		again.Close()
	}
}

func TestStoreReopens(t *testing.T) {
	s, base := openStore(t)
	low, lowChain := stage(t, s, "", reg("a", "x"))
	publish(t, low)
	high, highChain := stage(t, s, lowChain, reg(".wh..wh..opq", ""))
	publish(t, high)

	again, err := Open(filepath.Join(base, "layers"), filepath.Join(base, "tmp"), testBoot)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()

	if again.Usage() != s.Usage() || again.Usage().Inodes == 0 {
		t.Errorf("usage %+v, before %+v", again.Usage(), s.Usage())
	}
	trees, err := again.Trees(highChain)
	if err != nil || len(trees) != 1 {
		t.Errorf("trees %v, %v: want only the opaque one", trees, err)
	}

	if chain := again.Chain(highChain); len(chain) != 2 {
		t.Errorf("chain %v, want both layers", chain)
	}
	name, err := again.Detach(lowChain)
	if err != nil || name == "" {
		t.Fatalf("detach: %q, %v", name, err)
	}

	if _, err := again.Trees(lowChain); !errors.Is(err, ErrNotFound) {
		t.Errorf("detached layer: %v", err)
	}
}

func TestWrongContentIsRefused(t *testing.T) {
	s, _ := openStore(t)
	other := digest.FromString("something else")
	st, err := s.Stage(other, other, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Unpack(t.Context(), source(archive(t, reg("a", "x"))), Limits{Bytes: 1 << 20}); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v, want %v", err, ErrInvalid)
	}
	if st.Discard() == "" || st.Discard() != "" {
		t.Error("a stage is to be discarded once")
	}
}

// TestHalfStaged stages a layer where there is room for one directory alone: its
// remains are known.
func TestHalfStaged(t *testing.T) {
	s, base := openStore(t)
	temp := filepath.Join(base, "tmp")
	if err := unix.Mount("half", temp, "tmpfs", 0, "nr_inodes=2"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(temp, unix.MNT_DETACH)

	other := digest.FromString("something else")
	st, err := s.Stage(other, other, "")
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("error %v, want %v", err, unix.ENOSPC)
	}

	left, err := os.ReadDir(temp)
	if err != nil || len(left) != 1 || st.Discard() != left[0].Name() {
		t.Errorf("left are %v, %v, which the stage does not know", left, err)
	}
}

func TestRecordsAreChecked(t *testing.T) {
	s, base := openStore(t)
	st, chain := stage(t, s, "", reg("a", "x"))
	publish(t, st)
	record := filepath.Join(base, "layers", chain.Encoded(), recordFile)
	good, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}

	for _, bad := range []string{"", "{", `{"version":9}`, `{"version":1,"chainID":"sha256:../../x"}`, string(good[:len(good)-2])} {
		dir := filepath.Join(base, "layers", chain.Encoded())
		if err := os.MkdirAll(filepath.Join(dir, treeDir), 0o700); err != nil {
			t.Fatal(err)
		}

		if err := os.WriteFile(record, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := Open(filepath.Join(base, "layers"), filepath.Join(base, "tmp"), testBoot)
		if err != nil {
			t.Fatal(err)
		}

		if _, ok := again.Get(chain); ok {
			t.Errorf("record %q was accepted", bad)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("record %q: the directory is still in place", bad)
		}
		again.Close()
		os.RemoveAll(filepath.Join(base, "tmp", "damaged-"+chain.Encoded()))
	}
}
