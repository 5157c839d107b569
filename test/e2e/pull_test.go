package e2e

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"strings"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// bigLayer is from which size on a layer is worth interrupting, in bytes.
const bigLayer = 3 << 20

// narrows is a proxy for a registry that stalls halfway through the first big
// layer that it forwards, and counts the bytes that it forwards of that.
type narrows struct {
	mu     sync.Mutex
	layer  string   // its digest, once it is known
	size   int64    // its size
	ranges []string // of the requests for it
	passed int64    // bytes of it since the last call of reset
}

// newNarrows starts a proxy before the registry at addr.
func newNarrows(t *testing.T, addr string) (*narrows, string) {
	t.Helper()
	n := &narrows{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	proxy.FlushInterval = -1
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {} // the client has disconnected
	proxy.ModifyResponse = n.pass
	s := httptest.NewServer(proxy)
	t.Cleanup(s.Close)
	return n, strings.TrimPrefix(s.URL, "http://")
}

// pass observes a response.
func (n *narrows) pass(resp *http.Response) error {
	digest := path.Base(resp.Request.URL.Path)
	n.mu.Lock()
	defer n.mu.Unlock()
	first := n.layer == "" && strings.Contains(resp.Request.URL.Path, "/blobs/") && resp.ContentLength >= bigLayer
	if first {
		n.layer, n.size = digest, resp.ContentLength
	}

	if digest != n.layer {
		return nil
	}
	n.ranges = append(n.ranges, resp.Request.Header.Get("Range"))

	body := &narrow{Reader: resp.Body, Closer: resp.Body, n: n}
	if first {
		body.Reader = io.MultiReader(io.LimitReader(resp.Body, n.size/2), noMore{resp.Request.Context().Done()})
	}
	resp.Body = body
	return nil
}

// seen returns the layer's digest and size, the requested ranges and the bytes
// forwarded since the last call.
func (n *narrows) seen() (layer string, size int64, ranges []string, passed int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	ranges, passed = n.ranges, n.passed
	n.ranges, n.passed = nil, 0
	return n.layer, n.size, ranges, passed
}

// noMore blocks reads as long as there is a client.
type noMore struct{ gone <-chan struct{} }

func (s noMore) Read([]byte) (int, error) {
	<-s.gone
	return 0, io.ErrUnexpectedEOF
}

type narrow struct {
	io.Reader
	io.Closer
	n *narrows
}

func (b *narrow) Read(p []byte) (int, error) {
	k, err := b.Reader.Read(p)
	b.n.mu.Lock()
	defer b.n.mu.Unlock()
	b.n.passed += int64(k)
	return k, err
}

// TestPullGoesOnAfterKill kills the daemon in the middle of a big layer. The
// next one reports the partial download, requests exactly the rest of the layer
// from the registry, and runs the image.
func TestPullGoesOnAfterKill(t *testing.T) {
	n := newNode(t, lab.Options{})
	proxy, addr := newNarrows(t, n.Registry.Addr)
	image := &runtimeapi.ImageSpec{Image: addr + strings.TrimPrefix(nginx, "registry.k8s.io")}
	before := n.imageBytes(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := try(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: image}); err == nil {
			t.Error("the pull ended before the daemon was killed")
		}
	})

	var part string
	eventually(t, "half of the layer is here", func() bool {
		proxy.mu.Lock()
		defer proxy.mu.Unlock()
		part = n.path("root", "image", "parts", strings.Replace(proxy.layer, ":", "-", 1))
		st, err := os.Stat(part)
		return err == nil && proxy.size > 0 && st.Size() == proxy.size/2
	})

	n.Kill()
	wg.Wait()
	_, size, _, _ := proxy.seen()
	n.begin(t)

	if more := n.imageBytes(t) - before; more < uint64(size/2) {
		t.Errorf("with half a layer of %d bytes images take %d bytes more", size, more)
	}

	call(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: image})
	want := fmt.Sprintf("bytes=%d-%d", size/2, size-1)
	if _, _, ranges, passed := proxy.seen(); len(ranges) != 1 || ranges[0] != want || passed != size-size/2 {
		t.Errorf("the registry was asked for %q and sent %d bytes of the layer, want %q and %d", ranges, passed, want, size-size/2)
	}

	if _, err := os.Stat(part); !os.IsNotExist(err) {
		t.Errorf("the part of the layer: %v", err)
	}
	n.pod(t).start(t, func(c *runtimeapi.ContainerConfig) { c.Image = image; c.Command = []string{"/bin/sh", "-c", "exit 7"} }).wantEnd(t, 7, "Error")
}

// imageBytes is the disk usage of images.
func (n *node) imageBytes(t *testing.T) uint64 {
	t.Helper()
	return call(t, n.Images.ImageFsInfo, &runtimeapi.ImageFsInfoRequest{}).ImageFilesystems[0].UsedBytes.Value
}
