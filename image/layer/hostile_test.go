package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crisp/test/testkit/pace"
)

// extended writes a PAX header by hand: the records are not what a writer
// would take. An entry that it is about must follow.
func extended(t testing.TB, kind byte, records string) []byte {
	t.Helper()
	data := archive(t, reg("x", records))
	data = data[:len(data)-1024]
	data[156] = kind
	sum := 0
	copy(data[148:156], "        ")
	for _, b := range data[:512] {
		sum += int(b)
	}
	copy(data[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

func record(key, value string) string {
	n := len(key) + len(value) + 3
	for len(fmt.Sprint(n))+len(key)+len(value)+3 != n {
		n++
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

// TestHostileHeaders unpacks entries that say too much of themselves.
func TestHostileHeaders(t *testing.T) {
	file := archive(t, reg("a", "x"))
	var junk, attributes strings.Builder
	for i := 0; junk.Len() < 1_000_000; i++ {
		junk.WriteString(record(fmt.Sprint("k", i), ""))
	}

	for i := range maxXattrs + 1 {
		attributes.WriteString(record(fmt.Sprint(paxXattr, "user.a", i), "x"))
	}
	long := strings.Repeat("x", maxXattr+1)
	deep := strings.Repeat("d/", maxDepth+1) + "f"
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"records", append(extended(t, tar.TypeXHeader, junk.String()), file...), ErrTooLarge},
		{"records in many headers", append(bytes.Repeat(extended(t, tar.TypeXHeader, junk.String()[:0]+record("a", "b")), 1000), file...), ErrTooLarge},
		{"long name", append(extended(t, tar.TypeGNULongName, strings.Repeat("n", 500_000)), file...), ErrTooLarge},
		{"path of 4097 bytes", append(extended(t, tar.TypeXHeader, record("path", strings.Repeat("n", maxPath+1))), file...), ErrInvalid},
		{"attributes", append(extended(t, tar.TypeXHeader, attributes.String()), file...), ErrTooLarge},
		{"long attribute", append(extended(t, tar.TypeXHeader, record(paxXattr+"user.a", long)), file...), ErrTooLarge},
		{"deep path", append(extended(t, tar.TypeXHeader, record("path", deep)), file...), ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSandbox(t)
			before := allocated()
			_, _, err := unpack(t.Context(), s.root, source(c.data), true, Limits{Bytes: 1 << 30})
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}

			if n := allocated() - before; n > 32<<20 {
				t.Errorf("%d bytes allocated", n)
			}
			s.checkOutside()
		})
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// CVE-2025-58183: the map of a sparse file that lists a billion extents.
func TestCVE202558183SparseMap(t *testing.T) {
	const extents = 1_000_000_000
	about := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
		record("GNU.sparse.name", "a") + record("GNU.sparse.realsize", "1000000000")
	header := extended(t, tar.TypeXHeader, about)
	var entry bytes.Buffer
	w := tar.NewWriter(&entry)
	if err := w.WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 1 << 40, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}

	// The map is in the file: how many there are, then where each begins and
	// how long it is.
	head := fmt.Appendf(append(header, entry.Bytes()...), "%d\n", extents)
	s := newSandbox(t)
	before, start := allocated(), time.Now()
	_, _, err := unpack(t.Context(), s.root, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(head), &repeat{text: []byte("1\n0\n")})), nil
	}, true, Limits{Bytes: 1 << 40})

	if !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v, want %v", err, ErrTooLarge)
	}
	if n := allocated() - before; n > 32<<20 {
		t.Errorf("%d bytes allocated", n)
	}

	if d := time.Since(start); d > pace.Scale(time.Second) {
		t.Errorf("took %s", d)
	}
}

// repeat reads as a text again and again.
type repeat struct {
	text []byte
	off  int
}

func (r *repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r.text[r.off]
		r.off = (r.off + 1) % len(r.text)
	}
	return len(p), nil
}

// TestCancelledInHole gives up in the middle of a sparse file, which goes on
// without reading any archive.
func TestCancelledInHole(t *testing.T) {
	s := newSandbox(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, _, err := unpack(ctx, s.root, source(sparse(t, 1<<38)), true, Limits{Bytes: 1 << 40})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want %v", err, context.DeadlineExceeded)
	}
	if d := time.Since(start); d > pace.Scale(1100*time.Millisecond) {
		t.Errorf("took %s", d)
	}
}

