package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// MaxDocument bounds manifests, indexes and configurations.
	MaxDocument = 8 << 20
	// A download of less than minRate bytes per second, averaged over rateTime
	// of waiting for data, has stalled.
	minRate  = 1 << 10
	rateTime = time.Minute
)

// Docker's media types, which predate those of OCI.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Document is what a document is written to. Reset discards what was written, when
// a host has failed and the next one is tried.
type Document interface {
	io.Writer
	Reset()
}

// Manifest writes the document that the repository's reference names, at most
// [MaxDocument] bytes, and returns its descriptor.
func (r *Repository) Manifest(ctx context.Context, to Document) (ocispec.Descriptor, error) {
	return r.manifest(ctx, r.ref.identifier(), r.ref.Digest, to)
}

// ManifestByDigest writes and verifies a manifest that an index lists.
func (r *Repository) ManifestByDigest(ctx context.Context, d digest.Digest, to Document) (ocispec.Descriptor, error) {
	return r.manifest(ctx, d.String(), d, to)
}

func (r *Repository) manifest(ctx context.Context, id string, want digest.Digest, to Document) (desc ocispec.Descriptor, err error) {
	q := request{
		method: http.MethodGet,
		path:   "/" + r.ref.Repo + "/manifests/" + id,
		header: http.Header{"Accept": {manifestTypes()}},
		byTag:  want == "",
		want:   []int{http.StatusOK},
	}

	err = r.each(ctx, q, nil, func(_ *hop, resp *http.Response) error {
		desc, err = r.readManifest(ctx, resp, want, to)
		return err
	})
	return desc, err
}

// manifestTypes are the media types of manifests and indexes, as a client accepts them.
func manifestTypes() string {
	return strings.Join([]string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, DockerManifest, DockerManifestList, "*/*;q=0.1"}, ", ")
}

// readManifest copies a manifest from a response.
func (r *Repository) readManifest(ctx context.Context, resp *http.Response, want digest.Digest, to Document) (ocispec.Descriptor, error) {
	resp.Body = newWatchedBody(ctx, resp.Body, r.progress, r.document, nil)
	defer resp.Body.Close()

	body, err := plain(resp)
	if err != nil {
		return ocispec.Descriptor{}, err
	}

	algorithm := digest.SHA256
	if want != "" {
		algorithm = want.Algorithm()
	}

	to.Reset()
	got, size, err := copyDocument(to, body, MaxDocument, algorithm)
	if err != nil {
		return ocispec.Descriptor{}, err
	}

	if want != "" && got != want {
		return ocispec.Descriptor{}, fmt.Errorf("%w: manifest %s has digest %s", ErrProtocol, want, got)
	}

	mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		mediaType = ""
	}

	return ocispec.Descriptor{MediaType: mediaType, Digest: got, Size: size}, nil
}

// Config writes and verifies the small blob that desc describes.
func (r *Repository) Config(ctx context.Context, desc ocispec.Descriptor, to Document) error {
	if desc.Size > MaxDocument {
		return fmt.Errorf("%w: configuration of %d bytes", ErrProtocol, desc.Size)
	}
	return r.each(ctx, r.blobRequest(desc), nil, func(_ *hop, resp *http.Response) error {
		resp.Body = newWatchedBody(ctx, resp.Body, r.progress, r.document, nil)
		defer resp.Body.Close()
		body, err := r.blobBody(resp, desc)
		if err != nil {
			return err
		}

		to.Reset()
		got, _, err := copyDocument(to, body, desc.Size, desc.Digest.Algorithm())
		if err == nil && got != desc.Digest {
			err = fmt.Errorf("%w: blob %s has digest %s", ErrProtocol, desc.Digest, got)
		}

		return err
	})
}

func (r *Repository) blobRequest(desc ocispec.Descriptor) request {
	return request{
		method: http.MethodGet,
		path:   "/" + r.ref.Repo + "/blobs/" + desc.Digest.String(),
		header: http.Header{"Accept": {"*/*"}},
		want:   []int{http.StatusOK},
	}
}

