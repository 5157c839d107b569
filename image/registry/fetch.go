package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// MaxDocument bounds manifests, indexes and configurations.
	MaxDocument = 8 << 20
	// maxResumes bounds how often a download may break off without progress.
	maxResumes = 5
	// A download of less than minRate bytes a second, averaged over rateTime
	// of waiting for it, has stalled.
	minRate  = 1 << 10
	rateTime = time.Minute
)

// Media types of Docker's older names for what OCI specifies.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Manifest writes the document that the repository's reference names to a
// writer, at most [MaxDocument] bytes, and describes what it has written.
func (r *Repository) Manifest(ctx context.Context, to io.Writer) (ocispec.Descriptor, error) {
	return r.manifest(ctx, r.ref.identifier(), r.ref.Digest, to)
}

// ManifestByDigest writes a manifest that an index names, which it verifies.
func (r *Repository) ManifestByDigest(ctx context.Context, d digest.Digest, to io.Writer) (ocispec.Descriptor, error) {
	return r.manifest(ctx, d.String(), d, to)
}

func (r *Repository) manifest(ctx context.Context, id string, want digest.Digest, to io.Writer) (ocispec.Descriptor, error) {
	resp, err := r.do(ctx, request{
		method: http.MethodGet,
		path:   "/" + r.ref.Repo + "/manifests/" + id,
		header: http.Header{"Accept": {strings.Join([]string{
			ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, DockerManifest, DockerManifestList, "*/*;q=0.1",
		}, ", ")}},
		byTag: want == "",
		want:  []int{http.StatusOK},
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	body := newWatchedBody(ctx, resp.Body, r.progress, r.document, nil)
	defer body.Close()
	algorithm := digest.SHA256
	if want != "" {
		algorithm = want.Algorithm()
	}
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

// Config writes the small blob that desc describes, which it verifies.
func (r *Repository) Config(ctx context.Context, desc ocispec.Descriptor, to io.Writer) error {
	if desc.Size > MaxDocument {
		return fmt.Errorf("%w: configuration of %d bytes", ErrProtocol, desc.Size)
	}
	b := &blobReader{ctx: ctx, repo: r, desc: desc, total: r.document}
	if err := b.open(); err != nil {
		return err
	}
	defer b.Close()
	got, _, err := copyDocument(to, b, desc.Size, desc.Digest.Algorithm())
	if err != nil {
		return err
	}
	if got != desc.Digest {
		return fmt.Errorf("%w: blob %s has digest %s", ErrProtocol, desc.Digest, got)
	}
	return nil
}

// copyDocument copies at most limit bytes and tells what they are.
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

// Blob streams a blob. The reader takes the download up again where it broke
// off, from another host if need be. It does not verify: the caller, who sees
// every byte anyway, compares digest and size.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	b := &blobReader{ctx: ctx, repo: r, desc: desc, meter: &meter{window: min(rateTime, r.progress)}}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// blobReader is a blob as one stream, over as many requests as it takes.
type blobReader struct {
	ctx     context.Context // io.Reader has no room for it
	repo    *Repository
	desc    ocispec.Descriptor
	offset  int64
	body    io.ReadCloser
	resumes int
	// total, if not 0, is how long each answer may take in all; meter, if not
	// nil, is over all of them.
	total time.Duration
	meter *meter
}

// open asks for the blob from offset on.
func (b *blobReader) open() error {
	q := request{
		method: http.MethodGet,
		path:   "/" + b.repo.ref.Repo + "/blobs/" + b.desc.Digest.String(),
		header: http.Header{"Accept": {"*/*"}},
		want:   []int{http.StatusOK},
	}
	if b.offset > 0 {
		// With its end, though it is the blob's: some registries want one.
		q.header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.offset, b.desc.Size-1))
		q.want = append(q.want, http.StatusPartialContent)
	}
	resp, err := b.repo.do(b.ctx, q)
	if err != nil {
		return err
	}
	if n := resp.ContentLength; resp.StatusCode == http.StatusOK && n >= 0 && n != b.desc.Size {
		resp.Body.Close()
		return fmt.Errorf("%w: blob %s has %d bytes, not %d", ErrProtocol, b.desc.Digest, n, b.desc.Size)
	}
	b.body = newWatchedBody(b.ctx, resp.Body, b.repo.progress, b.total, b.meter)
	skip := b.offset
	if resp.StatusCode == http.StatusPartialContent {
		if skip, err = skipTo(resp, b.offset); err != nil {
			b.body.Close()
			return err
		}
	}
	if _, err := io.CopyN(io.Discard, b.body, skip); err != nil {
		b.body.Close()
		return err
	}
	return nil
}

// skipTo tells how much of a partial answer lies before offset.
func skipTo(resp *http.Response, offset int64) (int64, error) {
	unit, rest, _ := strings.Cut(resp.Header.Get("Content-Range"), " ")
	first, _, _ := strings.Cut(rest, "-")
	start, err := strconv.ParseInt(first, 10, 64)
	if unit != "bytes" || err != nil || start > offset || start < 0 {
		return 0, fmt.Errorf("%w: Content-Range %q", ErrProtocol, clean(resp.Header.Get("Content-Range")))
	}
	return offset - start, nil
}

// Read reads on, over broken connections. A blob that is longer than it
// should be is cut off one byte late, for the caller to notice.
func (b *blobReader) Read(p []byte) (int, error) {
	if rest := b.desc.Size + 1 - b.offset; int64(len(p)) > rest {
		p = p[:max(rest, 0)]
	}
	if len(p) == 0 {
		return 0, io.EOF
	}
	for {
		n, err := b.body.Read(p)
		b.offset += int64(n)
		if errors.Is(err, errStalled) {
			return n, b.broken(err)
		}
		if n > 0 {
			b.resumes = 0
			return n, nil
		}
		if err == nil {
			return 0, nil
		}
		if b.offset >= b.desc.Size {
			return 0, io.EOF // there is nothing more to ask for
		}
		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume opens the rest of a stream that ended with cause.
func (b *blobReader) resume(cause error) error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if errors.Is(cause, io.EOF) {
		cause = io.ErrUnexpectedEOF
	}
	b.resumes++
	if b.resumes > maxResumes {
		return b.broken(cause)
	}
	b.body.Close()
	start := time.Now()
	if err := sleep(b.ctx, firstBackoff<<(b.resumes-1)); err != nil {
		return err
	}
	err := b.open()
	if err == nil {
		// Who breaks off after every byte is as slow as who drips.
		err = b.meter.note(0, time.Since(start))
	}
	if err != nil {
		b.body.Close()
		b.body = io.NopCloser(strings.NewReader(""))
		return fmt.Errorf("resume blob %s at byte %d: %w", b.desc.Digest, b.offset, err)
	}
	return nil
}

func (b *blobReader) broken(cause error) error {
	return fmt.Errorf("%w: read blob %s at byte %d of %d: %w", ErrUnavailable, b.desc.Digest, b.offset, b.desc.Size, cause)
}

// Close ends the download.
func (b *blobReader) Close() error { return b.body.Close() }

// errStalled is how a read ends in which too little arrived for too long.
var errStalled = errors.New("no data arrived")

// meter holds a download to its minimum rate.
type meter struct {
	window time.Duration
	spent  time.Duration // waiting for data, in this window
	got    int64         // in this window
}

// note counts bytes and the time that it took to wait for them.
func (m *meter) note(n int, d time.Duration) error {
	if m == nil {
		return nil
	}
	m.got += int64(n)
	if m.spent += d; m.spent < m.window {
		return nil
	}
	if least := int64(m.window.Seconds() * minRate); m.got < least {
		return fmt.Errorf("%w: %w but %d bytes in %s", ErrUnavailable, errStalled, m.got, m.spent.Round(time.Millisecond))
	}
	m.spent, m.got = 0, 0
	return nil
}

// newWatchedBody gives a body limits on the time in which nothing arrives and,
// unless total is 0, on the time in all. meter may be nil.
func newWatchedBody(ctx context.Context, body io.ReadCloser, limit, total time.Duration, m *meter) *watchedBody {
	w := &watchedBody{ctx: ctx, body: body, limit: limit, meter: m, bounded: total > 0, left: total}
	w.timer = time.AfterFunc(time.Hour, w.expire)
	w.timer.Stop()
	return w
}

type watchedBody struct {
	ctx   context.Context // io.Reader has no room for it
	body  io.ReadCloser
	limit time.Duration
	timer *time.Timer
	meter *meter

	bounded bool
	left    time.Duration // of the time in all

	mu      sync.Mutex
	expired bool // guarded by mu
}

// Read reads with the clock running, which stands still while the caller is
// busy with what it got.
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
		return n, fmt.Errorf("%w: %w for %s", ErrUnavailable, errStalled, limit.Round(time.Millisecond))
	}
	return n, transportError(w.ctx, err)
}

func (w *watchedBody) expire() {
	w.mu.Lock()
	w.expired = true
	w.mu.Unlock()
	w.body.Close()
}

// Close ends the answer.
func (w *watchedBody) Close() error {
	w.timer.Stop()
	return w.body.Close()
}
