package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

const (
	// maxGrowth is what pulls may add to the daemon's memory at most: see
	// package budget.
	maxGrowth = 256 << 20
	// maxKeptOf is what is kept of an image.
	maxKeptOf = 1 << 20

	costEnv = "CRISP_TEST_COST"
	// maxDocument is the size at which documents are refused.
	maxDocument = 8 << 20
)

// hostile is an image that somebody made up.
type hostile struct {
	kind  string // the media type of doc, an image manifest's if empty
	doc   []byte
	blobs map[digest.Digest][]byte
}

// hostileLayer is a layer of one.
type hostileLayer struct {
	kind string
	data []byte
	diff digest.Digest
}

// hostileImage is one with this configuration, "%s" in which stands for the rest
// of it.
func hostileImage(config string, layers ...hostileLayer) hostile {
	h := hostile{blobs: map[digest.Digest][]byte{}}
	add := func(kind string, data []byte) ocispec.Descriptor {
		d := digest.FromBytes(data)
		h.blobs[d] = data
		return ocispec.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))}
	}

	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	m.SchemaVersion = 2
	diffs := []digest.Digest{}
	for _, l := range layers {
		m.Layers = append(m.Layers, add(l.kind, l.data))
		diffs = append(diffs, l.diff)
	}

	list, _ := json.Marshal(diffs)
	rest := fmt.Sprintf(`"os":"linux","architecture":%q,"rootfs":{"type":"layers","diff_ids":%s}`, runtime.GOARCH, list)
	m.Config = add(ocispec.MediaTypeImageConfig, []byte(strings.Replace(config, "%s", rest, 1)))
	h.doc, _ = json.Marshal(m)
	return h
}

// fill repeats an item, with its number for %d, up to a size.
func fill(size int, head, item, tail string) string {
	var b strings.Builder
	b.WriteString(head)
	for i := 0; ; i++ {
		next := strings.Replace(item, "%d", strconv.Itoa(i), 1)
		if b.Len()+len(next)+len(tail)+1 > size {
			break
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(next)
	}

	b.WriteString(tail)
	return b.String()
}

// windowed is a layer in zstd frames whose windows are as large as is allowed.
func windowed(t testing.TB, files ...file) hostileLayer {
	t.Helper()
	plain := archive(t, files...)
	const windowLog27 = (27 - 10) << 3
	data := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, windowLog27}
	block := binary.LittleEndian.AppendUint32(nil, uint32(len(plain))<<3|1)
	data = append(append(data, block[:3]...), plain...)
	return hostileLayer{ocispec.MediaTypeImageLayerZstd, data, digest.FromBytes(plain)}
}

func zipped(t testing.TB, files ...file) hostileLayer {
	t.Helper()
	p := pack(t, files...)
	return hostileLayer{ocispec.MediaTypeImageLayerGzip, p.data, p.diff}
}

// headed are files with extended headers of so many bytes.
func headed(n, size int, more map[string]string) (files []file) {
	records := map[string]string{}
	for i := 0; size > 0; i++ {
		key := "CRISP.k" + strconv.Itoa(i)
		records[key] = "v"
		size -= len(key) + 8
	}

	for k, v := range more {
		records[k] = v
	}
	for i := range n {
		f := text(fmt.Sprint("f", i), "x")
		f.Format, f.PAXRecords = tar.FormatPAX, records
		files = append(files, f)
	}

	return files
}

func numbered(n int, name string) (files []file) {
	for i := range n {
		files = append(files, dir(name+strconv.Itoa(i)))
	}
	return files
}

// cost is an attack on memory: so many images at once, each a little different.
type cost struct {
	name   string
	images int
	make   func(t testing.TB, i int) hostile
	want   error // of each pull
}

