package image_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
	"crisp/test/testkit"
)

// TestMaxConcurrentDownloads counts how many layers of an image are fetched at
// the same time, and how many of two images that are pulled together.
func TestMaxConcurrentDownloads(t *testing.T) {
	testkit.Root(t)
	const layers = 10
	for _, c := range []struct{ limit, images, want int }{{1, 1, 1}, {3, 1, 3}, {0, 1, 6}, {8, 1, 8}, {20, 1, layers}, {2, 2, 4}, {8, 2, 16}} {
		t.Run(fmt.Sprintf("%d for %d images", c.limit, c.images), func(t *testing.T) {
			r := newRegistry(t)
			isLayer := map[string]bool{}
			for im := range c.images {
				var list []packed
				for i := range layers {
					list = append(list, pack(t, text("f", fmt.Sprint(im, i))))
					isLayer["sha256:"+digestHex(list[i].data)] = true
				}
				r.push(fmt.Sprint("app", im), "v1", ocispec.ImageConfig{}, list...)
			}

			var mu sync.Mutex
			now, most := 0, 0
			full := make(chan struct{}) // closed when as many as may be are fetched
			r.onRequest(func(_ http.ResponseWriter, req *http.Request) bool {
				if req.Method != http.MethodGet || !isLayer[filepath.Base(req.URL.Path)] {
					return false
				}

				mu.Lock()
				if now++; now == c.want && most < c.want {
					// One too many would come soon.
					time.AfterFunc(100*time.Millisecond, func() { close(full) })
				}

				most = max(most, now)
				mu.Unlock()
				<-full

				mu.Lock()
				now--
				mu.Unlock()
				return false
			})

			svc := open(t, t.TempDir(), func(o *image.Options) { o.MaxConcurrentDownloads = c.limit })
			var wg sync.WaitGroup
			for im := range c.images {
				wg.Go(func() {
					if _, err := svc.Pull(t.Context(), fmt.Sprintf("%s/app%d:v1", r.Host, im), nil); err != nil {
						t.Error(err)
					}
				})
			}

			waitFor(t, "as many downloads as may be", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return most >= c.want
			})
			wg.Wait()

			if most != c.want {
				t.Errorf("%d layers were fetched at the same time, want %d", most, c.want)
			}
		})
	}
}
