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
)

// Media types of Docker's older names for what OCI specifies.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Manifest fetches the document that the repository's reference names.
func (r *Repository) Manifest(ctx context.Context) (Document, error) {
	return r.manifest(ctx, r.ref.identifier(), r.ref.Digest)
}

// ManifestByDigest fetches a manifest that an index names.
func (r *Repository) ManifestByDigest(ctx context.Context, d digest.Digest) (Document, error) {
	return r.manifest(ctx, d.String(), d)
}

func (r *Repository) manifest(ctx context.Context, id string, want digest.Digest) (Document, error) {
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
		return Document{}, err
	}
	body := r.watch(ctx, resp)
	defer body.Close()
	data, err := readLimited(body, MaxDocument)
	if err != nil {
		return Document{}, err
	}
	algorithm := digest.SHA256
	if want != "" {
		algorithm = want.Algorithm()
	}
	got := algorithm.FromBytes(data)
	if want != "" && got != want {
		return Document{}, fmt.Errorf("%w: manifest %s has digest %s", ErrProtocol, want, got)
	}
	mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		mediaType = ""
	}
	return Document{MediaType: mediaType, Digest: got, Data: data}, nil
}

// Config fetches and verifies the small blob that desc describes.
func (r *Repository) Config(ctx context.Context, desc ocispec.Descriptor) (Document, error) {
	if desc.Size > MaxDocument {
		return Document{}, fmt.Errorf("%w: configuration of %d bytes", ErrProtocol, desc.Size)
	}
	body, err := r.Blob(ctx, desc)
	if err != nil {
		return Document{}, err
	}
	defer body.Close()
	data, err := readLimited(body, desc.Size)
	if err != nil {
		return Document{}, err
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return Document{}, fmt.Errorf("%w: blob %s has digest %s", ErrProtocol, desc.Digest, got)
	}
	return Document{MediaType: desc.MediaType, Digest: desc.Digest, Data: data}, nil
}

func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: document larger than %d bytes", ErrProtocol, limit)
	}
	return data, nil
}

// Blob streams a blob. The reader takes the download up again where it broke
// off, from another host if need be. It does not verify: the caller, who sees
// every byte anyway, compares digest and size.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	b := &blobReader{ctx: ctx, repo: r, desc: desc}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// blobReader is a blob as one stream, over as many requests as it takes.
type blobReader struct {
	ctx     context.Context //nolint:containedctx // io.Reader has no room for it
	repo    *Repository
	desc    ocispec.Descriptor
	offset  int64
	body    io.ReadCloser
	resumes int
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
	b.body = b.repo.watch(b.ctx, resp)
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
	if b.resumes > maxResumes || errors.Is(cause, errStalled) {
		return fmt.Errorf("%w: read blob %s at byte %d of %d: %w", ErrUnavailable, b.desc.Digest, b.offset, b.desc.Size, cause)
	}
	b.body.Close()
	if err := sleep(b.ctx, firstBackoff<<(b.resumes-1)); err != nil {
		return err
	}
	if err := b.open(); err != nil {
		b.body = io.NopCloser(strings.NewReader(""))
		return fmt.Errorf("resume blob %s at byte %d: %w", b.desc.Digest, b.offset, err)
	}
	return nil
}

// Close ends the download.
func (b *blobReader) Close() error { return b.body.Close() }

// errStalled is how a read ends in which nothing arrived for too long.
var errStalled = errors.New("no data arrived")

// watch gives a body a limit on the time in which nothing arrives.
func (r *Repository) watch(ctx context.Context, resp *http.Response) io.ReadCloser {
	w := &watchedBody{ctx: ctx, body: resp.Body, limit: r.progress}
	w.timer = time.AfterFunc(time.Hour, w.expire)
	w.timer.Stop()
	return w
}

type watchedBody struct {
	ctx   context.Context //nolint:containedctx // io.Reader has no room for it
	body  io.ReadCloser
	limit time.Duration
	timer *time.Timer

	mu      sync.Mutex
	expired bool
}

// Read reads with the clock running, which stands still while the caller is
// busy with what it got.
func (w *watchedBody) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.body.Read(p)
	w.timer.Stop()
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.expired {
		return n, fmt.Errorf("%w: %w for %s", ErrUnavailable, errStalled, w.limit)
	}
	return n, transportError(w.ctx, err)
}

func (w *watchedBody) expire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expired = true
	w.body.Close()
}

// Close ends the answer.
func (w *watchedBody) Close() error {
	w.timer.Stop()
	return w.body.Close()
}
