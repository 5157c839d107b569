package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"crisp/image"
	"crisp/test/testkit"
)

// held is where a download stands still in these tests, in bytes.
const held = 2_000_000

// server serves one blob and notes what it was asked for and has sent.
type server struct {
	data []byte
	// answer, if set, may answer the n-th request, from 1 on, itself.
	answer func(w http.ResponseWriter, r *http.Request, n int) bool

	mu     sync.Mutex
	ranges []string // of the requests, "" for all of it
	sent   int
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digestHex(s.data)) {
		return false
	}
	s.mu.Lock()
	s.ranges = append(s.ranges, r.Header.Get("Range"))
	n := len(s.ranges)
	s.mu.Unlock()
	if s.answer != nil && s.answer(w, r, n) {
		return true
	}
	http.ServeContent(&counting{w, s}, r, "", time.Time{}, bytes.NewReader(s.data))
	return true
}

// asked returns what was asked for and sent since the last call.
func (s *server) asked() (ranges []string, sent int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ranges, sent, s.ranges, s.sent = s.ranges, s.sent, nil, 0
	return ranges, sent
}

type counting struct {
	http.ResponseWriter
	s *server
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.s.mu.Lock()
	c.s.sent += n
	c.s.mu.Unlock()
	return n, err
}

// holdFirst stands still in the middle of the first answer, until its client
// is gone or end is closed, and then breaks it off.
func (s *server) holdFirst(end <-chan struct{}) {
	s.answer = func(w http.ResponseWriter, r *http.Request, n int) bool {
		if n > 1 {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(s.data)))
		w.Write(s.data[:held])
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-end:
		}
		panic(http.ErrAbortHandler)
	}
}

// interruptible pushes an image of one large layer, as app:v1, to a registry
// that holds its first download up.
func interruptible(t *testing.T) (*testRegistry, *server, chan struct{}) {
	t.Helper()
	r := newRegistry(t)
	big := pack(t, text("a", random(3_000_000)))
	r.push("app", "v1", ocispec.ImageConfig{}, big)
	s, end := &server{data: big.data}, make(chan struct{})
	s.holdFirst(end)
	r.onRequest(s.serve)
	return r, s, end
}

func partOf(root string, data []byte) string {
	return filepath.Join(root, "parts", "sha256-"+digestHex(data))
}

// waitHeld waits until all that was sent of the layer is in its part.
func waitHeld(t *testing.T, root string, data []byte) {
	t.Helper()
	waitFor(t, "the download to stand still", func() bool {
		st, err := os.Stat(partOf(root, data))
		return err == nil && st.Size() == held
	})
}

// leavePart interrupts a pull and returns the directory with the part it left.
func leavePart(t *testing.T, r *testRegistry, s *server) string {
	t.Helper()
	root := t.TempDir()
	svc := reopen(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = svc.Pull(ctx, r.Host+"/app:v1", nil) })
	waitHeld(t, root, s.data)
	cancel()
	wg.Wait()
	if err := svc.Close(); err != nil {
		t.Fatal(err)
	}

	s.asked()
	return root
}

// wantPulled pulls and looks at the result, and that no part is left.
func wantPulled(t *testing.T, root string, svc *image.Service, ref string) {
	t.Helper()
	im := pull(t, svc, ref)
	if err := svc.Prepare("c", im.ID, nil, nil); err != nil {
		t.Fatal(err)
	}

	m := mount(t, svc, "c", nil)
	if got := read(t, m, "a"); got != random(3_000_000) {
		t.Errorf("the file has %d bytes of other content", len(got))
	}
	m.Close()

	if err := svc.Discard("c"); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(root, "parts")); err != nil || len(left) != 0 {
		t.Errorf("parts left: %v, %v", left, err)
	}
}