// blobBody returns the blob in a complete response.
func (r *Repository) blobBody(resp *http.Response, desc ocispec.Descriptor) (io.Reader, error) {
	if isCoded(resp, desc.Size) {
		return plain(resp)
	}
	if n := resp.ContentLength; n >= 0 && n != desc.Size {
		return nil, fmt.Errorf("%w: blob %s has %d bytes, want %d", ErrProtocol, desc.Digest, n, desc.Size)
	}
	return resp.Body, nil
}

// copyDocument copies at most limit bytes and returns their digest and size.
func copyDocument(to io.Writer, from io.Reader, limit int64, algorithm digest.Algorithm) (digest.Digest, int64, error) {
	sum := algorithm.Digester()
	n, err := io.Copy(io.MultiWriter(to, sum.Hash()), io.LimitReader(from, limit+1))
	if err != nil {
		return "", n, err
	}
	if n > limit {
		return "", n, fmt.Errorf("%w: document larger than %d bytes", ErrProtocol, limit)
	}
	return sum.Digest(), n, nil
}

// errStalled ends a transfer when too little data arrived, or was taken, for too long.
var errStalled = errors.New("transfer stalled")

// meter enforces the minimum rate of a transfer.
type meter struct {
	window time.Duration
	spent  time.Duration // waiting for data in this window
	got    int64         // bytes in this window
}

// note counts bytes and the time spent waiting for them.
func (m *meter) note(n int, d time.Duration) error {
	if m == nil {
		return nil
	}

	m.got += int64(n)
	if m.spent += d; m.spent < m.window {
		return nil
	}
	if minimum := int64(m.window.Seconds() * minRate); m.got < minimum {
		return fmt.Errorf("%w: %w: %d bytes in %s", ErrUnavailable, errStalled, m.got, m.spent.Round(time.Millisecond))
	}
	m.spent, m.got = 0, 0
	return nil
}

// newWatchedBody limits the time of a body without data to limit and, unless total
// is 0, the time of all reads together to total. m may be nil.
func newWatchedBody(ctx context.Context, body io.ReadCloser, limit, total time.Duration, m *meter) *watchedBody {
	w := &watchedBody{ctx: ctx, body: body, limit: limit, meter: m, bounded: total > 0, left: total}
	w.timer = time.AfterFunc(time.Hour, w.expire)
	w.timer.Stop()
	return w
}

// watchedBody is a response's body with limits on the time spent waiting for it.
type watchedBody struct {
	ctx   context.Context // of the request: Read takes none
	body  io.ReadCloser
	limit time.Duration
	timer *time.Timer
	meter *meter

	bounded bool
	left    time.Duration // of the total time

	mu      sync.Mutex
	expired bool // guarded by mu
}

// Read reads with the timer running, which is stopped while the caller processes
// the data.
func (w *watchedBody) Read(p []byte) (int, error) {
	limit := w.limit
	if w.bounded {
		limit = max(min(limit, w.left), 0)
	}

	start := time.Now()
	w.timer.Reset(limit)
	n, err := w.body.Read(p)
	w.timer.Stop()

	spent := time.Since(start)
	w.left -= spent
	if errors.Is(err, io.EOF) {
		return n, err
	}
	if err == nil {
		return n, w.meter.note(n, spent)
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	if w.expired {
		return n, fmt.Errorf("%w: %w: no data for %s", ErrUnavailable, errStalled, limit.Round(time.Millisecond))
	}
	return n, transportError(w.ctx, err)
}

func (w *watchedBody) expire() {
	w.mu.Lock()
	w.expired = true
	w.mu.Unlock()
	w.body.Close()
}

// Close closes the response.
func (w *watchedBody) Close() error {
	w.timer.Stop()
	return w.body.Close()
}
