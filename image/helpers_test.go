package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crisp/image"
)

// testRegistry is a registry in this process that notes what it is asked.
type testRegistry struct {
	t      testing.TB
	Host   string
	server *httptest.Server

	mu       sync.Mutex
	requests []string
	// intercept, if set, may answer a request itself.
	intercept func(w http.ResponseWriter, r *http.Request) bool
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	r := &testRegistry{t: t}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, req.Method+" "+req.URL.Path)
		intercept := r.intercept
		r.mu.Unlock()
		if intercept != nil && intercept(w, req) {
			return
		}
		inner.ServeHTTP(w, req)
	}))
	t.Cleanup(r.server.Close)

	u, err := url.Parse(r.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = u.Host
	return r
}

// count tells how many requests so far contain all parts.
func (r *testRegistry) count(parts ...string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
next:
	for _, req := range r.requests {
		for _, p := range parts {
			if !strings.Contains(req, p) {
				continue next
			}
		}
		n++
	}
	return n
}

func (r *testRegistry) onRequest(f func(w http.ResponseWriter, req *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = f
}

func (r *testRegistry) putBlob(repo string, data []byte) digest.Digest {
	r.t.Helper()
	d := digest.FromBytes(data)
	r.do(http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?digest=%s", repo, d), "application/octet-stream", data)
	return d
}

func (r *testRegistry) putManifest(repo, ref, mediaType string, doc any) ocispec.Descriptor {
	r.t.Helper()
	data, ok := doc.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(doc); err != nil {
			r.t.Fatal(err)
		}
	}

	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if ref == "" {
		ref = desc.Digest.String()
	}
	r.do(http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repo, ref), mediaType, data)
	return desc
}

func (r *testRegistry) do(method, path, contentType string, body []byte) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.server.URL+path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}

	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()

	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(resp.Body)
		r.t.Fatalf("%s %s: %s: %s", method, path, resp.Status, b)
	}
}

// file is an entry of a test layer.
type file struct {
	tar.Header
	body string
}

func dir(name string) file {
	return file{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}}
}

func text(name, body string) file {
	return file{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}, body: body}
}

func archive(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		hdr := f.Header
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatalf("%s: %v", hdr.Name, err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}

	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// packed is a layer as an image has it.
type packed struct {
	diff digest.Digest
	data []byte
	desc ocispec.Descriptor
}

func pack(t testing.TB, files ...file) packed {
	t.Helper()
	plain := archive(t, files...)
	return packed{diff: digest.FromBytes(plain), data: gzipped(t, plain)}
}

// push puts an image into the registry and returns its manifest's descriptor
// and its ID.
func (r *testRegistry) push(repo, tag string, config ocispec.ImageConfig, layers ...packed) (ocispec.Descriptor, string) {
	r.t.Helper()
	im := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   config,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}

	m := ocispec.Manifest{
		Versioned: imagespec.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
	}

	for _, l := range layers {
		im.RootFS.DiffIDs = append(im.RootFS.DiffIDs, l.diff)
		d := l.desc
		if d.MediaType == "" {
			d.MediaType = ocispec.MediaTypeImageLayerGzip
		}
		if d.Digest == "" {
			d.Digest, d.Size = r.putBlob(repo, l.data), int64(len(l.data))
		}
		m.Layers = append(m.Layers, d)
	}

	data, err := json.Marshal(im)
	if err != nil {
		r.t.Fatal(err)
	}
	id := r.putBlob(repo, data)
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: id, Size: int64(len(data))}
	return r.putManifest(repo, tag, ocispec.MediaTypeImageManifest, m), id.String()
}

func open(t testing.TB, root string, change ...func(*image.Options)) *image.Service {
	t.Helper()
	opts := image.Options{Root: root}
	for _, c := range change {
		c(&opts)
	}

	s, err := image.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})

	return s
}

func pull(t testing.TB, s *image.Service, ref string) image.Image {
	t.Helper()
	im, err := s.Pull(t.Context(), ref, nil)
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	return im
}

func digestHex(data []byte) string { return digest.FromBytes(data).Encoded() }