func costs() []cost {
	config := func(text string) func(testing.TB, int) hostile {
		return func(t testing.TB, i int) hostile {
			// A document is known by its digest, so each has a number.
			return hostileImage(fmt.Sprintf(`{"author":"%d",`, i)+text, zipped(t, text2(i)))
		}
	}

	layers := func(n int, make func(i int) hostileLayer) func(testing.TB, int) hostile {
		return func(_ testing.TB, i int) hostile {
			var list []hostileLayer
			for l := range n {
				list = append(list, make(i*100+l))
			}
			return hostileImage("{%s}", list...)
		}
	}

	document := func(kind, text string) func(testing.TB, int) hostile {
		return func(_ testing.TB, i int) hostile {
			return hostile{kind: kind, doc: []byte(strings.Replace(text, "{", fmt.Sprintf(`{"n%d":0,`, i), 1))}
		}
	}

	spaces := strings.Repeat(" ", maxDocument*3/4)
	return []cost{
		{"index of nothing", 8, document(ocispec.MediaTypeImageIndex,
			fill(maxDocument-20, `{"schemaVersion":2,"manifests":[`, "{}", "]}")), image.ErrInvalid},
		{"index of as much as is counted", 8, document(ocispec.MediaTypeImageIndex,
			fill(90_000+len(spaces), `{"schemaVersion":2,"manifests":[`, "{}", "]"+spaces+"}")), image.ErrInvalid},
		{"layers of nothing", 8, document(ocispec.MediaTypeImageManifest,
			fill(90_000, `{"schemaVersion":2,"config":{},"layers":[`, "{}", "]}")), image.ErrUnsupported},
		{"brackets", 8, document(ocispec.MediaTypeImageManifest,
			`{"schemaVersion":2,"config":{},"layers":`+strings.Repeat("[", maxDocument-100)), image.ErrInvalid},
		{"history", 8, config(fill(maxDocument-400, `"history":[`, "{}", "],%s}")), image.ErrInvalid},
		{"history of as much as is counted", 8, config(fill(maxDocument-400, `"history":[`,
			`{"created_by":"`+strings.Repeat("x", 1000)+`"}`, "],%s}")), nil},
		{"600,000 variables", 8, config(fill(maxDocument-400, `"config":{"Env":[`, `"A%d="`, "]},%s}")), image.ErrInvalid},
		{"long variables", 8, config(fill(maxDocument-400, `"config":{"Env":[`,
			`"A%d=`+strings.Repeat("x", 100_000)+`"`, "]},%s}")), image.ErrInvalid},
		{"labels", 8, config(fill(maxDocument-400, `"config":{"Labels":{`,
			`"l%d":"`+strings.Repeat("x", 500)+`"`, "}},%s}")), nil},
		{"zstd windows", 8, func(t testing.TB, i int) hostile {
			return layers(6, func(l int) hostileLayer { return windowed(t, text2(l)) })(t, i)
		}, nil},
		{"extended headers", 4, func(t testing.TB, i int) hostile {
			return layers(2, func(l int) hostileLayer {
				return zipped(t, append(headed(100, 250_000, nil), text2(l))...)
			})(t, i)
		}, nil},
		{"attributes in long headers", 4, func(t testing.TB, i int) hostile {
			return layers(2, func(l int) hostileLayer {
				return zipped(t, append(headed(100, 100_000, map[string]string{"SCHILY.xattr.user.a": "b"}), text2(l))...)
			})(t, i)
		}, nil},
		{"extended headers beyond the limit", 4, func(t testing.TB, i int) hostile {
			return layers(2, func(l int) hostileLayer {
				return zipped(t, append(headed(20, 1_000_000, nil), text2(l))...)
			})(t, i)
		}, image.ErrInvalid},
		{"20,000 long names of directories", 2, func(t testing.TB, i int) hostile {
			return layers(1, func(l int) hostileLayer {
				name := strings.Repeat("d123456/", 250) + strings.Repeat("x", 200)
				return zipped(t, append(numbered(20_000, name), text2(l))...)
			})(t, i)
		}, nil},
	}
}

// text2 makes a layer differ from others.
func text2(i int) file { return text("zz", strconv.Itoa(i)) }

// hostileRegistry serves images by tag.
func hostileRegistry(t testing.TB, images map[string]hostile) string {
	t.Helper()
	blobs := map[string][]byte{}
	for _, h := range images {
		for d, data := range h.blobs {
			blobs[d.String()] = data
		}
	}

	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		base := r.URL.Path[strings.LastIndexByte(r.URL.Path, 0x2f)+1:]
		if data, ok := blobs[base]; ok {
			w.Write(data)
			return
		}

		h, ok := images[base]
		if !ok {
			http.NotFound(w, r)
			return
		}

		kind := h.kind
		if kind == "" {
			kind = ocispec.MediaTypeImageManifest
		}
		w.Header().Set("Content-Type", kind)
		w.Write(h.doc)
	}))
	t.Cleanup(s.Close)

	return strings.TrimPrefix(s.URL, "http://")
}

// spent is what a process under attack reports.
type spent struct {
	Growth, Kept int64
	Errors       []string // the text of image.ErrInvalid and the like
	Took         time.Duration
}

// underAttack pulls all images at once in this process.
func underAttack(t *testing.T, root string, refs []string) spent {
	s, err := image.Open(image.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	debug.FreeOSMemory()
	heap := heapInUse()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}

	before, start := memory(t, "VmRSS"), time.Now()
	out := spent{Errors: make([]string, len(refs))}
	var wg sync.WaitGroup
	for i, ref := range refs {
		wg.Go(func() {
			_, err := s.Pull(t.Context(), ref, nil)
			for _, class := range []error{image.ErrInvalid, image.ErrUnsupported} {
				if errors.Is(err, class) {
					out.Errors[i] = class.Error()
				}
			}

			if err != nil && out.Errors[i] == "" {
				out.Errors[i] = err.Error()
			}
		})
	}
	wg.Wait()
	out.Took = time.Since(start)
	out.Growth = memory(t, "VmHWM") - before
	debug.FreeOSMemory()
	out.Kept = heapInUse() - heap

	return out
}

