package image_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestProgress looks at a pull that stands still in the middle of one of two layers.
func TestProgress(t *testing.T) {
	r := newRegistry(t)
	big, small := pack(t, text("a", random(3_000_000))), pack(t, text("b", "b"))
	r.push("app", "v1", ocispec.ImageConfig{}, big, small)
	goOn := make(chan struct{})
	r.onRequest(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, digestHex(big.data)) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(big.data)))
		w.Write(big.data[:1_000_000])
		w.(http.Flusher).Flush()
		<-goOn
		w.Write(big.data[1_000_000:])
		return true
	})

	s := open(t, t.TempDir())
	if list := s.Pulls(); len(list) > 0 {
		t.Errorf("pulls %+v before the first", list)
	}
	done := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), r.Host+"/app:v1", nil)
		done <- err
	}()

	size, bytes := int64(len(big.data)+len(small.data)), int64(1_000_000+len(small.data))
	waitFor(t, "the half of a layer", func() bool {
		list := s.Pulls()
		return len(list) == 1 && list[0].Bytes == bytes && list[0].Size == size && list[0].Layers == 2 && list[0].Present == 1 &&
			list[0].Ref == r.Host+"/app:v1" && !list[0].Began.IsZero()
	})

	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if list := s.Pulls(); len(list) > 0 {
		t.Errorf("pulls %+v after the last", list)
	}
}
