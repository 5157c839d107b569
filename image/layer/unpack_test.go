package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// entry is an entry of a test archive.
type entry struct {
	tar.Header
	body string
}

func reg(name, body string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}, body}
}

func directory(name string, mode int64) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}}
}

func link(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
}

func hard(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

func node(kind byte, name string, major, minor int64) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: kind, Mode: 0o600, Devmajor: major, Devminor: minor}}
}

func (e entry) with(change func(*tar.Header)) entry { change(&e.Header); return e }

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		hdr := e.Header
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatalf("write %q: %v", hdr.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}

	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// sandbox is a directory to unpack into, with canaries around it.
type sandbox struct {
	t    testing.TB
	base string
	tree string
	root *os.File
}

func newSandbox(t testing.TB) *sandbox {
	t.Helper()
	testkit.Root(t)
	base := t.TempDir()
	s := &sandbox{t: t, base: base, tree: filepath.Join(base, "layer", "fs")}
	for _, d := range []string{s.tree, filepath.Join(base, "outside")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}

	if err := os.WriteFile(filepath.Join(base, "outside", "canary"), []byte("sings"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(s.tree)
	if err != nil {
		t.Fatal(err)
	}

	s.root = root
	t.Cleanup(func() { root.Close() })
	return s
}

func source(data []byte) Source {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func (s *sandbox) unpack(base bool, entries ...entry) (*unpacker, error) {
	s.t.Helper()
	u, _, err := unpack(s.t.Context(), s.root, source(archive(s.t, entries...)), base, Limits{Bytes: 1 << 30})
	s.checkOutside()
	return u, err
}

// checkOutside fails the test if anything outside the tree has changed.
func (s *sandbox) checkOutside() {
	s.t.Helper()
	var got []string
	err := filepath.WalkDir(s.base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == s.tree {
			return filepath.SkipDir
		}

		info, err := d.Info()
		if err != nil {
			return err
		}
		got = append(got, fmt.Sprintf("%s %s", strings.TrimPrefix(path, s.base), info.Mode()))
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}

	want := []string{"/layer drwxr-xr-x", "/outside drwxr-xr-x", "/outside/canary -rw-------"}
	if !slices.Equal(got[1:], want) {
		s.t.Errorf("outside the layer there is %q, want %q", got[1:], want)
	}
	if data, _ := os.ReadFile(filepath.Join(s.base, "outside", "canary")); string(data) != "sings" {
		s.t.Errorf("the canary is now %q", data)
	}
}

// listing describes a tree, a line for each file.
func (s *sandbox) listing() map[string]string {
	s.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(s.tree, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == s.tree {
			return err
		}
		name := strings.TrimPrefix(path, s.tree+"/")
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}

		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			all[name] = "dir"
			if opaque(path) {
				all[name] = "opaque dir"
			}
		case unix.S_IFLNK:
			target, _ := os.Readlink(path)
			all[name] = "-> " + target
		case unix.S_IFREG:
			data, _ := os.ReadFile(path)
			all[name] = string(data)
		case unix.S_IFCHR:
			all[name] = fmt.Sprintf("char %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
			if st.Rdev == 0 {
				all[name] = "whiteout"
			}
		case unix.S_IFBLK:
			all[name] = fmt.Sprintf("block %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case unix.S_IFIFO:
			all[name] = "fifo"
		}

		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}

	return all
}

func opaque(path string) bool {
	buf := make([]byte, 8)
	n, err := unix.Lgetxattr(path, opaqueXattr, buf)
	return err == nil && string(buf[:n]) == "y"
}

// TestTrees unpacks archives, hostile ones included, and compares what came
// of them with what overlayfs should see.
func TestTrees(t *testing.T) {
	deep := strings.Repeat("d/", maxDepth-1)
	for _, c := range []struct {
		name    string
		base    bool
		entries []entry
		want    map[string]string
		err     error
	}{
		{name: "plain", entries: []entry{directory("d/", 0o755), reg("d/f", "x"), link("l", "d/f"), node(tar.TypeFifo, "p", 0, 0), node(tar.TypeChar, "n", 1, 3), node(tar.TypeBlock, "b", 7, 0)},
			want: map[string]string{"d": "dir", "d/f": "x", "l": "-> d/f", "p": "fifo", "n": "char 1:3", "b": "block 7:0"}},
		{name: "missing parents", entries: []entry{reg("a/b/c", "x")}, want: map[string]string{"a": "dir", "a/b": "dir", "a/b/c": "x"}},
		{name: "absolute name", entries: []entry{reg("/a", "x"), reg("//b", "y")}, want: map[string]string{"a": "x", "b": "y"}},
		{name: "dots inside", entries: []entry{reg("./a/../b/./c", "x")}, want: map[string]string{"b": "dir", "b/c": "x"}},
		{name: "parent escape", entries: []entry{reg("../outside/canary", "x")}, err: ErrInvalid},
		{name: "parent escape later", entries: []entry{reg("a/../../outside/canary", "x")}, err: ErrInvalid},
		{name: "absolute parent escape", entries: []entry{reg("/../outside/canary", "x")}, err: ErrInvalid},
		{name: "write through absolute link", entries: []entry{link("l", "/outside"), reg("l/canary", "x")},
			want: map[string]string{"l": "-> /outside", "outside": "dir", "outside/canary": "x"}},
		{name: "write through relative link", entries: []entry{link("l", "../../outside"), reg("l/canary", "x")},
			want: map[string]string{"l": "-> ../../outside", "outside": "dir", "outside/canary": "x"}},
		{name: "write through chain of links", entries: []entry{link("a", ".."), link("b", "a/.."), link("c", "b/outside"), reg("c/canary", "x")},
			want: map[string]string{"a": "-> ..", "b": "-> a/..", "c": "-> b/outside", "outside": "dir", "outside/canary": "x"}},
		{name: "replace link by file of the same name", entries: []entry{link("l", "../../outside/canary"), reg("l", "x")}, want: map[string]string{"l": "x"}},
		{name: "mode through link", entries: []entry{link("l", "../../outside/canary"), reg("l", "x").with(func(h *tar.Header) { h.Mode = 0o4777 })},
			want: map[string]string{"l": "x"}},
		{name: "directory through link", entries: []entry{link("l", "../../outside"), directory("l", 0o777)}, want: map[string]string{"l": "dir"}},
		{name: "link cycle", entries: []entry{link("a", "b"), link("b", "a"), reg("a/x", "x")}, err: ErrInvalid},
		{name: "through a file", entries: []entry{reg("a", "x"), reg("a/b", "y")}, err: ErrInvalid},
		{name: "hard link", entries: []entry{reg("a", "x"), hard("b/c", "a")}, want: map[string]string{"a": "x", "b": "dir", "b/c": "x"}},
		{name: "hard link absolute", entries: []entry{reg("a", "x"), hard("b", "/a")}, want: map[string]string{"a": "x", "b": "x"}},
		{name: "hard link escape", entries: []entry{hard("b", "../../outside/canary")}, err: ErrInvalid},
		{name: "hard link through link", entries: []entry{link("l", "../../outside"), hard("b", "l/canary")}, err: ErrInvalid},
		{name: "hard link to link", entries: []entry{link("l", "../../outside/canary"), hard("b", "l"), reg("b", "x")}, want: map[string]string{"l": "-> ../../outside/canary", "b": "x"}},
		{name: "hard link to parent", entries: []entry{directory("d", 0o755), hard("d/up", "d")}, err: ErrInvalid},
		{name: "hard link to itself", entries: []entry{reg("a", "x"), hard("a", "a")}, err: ErrInvalid},
		{name: "hard link to nothing", entries: []entry{hard("a", "b")}, err: ErrInvalid},
		{name: "whiteouts", entries: []entry{reg(".wh.a", ""), reg("d/.wh.b", "")}, want: map[string]string{"a": "whiteout", "d": "dir", "d/b": "whiteout"}},
		{name: "whiteouts in a base layer", base: true, entries: []entry{reg(".wh.a", ""), reg("d/.wh..wh..opq", "")}, want: map[string]string{"d": "dir"}},
		{name: "opaque", entries: []entry{directory("d", 0o755), reg("d/.wh..wh..opq", ""), reg("d/f", "x")}, want: map[string]string{"d": "opaque dir", "d/f": "x"}},
		{name: "opaque after content", entries: []entry{reg("d/f", "x"), reg("d/.wh..wh..opq", "")}, want: map[string]string{"d": "opaque dir", "d/f": "x"}},
		{name: "whiteout of what the layer has", entries: []entry{reg("f", "x"), reg(".wh.f", ""), reg("d/g", "y"), reg(".wh.d", "")}, want: map[string]string{"f": "x", "d": "opaque dir", "d/g": "y"}},
		{name: "content after its whiteout", entries: []entry{reg(".wh.f", ""), reg("f", "x"), reg(".wh.d", ""), directory("d", 0o755), reg("d/g", "y")}, want: map[string]string{"f": "x", "d": "opaque dir", "d/g": "y"}},
		{name: "whiteout of nothing", entries: []entry{reg(".wh.", "")}, err: ErrInvalid},
		{name: "whiteout of self", entries: []entry{reg("d/.wh..", "")}, err: ErrInvalid},
		{name: "whiteout of parent", entries: []entry{reg("d/.wh...", "")}, err: ErrInvalid},
		{name: "whiteout through link", entries: []entry{link("l", "../../outside"), reg("l/.wh.canary", "")},
			want: map[string]string{"l": "-> ../../outside", "outside": "dir", "outside/canary": "whiteout"}},
		{name: "bookkeeping of aufs", entries: []entry{directory(".wh..wh.plnk", 0o700), reg(".wh..wh.aufs", "")}, want: map[string]string{}},
		{name: "device of a whiteout", entries: []entry{node(tar.TypeChar, "n", 0, 0)}, err: ErrInvalid},
		{name: "device number out of range", entries: []entry{node(tar.TypeChar, "n", 4096, 0)}, err: ErrInvalid},
		{name: "device number overflow", entries: []entry{node(tar.TypeBlock, "n", 1, 1<<32)}, err: ErrInvalid},
		{name: "owner out of range", entries: []entry{reg("a", "").with(func(h *tar.Header) { h.Uid = 1<<32 - 1 })}, err: ErrInvalid},
		{name: "negative owner", entries: []entry{reg("a", "").with(func(h *tar.Header) { h.Gid = -1; h.Format = tar.FormatGNU })}, err: ErrInvalid},
		{name: "duplicates", entries: []entry{reg("a", "1"), reg("a", "2"), directory("d", 0o755), reg("d/x", ""), reg("d", "file"), reg("e", ""), directory("e", 0o700)},
			want: map[string]string{"a": "2", "d": "file", "e": "dir"}},
		{name: "directory comes again after a link", entries: []entry{directory("d", 0o755), reg("d/x", "1"), link("d", "elsewhere"), reg("d/y", "2")},
			want: map[string]string{"d": "-> elsewhere", "elsewhere": "dir", "elsewhere/y": "2"}},
		{name: "long name", entries: []entry{reg(strings.Repeat("n", 256), "")}, err: ErrInvalid},
		{name: "long path", entries: []entry{reg(strings.Repeat("n/", 2048)+"n", "")}, err: ErrInvalid},
		{name: "longest name", entries: []entry{reg(strings.Repeat("n", 255), "x")}, want: map[string]string{strings.Repeat("n", 255): "x"}},
		{name: "deep tree replaced", entries: []entry{reg(deep+"f", ""), reg("d", "x")}, want: map[string]string{"d": "x"}},
		{name: "root is a file", entries: []entry{reg(".", "x")}, err: ErrInvalid},
		{name: "empty link", entries: []entry{link("l", "")}, err: ErrInvalid},
		{name: "unknown type", entries: []entry{{Header: tar.Header{Name: "a", Typeflag: 'Q'}}}, err: ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSandbox(t)
			_, err := s.unpack(c.base, c.entries...)
			if c.err != nil {
				if !errors.Is(err, c.err) {
					t.Errorf("error %v, want %v", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}

			if got := s.listing(); !maps.Equal(got, c.want) {
				t.Errorf("tree is %v, want %v", got, c.want)
			}
		})
	}
}

func TestAttributes(t *testing.T) {
	s := newSandbox(t)
	when := time.Unix(1_234_567_890, 0)
	u, err := s.unpack(true,
		directory("./", 0o751).with(func(h *tar.Header) { h.Uid, h.Gid, h.ModTime = 5, 6, when }),
		directory("d", 0o1777).with(func(h *tar.Header) { h.Uid, h.ModTime = 1, when }),
		reg("d/setuid", "x").with(func(h *tar.Header) {
			h.Mode, h.Uid, h.Gid, h.ModTime = 0o4755, 1<<20, 1<<31, when
			h.PAXRecords = map[string]string{
				paxXattr + "security.capability":      "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
				paxXattr + "user.kept":                "yes",
				paxXattr + "user.overlay.opaque":      "y",
				paxXattr + "trusted.overlay.redirect": "/etc",
				paxXattr + "trusted.overlay.metacopy": "",
				paxXattr + "trusted.other":            "x",
				paxXattr + "security.selinux":         "label",
			}
		}),
		link("l", "x").with(func(h *tar.Header) { h.Uid, h.ModTime = 3, when }),
		reg("ancient", "").with(func(h *tar.Header) { h.ModTime = time.Unix(-1<<40, 0); h.Format = tar.FormatPAX }),
		reg("future", "").with(func(h *tar.Header) { h.ModTime = time.Unix(1<<50, 0); h.Format = tar.FormatPAX }),
	)
	if err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		name     string
		mode     uint32
		uid, gid uint32
	}{
		{".", 0o751, 5, 6}, {"d", 0o1777, 1, 0}, {"d/setuid", 0o4755, 1 << 20, 1 << 31}, {"l", 0o777, 3, 0},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(s.tree, c.name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != c.mode || st.Uid != c.uid || st.Gid != c.gid || st.Mtim.Sec != when.Unix() {
			t.Errorf("%s: mode %o owner %d:%d time %d", c.name, st.Mode&0o7777, st.Uid, st.Gid, st.Mtim.Sec)
		}
	}

	buf := make([]byte, 1024)
	n, err := unix.Listxattr(filepath.Join(s.tree, "d/setuid"), buf)
	if err != nil {
		t.Fatal(err)
	}

	got := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(got)
	if want := []string{"security.capability", "user.kept"}; !slices.Equal(got, want) {
		t.Errorf("attributes %q, want %q", got, want)
	}

	if u.usage.Inodes != 6 {
		t.Errorf("%d inodes, want 6", u.usage.Inodes)
	}
}

func TestRootOpaque(t *testing.T) {
	s := newSandbox(t)
	u, err := s.unpack(false, reg(".wh..wh..opq", ""), reg("a", "x"))
	if err != nil || !u.opaque {
		t.Errorf("opaque is %v, error %v", u != nil && u.opaque, err)
	}
}

func compressed(t testing.TB, data []byte, how string) []byte {
	t.Helper()
	var buf bytes.Buffer
	switch how {
	case "gzip", "gzip members":
		parts := [][]byte{data}
		if how == "gzip members" {
			parts = [][]byte{data[:700], data[700:]}
		}
		for _, p := range parts {
			w := gzip.NewWriter(&buf)
			w.Write(p)
			w.Close()
		}
	case "zstd":
		w, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(data)
		w.Close()
	case "zstd after skippable frame":
		buf.Write([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4})
		buf.Write(compressed(t, data, "zstd"))
	default:
		return data
	}

	return buf.Bytes()
}

func TestCompressions(t *testing.T) {
	plain := archive(t, reg("a", strings.Repeat("x", 5000)))
	plain = append(plain, make([]byte, 100_000)...) // tar pads as it likes
	for _, how := range []string{"none", "gzip", "gzip members", "zstd", "zstd after skippable frame"} {
		t.Run(how, func(t *testing.T) {
			s := newSandbox(t)
			_, diff, err := unpack(t.Context(), s.root, source(compressed(t, plain, how)), true, Limits{Bytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			if diff != digest.FromBytes(plain) {
				t.Errorf("diff ID %s, want %s", diff, digest.FromBytes(plain))
			}
		})
	}

	for _, how := range []string{"gzip", "zstd", "none"} {
		t.Run("truncated "+how, func(t *testing.T) {
			s := newSandbox(t)
			data := compressed(t, plain, how)
			if how == "none" {
				data = data[:3000]
			}

			_, _, err := unpack(t.Context(), s.root, source(data[:len(data)-3]), true, Limits{Bytes: 1 << 20})
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v, want %v", err, ErrInvalid)
			}
		})
	}

	s := newSandbox(t)
	if _, _, err := unpack(t.Context(), s.root, source([]byte("BZh91AY&SY")), true, Limits{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("bzip2: %v, want %v", err, ErrUnsupported)
	}
}

// zeros is an endless archive of nothing but a header and zeros.
type bomb struct {
	head []byte
	off  int
}

func (b *bomb) Read(p []byte) (int, error) {
	n := copy(p, b.head[min(b.off, len(b.head)):])
	b.off += n
	clear(p[n:])
	return len(p), nil
}

func TestBombs(t *testing.T) {
	endless := archive(t, reg("a", "x").with(func(h *tar.Header) { h.Size = 1 }))[:1024]
	for _, c := range []struct {
		name string
		open Source
	}{
		{"endless file", func(context.Context) (io.ReadCloser, error) {
			var buf bytes.Buffer
			tar.NewWriter(&buf).WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 1 << 50, Format: tar.FormatPAX})
			return io.NopCloser(&bomb{head: buf.Bytes()}), nil
		}},
		{"endless trailer", func(context.Context) (io.ReadCloser, error) { return io.NopCloser(&bomb{head: endless}), nil }},
		{"gzip bomb", source(compressed(t, archive(t, reg("a", strings.Repeat("\x00", 64<<20))), "gzip"))},
		{"zstd bomb", source(compressed(t, archive(t, reg("a", strings.Repeat("\x00", 64<<20))), "zstd"))},
		{"sparse bomb", source(sparse(t, 1<<42))},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSandbox(t)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := unpack(t.Context(), s.root, c.open, true, Limits{Bytes: 16 << 20})
			runtime.ReadMemStats(&after)

			if !errors.Is(err, ErrTooLarge) {
				t.Errorf("error %v, want %v", err, ErrTooLarge)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
				t.Errorf("%d bytes allocated", n)
			}

			if size := treeSize(t, s.tree); size > 20<<20 {
				t.Errorf("%d bytes on disk", size)
			}
		})
	}
}

// sparse is an archive of one file in PAX sparse format 1.0 that consists of a hole.
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	sparseMap := make([]byte, 512)
	copy(sparseMap, fmt.Sprintf("1\n%d\n0\n", size))

	records := []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=a", fmt.Sprintf("GNU.sparse.realsize=%d", size)}
	var pax string
	for _, r := range records {
		n := len(r) + 3
		for len(fmt.Sprint(n))+len(r)+2 != n {
			n++
		}
		pax += fmt.Sprintf("%d %s\n", n, r)
	}

	// The writer refuses these records in a header, so the extended header is
	// written as if it were a file.
	if err := w.WriteHeader(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: int64(len(pax))}); err != nil {
		t.Fatal(err)
	}

	io.WriteString(w, pax)
	w.Flush()
	if err := w.WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 512}); err != nil {
		t.Fatal(err)
	}

	w.Write(sparseMap)
	w.Close()
	data := buf.Bytes()
	data[156] = tar.TypeXHeader

	sum := 0
	copy(data[148:156], "        ")
	for _, b := range data[:512] {
		sum += int(b)
	}

	copy(data[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

func treeSize(t testing.TB, dir string) (size int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		size += st.Blocks * 512
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// TestHostileTime unpacks layers that are made to take superlinear
// time: at the scale of a real one that would be minutes.
func TestHostileTime(t *testing.T) {
	const n = 4_000
	deep := strings.Repeat("d/", 200)
	for _, c := range []struct {
		name string
		make func(i int) entry
	}{
		{"hard link fan", func(i int) entry {
			if i == 0 {
				return reg("f", "x")
			}
			return hard(fmt.Sprintf("l%d", i), "f")
		}},
		{"opaque again and again", func(int) entry { return reg("d/.wh..wh..opq", "") }},
		{"whiteouts", func(i int) entry { return reg(fmt.Sprintf(".wh.%d", i), "") }},
		{"replaced again and again", func(i int) entry {
			if i%2 == 0 {
				return reg(fmt.Sprintf("x%d", i%100), "")
			}
			return directory(fmt.Sprintf("x%d", (i-1)%100), 0o755)
		}},
		{"two deep directories in turn", func(i int) entry { return reg(fmt.Sprintf("%d/%s%d", i%40, deep, i), "") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSandbox(t)
			entries := make([]entry, n)
			for i := range entries {
				entries[i] = c.make(i)
			}

			data := archive(t, entries...)
			start := processorTime(t)
			_, _, err := unpack(t.Context(), s.root, source(data), false, Limits{Bytes: 1 << 30})
			if err != nil {
				t.Fatal(err)
			}

			if d := processorTime(t) - start; d > pace.Scale(20*time.Second) {
				t.Errorf("took %s", d)
			} else {
				t.Logf("%d entries in %s", n, d)
			}
		})
	}
}

// processorTime is what this process has taken so far, which says more than a
// clock does on a machine with other work.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		t.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

func TestCancelledUnpack(t *testing.T) {
	s := newSandbox(t)
	ctx, cancel := context.WithCancel(t.Context())
	blocked := make(chan struct{})
	_, _, err := unpack(ctx, s.root, func(ctx context.Context) (io.ReadCloser, error) {
		go func() { <-blocked; cancel() }()
		return io.NopCloser(io.MultiReader(bytes.NewReader(archive(t, reg("a", "x"))[:1024]), readerFunc(func([]byte) (int, error) {
			close(blocked)
			<-ctx.Done()
			return 0, ctx.Err()
		}))), nil
	}, true, Limits{Bytes: 1 << 20})

	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