// frame is a zstd frame of one raw block with a window of 1<<log bytes.
func frame(data []byte, log int) []byte {
	block := binary.LittleEndian.AppendUint32(nil, uint32(len(data))<<3|1)
	return slices.Concat(zstdMagic, []byte{0, byte(log-10) << 3}, block[:3], data)
}

func TestWindows(t *testing.T) {
	plain := archive(t, reg("a", "x"))
	half := len(plain) / 2
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0}, "12345"...)
	for _, c := range []struct {
		name string
		data []byte
		much bool
		want error
	}{
		{"small", frame(plain, 23), false, nil},
		{"large", frame(plain, 24), false, ErrNeedsMemory},
		{"large, allowed", frame(plain, 27), true, nil},
		{"too large", frame(plain, 28), true, ErrTooLarge},
		{"small, then large", append(frame(plain[:half], 20), frame(plain[half:], 24)...), false, ErrNeedsMemory},
		{"small, something else, then large", slices.Concat(frame(plain[:half], 20), skippable, frame(plain[half:], 24)), false, ErrNeedsMemory},
		{"small ones", slices.Concat(skippable, frame(plain[:half], 20), skippable, frame(plain[half:], 10), skippable), false, nil},
		{"truncated", frame(plain, 20)[:half], false, ErrInvalid},
		{"then noise", append(frame(plain, 20), "noise noise noise noise"...), false, ErrInvalid},
	} {
		s := newSandbox(t)
		_, _, err := unpack(t.Context(), s.root, source(c.data), true, Limits{Bytes: 1 << 30, LargeMemory: c.much})
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}

	// What an ordinary encoder makes, in all its variety.
	for _, size := range []int{0, 1, 1000, 1 << 20, 20 << 20} {
		data := archive(t, reg("a", strings.Repeat("zstandard", size/9+1)))
		s := newSandbox(t)
		if _, _, err := unpack(t.Context(), s.root, source(compressed(t, data, "zstd")), true, Limits{Bytes: 1 << 30}); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestDirectoryNames(t *testing.T) {
	d := newDirNames(false)
	for range 1000 { // the same name again costs nothing
		if err := errors.Join(d.imply("a"), d.list("a", time.Time{})); err != nil {
			t.Fatal(err)
		}
	}

	d.forget("a")
	if d.size != 0 {
		t.Errorf("%d bytes of nothing", d.size)
	}

	name := strings.Repeat("n", 4000)
	var err error
	for i := 0; err == nil; i++ {
		err = d.imply(fmt.Sprint(name, i))
	}

	if !errors.Is(err, ErrNeedsMemory) || len(d.implied) < 2000 {
		t.Errorf("%v after %d names", err, len(d.implied))
	}
}

// CVE-2025-47290: two layers with the same names are unpacked at once, one of
// which makes links of what the other makes directories and files of.
func TestCVE202547290TwoUnpacksAtOnce(t *testing.T) {
	const rounds = 100
	for range rounds {
		links, files := newSandbox(t), newSandbox(t)
		outside := filepath.Join(links.base, "outside")
		var hostile, ordinary []entry
		for i := range 20 {
			name := fmt.Sprint("d", i)
			hostile = append(hostile, link(name, outside), link(name+"x", "../../outside"), reg(fmt.Sprint(name, "/f"), "evil"),
				reg(name+"x/canary", "evil"), hard(name+"h", name))
			ordinary = append(ordinary, directory(name, 0o700), reg(name+"/f", "good"), directory(name+"x", 0o700), reg(name+"x/canary", "good"))
		}

		var wg sync.WaitGroup
		for s, entries := range map[*sandbox][]entry{links: hostile, files: ordinary} {
			data := archive(t, entries...)
			wg.Go(func() {
				_, _, err := unpack(t.Context(), s.root, source(data), true, Limits{Bytes: 1 << 30})
				if err != nil && !errors.Is(err, ErrInvalid) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		links.checkOutside()
		files.checkOutside()

		for i := range 20 {
			for _, f := range []string{"f", "../" + fmt.Sprintf("d%dx/canary", i)} {
				data, err := os.ReadFile(filepath.Join(files.tree, fmt.Sprint("d", i), f))
				if err != nil || string(data) != "good" {
					t.Fatalf("%s of the ordinary layer: %q, %v", f, data, err)
				}
			}
		}
	}
}
