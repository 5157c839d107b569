package image_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
	"crisp/test/testkit"
)

// TestFaultyRegistry pulls through faults of the registry that a pull gets
// over, and counts the bytes that it had to ask for.
func TestFaultyRegistry(t *testing.T) {
	testkit.Root(t)
	big := pack(t, text("a", random(3_000_000)))
	for _, c := range []struct {
		name string
		// fault answers the n-th request for the blob, or does not.
		fault func(w http.ResponseWriter, n int) bool
		least time.Duration
		// requests is how often the blob is asked for.
		requests int
	}{
		{"cut in the middle", func(w http.ResponseWriter, n int) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(big.data)))
			w.Write(big.data[:1_000_000])
			panic(http.ErrAbortHandler)
		}, 0, 2},
		{"too many requests", func(w http.ResponseWriter, n int) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}, time.Second, 2},
		{"out of service twice", func(w http.ResponseWriter, n int) bool {
			if n > 2 {
				return false
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}, 0, 3},
		{"slow", func(w http.ResponseWriter, _ int) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(big.data)))
			for at := 0; at < len(big.data); at += 300_000 {
				w.Write(big.data[at:min(at+300_000, len(big.data))])
				w.(http.Flusher).Flush()
				time.Sleep(20 * time.Millisecond)
			}
			return true
		}, 200 * time.Millisecond, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRegistry(t)
			r.push("app", "v1", ocispec.ImageConfig{}, big)
			var asked atomic.Int32
			var mu sync.Mutex
			var ranges []string
			r.onRequest(func(w http.ResponseWriter, req *http.Request) bool {
				if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, digestHex(big.data)) {
					return false
				}
				mu.Lock()
				ranges = append(ranges, req.Header.Get("Range"))
				mu.Unlock()
				return c.fault(w, int(asked.Add(1)))
			})

			root := t.TempDir()
			s := open(t, root)
			began := time.Now()
			pull(t, s, r.Host+"/app:v1")

			if d := time.Since(began); d < c.least {
				t.Errorf("took %s, want at least %s", d, c.least)
			}

			mu.Lock()
			defer mu.Unlock()
			if len(ranges) != c.requests {
				t.Errorf("asked %d times, want %d", len(ranges), c.requests)
			}
			if c.name == "cut in the middle" && ranges[len(ranges)-1] != fmt.Sprintf("bytes=1000000-%d", len(big.data)-1) {
				t.Errorf("ranges asked for: %q", ranges)
			}
		})
	}
}

// TestRemoveWhilePulling removes an image again and again while it is pulled,
// under the same name and under another one that shares its layers. A pull
// must not notice, and in the end nothing may be left.
func TestRemoveWhilePulling(t *testing.T) {
	testkit.Root(t)
	r := newRegistry(t)
	ref := pushFive(t, r)
	shared := pack(t, text("f0", random(100_000)), text("same", "0"))
	r.push("app", "v2", ocispec.ImageConfig{User: "2"}, shared, pack(t, text("own", random(50_000))))

	root := t.TempDir()
	s := open(t, root, func(o *image.Options) { o.SyncDelay = time.Millisecond })
	refs := []string{ref, strings.Replace(ref, ":v1", ":v2", 1)}
	var wg sync.WaitGroup
	end := time.Now().Add(2 * time.Second)
	for _, ref := range append(refs, refs...) {
		wg.Go(func() {
			for time.Now().Before(end) {
				if _, err := s.Pull(t.Context(), ref, nil); err != nil {
					t.Errorf("pull: %v", err)
					return
				}
			}
		})
		wg.Go(func() {
			for time.Now().Before(end) {
				if err := s.Remove(t.Context(), ref); err != nil {
					t.Errorf("remove: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()

	for _, ref := range refs {
		if err := s.Remove(t.Context(), ref); err != nil {
			t.Error(err)
		}
	}

	if u, _ := s.FsInfo(); u.UsedBytes != 0 {
		t.Errorf("used after removal: %+v", u)
	}
	waitFor(t, "what was removed to go", func() bool { return len(orphans(root)) == 0 })
}