// TestInterruptedPull interrupts a pull in the middle of a layer in all ways,
// and expects the next one, of the same service or of another, to ask for the
// rest and nothing else.
func TestInterruptedPull(t *testing.T) {
	testkit.Root(t)
	for name, interrupt := range map[string]func(t *testing.T, svc *image.Service, root string, giveUp func(), end chan struct{}) string{
		"given up": func(_ *testing.T, _ *image.Service, _ string, giveUp func(), _ chan struct{}) string {
			giveUp()
			return ""
		},
		"refused": func(_ *testing.T, _ *image.Service, _ string, _ func(), end chan struct{}) string {
			close(end)
			return ""
		},
		"daemon ended": func(t *testing.T, svc *image.Service, root string, _ func(), _ chan struct{}) string {
			svc.Close()
			return root
		},
		"daemon killed": func(t *testing.T, _ *image.Service, root string, _ func(), _ chan struct{}) string {
			return crash(t, root)
		},
		"another's image": func(_ *testing.T, _ *image.Service, _ string, giveUp func(), _ chan struct{}) string {
			giveUp()
			return ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, s, end := interruptible(t)
			hold := s.answer
			s.answer = func(w http.ResponseWriter, req *http.Request, n int) bool {
				if name == "refused" && n == 2 {
					w.WriteHeader(http.StatusForbidden)
					return true
				}
				return hold(w, req, n)
			}

			root := t.TempDir()
			svc := reopen(t, root)
			defer svc.Close()
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()

			failed := make(chan error, 1)
			go func() { _, err := svc.Pull(ctx, r.Host+"/app:v1", nil); failed <- err }()
			waitHeld(t, root, s.data)
			next := interrupt(t, svc, root, giveUp, end)

			if name != "daemon killed" {
				if err := <-failed; err == nil {
					t.Fatal("the pull was not interrupted")
				}
			}

			if next != "" {
				root = next
				svc = open(t, next)
			}

			waitFor(t, "the part to count", func() bool { u, _ := svc.FsInfo(); return u.UsedBytes >= held && u.InodesUsed == 1 })
			if c, err := svc.Check(t.Context(), true, func(d image.Damage) { t.Errorf("damage: %+v", d) }); err != nil || c.Parts != 1 || c.PartBytes < held {
				t.Errorf("checked %+v, %v; want one part", c, err)
			}

			s.answer = nil
			s.asked()
			ref := r.Host + "/app:v1"
			if name == "another's image" {
				r.push("other", "v2", ocispec.ImageConfig{User: "2"}, pack(t, text("a", random(3_000_000))))
				ref = r.Host + "/other:v2"
			}

			wantPulled(t, root, svc, ref)
			want := fmt.Sprintf("bytes=%d-%d", held, len(s.data)-1)
			if ranges, sent := s.asked(); !slices.Equal(ranges, []string{want}) || sent != len(s.data)-held {
				t.Errorf("asked for %q and sent %d bytes, want %q and %d", ranges, sent, want, len(s.data)-held)
			}

			giveUp()
			if name == "daemon killed" {
				<-failed
			}
		})
	}
}

// TestPartsThatAreNotTheBlob changes what an interrupted pull has left. What is
// wrong is thrown away, and the layer fetched whole, once.
func TestPartsThatAreNotTheBlob(t *testing.T) {
	testkit.Root(t)
	r, s, _ := interruptible(t)
	left := leavePart(t, r, s)
	s.answer = nil

	from := func(n int) string { return fmt.Sprintf("bytes=%d-%d", n, len(s.data)-1) }
	change := func(f func(data []byte) []byte) func(string) error {
		return func(path string) error {
			data, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path, f(data), 0o600))
		}
	}

	for _, c := range []struct {
		name   string
		change func(path string) error
		asked  []string
	}{
		{"nothing", func(string) error { return nil }, []string{from(held)}},
		{"other bytes", flip, []string{from(held), ""}},
		{"other bytes at the beginning", change(func(d []byte) []byte { d[0]++; return d }), []string{from(held), ""}},
		{"zeros at the end", change(func(d []byte) []byte { clear(d[len(d)-4096:]); return d }), []string{from(held), ""}},
		{"shorter", func(path string) error { return os.Truncate(path, 1_500_000) }, []string{from(1_500_000)}},
		{"too short to matter", func(path string) error { return os.Truncate(path, 1_000_000) }, []string{""}},
		{"empty", func(path string) error { return os.Truncate(path, 0) }, []string{""}},
		{"gone", os.Remove, []string{""}},
		{"too long", change(func([]byte) []byte { return append(slices.Clone(s.data), 0) }), []string{""}},
		{"all there", change(func([]byte) []byte { return s.data }), nil},
		{"as long as all, and wrong", change(func([]byte) []byte { return bytes.Repeat([]byte{1}, len(s.data)) }), []string{""}},
		{"a directory", func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, []string{""}},
		{"a link", func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) }, []string{""}},
		{"too old", func(path string) error {
			then := time.Now().Add(-25 * time.Hour)
			return os.Chtimes(path, then, then)
		}, []string{""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := crash(t, left)
			if err := c.change(partOf(root, s.data)); err != nil {
				t.Fatal(err)
			}

			svc := open(t, root)
			if c.name == "too old" {
				waitFor(t, "the part to go", func() bool { u, _ := svc.FsInfo(); return u.UsedBytes == 0 })
			}

			s.asked()
			wantPulled(t, root, svc, r.Host+"/app:v1")
			if ranges, _ := s.asked(); !slices.Equal(ranges, c.asked) {
				t.Errorf("asked for %q, want %q", ranges, c.asked)
			}
			waitTidy(t, root)
		})
	}
}