func heapInUse() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// memory reads a figure of this process, in bytes.
func memory(t *testing.T, field string) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), field+":")
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// TestCost pulls images that are made to take all memory, several at once, and
// measures what a process that pulls them takes at most, and what it keeps.
func TestCost(t *testing.T) {
	testkit.Root(t)
	if root := os.Getenv(costEnv); root != "" {
		out, err := json.Marshal(underAttack(t, root, strings.Fields(os.Getenv(costEnv+"_REFS"))))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("spent%s\n", out)
		return
	}

	for _, c := range costs() {
		t.Run(c.name, func(t *testing.T) {
			images, tags := map[string]hostile{}, []string{}
			for i := range c.images {
				tag := fmt.Sprint("t", i)
				images[tag] = c.make(t, i)
				tags = append(tags, tag)
			}

			host := hostileRegistry(t, images)
			for i := range tags {
				tags[i] = host + "/app:" + tags[i]
			}

			got := attack(t, tags)
			t.Logf("%d images: %d MiB at most, %d KiB kept, in %s", c.images, got.Growth>>20, got.Kept>>10, got.Took.Round(time.Millisecond))
			if got.Growth > maxGrowth {
				t.Errorf("memory grew by %d MiB", got.Growth>>20)
			}
			if got.Kept > int64(c.images)*maxKeptOf {
				t.Errorf("%d KiB are kept", got.Kept>>10)
			}

			want := ""
			if c.want != nil {
				want = c.want.Error()
			}

			for i, e := range got.Errors {
				if e != want {
					t.Errorf("image %d: error %q, want %q", i, e, want)
				}
			}
		})
	}
}

// attack pulls images in another process.
func attack(t *testing.T, refs []string) (got spent) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(2*time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestCost$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), costEnv+"="+t.TempDir(), costEnv+"_REFS="+strings.Join(refs, " "))

	out, err := cmd.CombinedOutput()
	_, report, ok := bytes.Cut(out, []byte("spent{"))
	if err != nil || !ok {
		t.Fatalf("%v: %.2000s", err, out)
	}

	report, _, _ = bytes.Cut(append([]byte("{"), report...), []byte("\n"))
	if err := json.Unmarshal(report, &got); err != nil {
		t.Fatalf("%v: %s", err, report)
	}
	return got
}

// TestCancelled gives pulls up in the middle of whatever takes them longest,
// and waits until nothing of them goes on.
func TestCancelled(t *testing.T) {
	testkit.Root(t)
	for _, c := range costs() {
		if c.want != nil && c.name != "index of as much as is counted" {
			continue // as good as over once it has arrived
		}
		t.Run(c.name, func(t *testing.T) {
			host := hostileRegistry(t, map[string]hostile{"v1": c.make(t, 0)})
			for _, after := range []time.Duration{20 * time.Millisecond, 200 * time.Millisecond, time.Second} {
				s := reopen(t, t.TempDir())
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = s.Pull(t.Context(), host+"/app:v1", nil) })
				time.Sleep(after)

				start := time.Now()
				if err := s.Close(); err != nil { // cancels, and waits for what pulls
					t.Error(err)
				}
				wg.Wait()

				if d := time.Since(start); d > pace.Scale(time.Second) {
					t.Errorf("ended %s after the pull, which was given up after %s", d, after)
				}
			}
		})
	}
}

// CVE-2023-25153: a manifest or configuration of 10 GB, whatever its
// descriptor says.
func TestCVE202325153EndlessDocuments(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	r.push("app", "v1", ocispec.ImageConfig{})
	for _, what := range []string{"/manifests/", "/blobs/"} {
		sent := make(chan int64, 100)
		r.onRequest(func(w http.ResponseWriter, req *http.Request) bool {
			if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, what) {
				return false
			}
			n, buf := int64(0), bytes.Repeat([]byte(" "), 1<<20)
			for n < 10<<30 {
				m, err := w.Write(buf)
				if n += int64(m); err != nil {
					break
				}
			}

			sent <- n
			return true
		})

		s := reopen(t, t.TempDir())
		if _, err := s.Pull(t.Context(), r.Host+"/app:v1", nil); !errors.Is(err, image.ErrProtocol) {
			t.Errorf("%s: %v, want %v", what, err, image.ErrProtocol)
		}

		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if n := <-sent; n > 64<<20 {
			t.Errorf("%s: %d bytes were taken", what, n)
		}
	}
}

// CVE-2021-41190: a document that is a manifest to one reader and an index to
// another.
func TestCVE202141190AmbiguousDocuments(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	good, _ := r.push("app", "good", ocispec.ImageConfig{}, pack(t, text("a", "1")))
	entry, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}

	for i, doc := range []string{
		`{"schemaVersion":2,"manifests":[%s],"layers":[]}`,
		`{"schemaVersion":2,"manifests":[%s],"config":{}}`,
		`{"schemaVersion":2,"MANIFESTS":[%s],"layers":[],"config":{}}`,
		`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","manifests":[%s]}`,
	} {
		kind := []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest}[i%2]
		host := hostileRegistry(t, map[string]hostile{"v1": {kind: kind, doc: fmt.Appendf(nil, doc, entry)}})
		if _, err := open(t, t.TempDir()).Pull(t.Context(), host+"/app:v1", nil); !errors.Is(err, image.ErrInvalid) {
			t.Errorf("%s: %v, want %v", doc, err, image.ErrInvalid)
		}
	}
}