// TestPartsAreNotServed takes an interrupted pull up again at hosts that do
// not send the rest.
func TestPartsAreNotServed(t *testing.T) {
	testkit.Root(t)
	r, s, _ := interruptible(t)
	left := leavePart(t, r, s)
	rest := fmt.Sprintf("bytes=%d-%d", held, len(s.data)-1)
	partial := func(contentRange string, body []byte) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, _ *http.Request, n int) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Content-Range", contentRange)
			w.WriteHeader(http.StatusPartialContent)
			w.Write(body)
			return true
		}
	}

	good := fmt.Sprintf("bytes %d-%d/%d", held, len(s.data)-1, len(s.data))
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request, n int) bool
		asked  []string
	}{
		{"all of it", func(w http.ResponseWriter, _ *http.Request, _ int) bool { w.Write(s.data); return true }, []string{rest}},
		{"not satisfiable", func(w http.ResponseWriter, _ *http.Request, n int) bool {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}, []string{rest, ""}},
		{"another part", partial(fmt.Sprintf("bytes 0-999/%d", len(s.data)), s.data[:1000]), []string{rest, ""}},
		{"of another size", partial(good+"0", s.data[held:]), []string{rest, ""}},
		{"other bytes", partial(good, bytes.Repeat([]byte{7}, len(s.data)-held)), []string{rest, ""}},
		{"more bytes", partial(good, append(slices.Clone(s.data[held:]), 7)), []string{rest, ""}},
		{"a part of the rest", partial(fmt.Sprintf("bytes %d-%d/%d", held, held+99, len(s.data)), s.data[held:held+100]),
			[]string{rest, fmt.Sprintf("bytes=%d-%d", held+100, len(s.data)-1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := crash(t, left)
			s.answer = c.answer
			if c.name == "not satisfiable" {
				s.answer = func(w http.ResponseWriter, r *http.Request, n int) bool { return n == 1 && c.answer(w, r, n) }
			}

			svc := open(t, root)
			s.asked()
			wantPulled(t, root, svc, r.Host+"/app:v1")
			if ranges, _ := s.asked(); !slices.Equal(ranges, c.asked) {
				t.Errorf("asked for %q, want %q", ranges, c.asked)
			}
		})
	}
}

// TestPartsFromAMirror begins at a mirror, which is gone or lies by the time of
// the next pull: the registry itself goes on.
func TestPartsFromAMirror(t *testing.T) {
	testkit.Root(t)
	for name, asked := range map[string]int{"gone": 1, "lies": 2} {
		t.Run(name, func(t *testing.T) {
			mirror, s, _ := interruptible(t)
			up := newRegistry(t)
			up.push("app", "v1", ocispec.ImageConfig{}, pack(t, text("a", random(3_000_000))))
			upstream := &server{data: s.data}
			up.onRequest(upstream.serve)

			dir := t.TempDir()
			hosts := fmt.Sprintf("server = %q\n[host.%q]\n", up.server.URL, mirror.server.URL)
			if err := errors.Join(os.Mkdir(filepath.Join(dir, "h.io"), 0o755), os.WriteFile(filepath.Join(dir, "h.io/hosts.toml"), []byte(hosts), 0o644)); err != nil {
				t.Fatal(err)
			}

			root := leavePart(t, mirror, s)
			s.answer = func(w http.ResponseWriter, r *http.Request, _ int) bool {
				if name == "gone" {
					w.WriteHeader(http.StatusNotFound)
					return true
				}
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bytes.Repeat([]byte{7}, len(s.data))))
				return true
			}

			svc := open(t, root, func(o *image.Options) { o.RegistryConfigDirs = []string{dir} })
			wantPulled(t, root, svc, "h.io/app:v1")
			if ranges, _ := s.asked(); len(ranges) != asked {
				t.Errorf("the mirror was asked for %q, want %d requests", ranges, asked)
			}

			want := map[string]string{"gone": fmt.Sprintf("bytes=%d-%d", held, len(s.data)-1)}[name]
			if ranges, _ := upstream.asked(); !slices.Equal(ranges, []string{want}) {
				t.Errorf("the registry was asked for %q, want %q", ranges, want)
			}
		})
	}
}

// TestSecondPullGoesOn has two pulls want a layer, and gives up the one that
// downloads it: the other one goes on with what that has got.
func TestSecondPullGoesOn(t *testing.T) {
	testkit.Root(t)
	r, s, _ := interruptible(t)
	r.push("other", "v2", ocispec.ImageConfig{User: "2"}, pack(t, text("a", random(3_000_000))))
	root := t.TempDir()
	svc := open(t, root)
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()

	var wg sync.WaitGroup
	wg.Go(func() { _, _ = svc.Pull(ctx, r.Host+"/app:v1", nil) })
	waitHeld(t, root, s.data)
	wg.Go(func() {
		if _, err := svc.Pull(t.Context(), r.Host+"/other:v2", nil); err != nil {
			t.Error(err)
		}
	})

	waitFor(t, "the second pull to have its configuration", func() bool { return r.count("GET", "/other/blobs/") == 1 })
	giveUp()
	wg.Wait()
	want := []string{"", fmt.Sprintf("bytes=%d-%d", held, len(s.data)-1)}
	if ranges, _ := s.asked(); !slices.Equal(ranges, want) {
		t.Errorf("asked for %q, want %q", ranges, want)
	}
}

// TestPartsMakeRoom wants what interrupted pulls have left to go when an image
// is removed, and when the disk is full.
func TestPartsMakeRoom(t *testing.T) {
	testkit.Root(t)
	for name, want := range map[string]func(t *testing.T, r *testRegistry, svc *image.Service){
		"an image is removed": func(t *testing.T, r *testRegistry, svc *image.Service) {
			r.push("small", "v1", ocispec.ImageConfig{}, pack(t, text("b", "1")))
			pull(t, svc, r.Host+"/small:v1")
			if err := svc.Remove(t.Context(), r.Host+"/small:v1"); err != nil {
				t.Error(err)
			}
		},
		"the disk is full": func(t *testing.T, r *testRegistry, svc *image.Service) {
			r.push("huge", "v1", ocispec.ImageConfig{}, pack(t, text("b", random(12_000_000))))
			if _, err := svc.Pull(t.Context(), r.Host+"/huge:v1", nil); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("error %v, want %v", err, unix.ENOSPC)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, s, _ := interruptible(t)
			left := leavePart(t, r, s)
			dir := t.TempDir()
			tmpfs("size=16m")(t, dir)

			root := filepath.Join(dir, "image")
			if err := os.CopyFS(root, os.DirFS(left)); err != nil {
				t.Fatal(err)
			}

			svc := reopen(t, root)
			if u, _ := svc.FsInfo(); u.UsedBytes < held {
				t.Errorf("used %+v, want the part", u)
			}

			want(t, r, svc)
			if u, _ := svc.FsInfo(); u.UsedBytes != 0 {
				t.Errorf("used %+v", u)
			}

			waitFor(t, "the part to go", func() bool { return len(orphans(root)) == 0 })
			if err := svc.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPartsAreBounded leaves more than a quarter of the room that there is: of
// the parts the oldest goes.
func TestPartsAreBounded(t *testing.T) {
	testkit.Root(t)
	r, s, _ := interruptible(t)
	left := leavePart(t, r, s)
	dir := t.TempDir()
	tmpfs("size=18m")(t, dir)

	root := filepath.Join(dir, "image")
	if err := os.CopyFS(root, os.DirFS(left)); err != nil {
		t.Fatal(err)
	}

	for i, name := range []string{"b", "c"} {
		file := filepath.Join(root, "parts", "sha256-"+digestHex([]byte(name)))
		when := time.Now().Add(-time.Duration(i+1) * time.Hour)
		if err := errors.Join(os.WriteFile(file, make([]byte, held), 0o600), os.Chtimes(file, when, when)); err != nil {
			t.Fatal(err)
		}
	}

	svc := reopen(t, root)
	waitFor(t, "the oldest part to go", func() bool { u, _ := svc.FsInfo(); return u.InodesUsed == 2 })
	if _, err := os.Stat(filepath.Join(root, "parts", "sha256-"+digestHex([]byte("c")))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the oldest part: %v", err)
	}

	s.answer = nil
	wantRest := fmt.Sprintf("bytes=%d-%d", held, len(s.data)-1)
	pull(t, svc, r.Host+"/app:v1")
	if ranges, _ := s.asked(); len(ranges) != 1 || ranges[0] != wantRest {
		t.Errorf("asked for %q, want %q", ranges, wantRest)
	}

	if err := svc.Close(); err != nil {
		t.Error(err)
	}
}

// TestWholeLayersOfInterruptedPulls interrupts a pull that has one of its two
// layers. The next one asks for the rest of the other, and for all of the first
// only if there was no room to keep so much.
func TestWholeLayersOfInterruptedPulls(t *testing.T) {
	testkit.Root(t)
	for _, c := range []struct {
		name   string
		room   string // of the disk
		killed bool
		whole  int // requests for the layer that is whole
	}{
		{"given up", "size=80m", false, 1},
		{"killed", "size=80m", true, 1},
		{"hardly any room", "size=18m", false, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, s, _ := interruptible(t)
			whole := pack(t, text("b", random(4_000_000)))
			r.push("app", "v2", ocispec.ImageConfig{}, whole, packed{diff: digest.FromBytes(archive(t, text("a", random(3_000_000)))), data: s.data})
			dir := t.TempDir()
			tmpfs(c.room)(t, dir)

			root := filepath.Join(dir, "image")
			svc := reopen(t, root)
			defer func() { svc.Close() }()
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()

			var wg sync.WaitGroup
			wg.Go(func() { _, _ = svc.Pull(ctx, r.Host+"/app:v2", nil) })
			waitHeld(t, root, s.data)
			waitFor(t, "a layer to be whole", func() bool { u, _ := svc.FsInfo(); return u.UsedBytes > 8_000_000 })

			if c.whole > 1 {
				// The oldest go first, so it is the whole layer that does.
				if err := os.Chtimes(filepath.Join(root, "blobs", "sha256", digestHex(whole.data)), time.Time{}, time.Now().Add(-time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
			if c.killed {
				root = crash(t, root)
			}
			giveUp()
			wg.Wait()

			if c.killed {
				if err := svc.Close(); err != nil {
					t.Error(err)
				}
				svc = reopen(t, root)
			}
			if c.whole > 1 {
				waitFor(t, "the whole layer to go", func() bool { u, _ := svc.FsInfo(); return u.UsedBytes < 3_000_000 })
			}

			s.answer = nil
			s.asked()
			wantPulled(t, root, svc, r.Host+"/app:v2")
			if n := r.count("GET", "/blobs/", digestHex(whole.data)); n != c.whole {
				t.Errorf("the whole layer was asked for %d times, want %d", n, c.whole)
			}

			rest := fmt.Sprintf("bytes=%d-", held)
			if ranges, _ := s.asked(); len(ranges) != 1 || !strings.HasPrefix(ranges[0], rest) {
				t.Errorf("asked for %q, want %q", ranges, rest)
			}
		})
	}
}
