package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// giveUpTime bounds the attempt to tell a registry that an upload is not coming.
	giveUpTime = 5 * time.Second
	// storedDigest is the header with the digest of what a registry has stored.
	storedDigest = "Docker-Content-Digest"
)

// Pusher writes to a repository, on the one host that takes its images: the first one
// whose configuration has the capability to push, or else the registry itself.
type Pusher struct {
	repo *Repository
	hop  *hop
}

// Pusher returns a pusher to ref's repository, with the credentials in auth, nil for none.
// Close it when done.
func (c *Client) Pusher(ref Reference, auth *Auth) (*Pusher, error) {
	r, eps, creds, err := c.plan(ref, auth)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(eps, func(ep endpoint) bool { return ep.push })
	if at < 0 {
		return nil, fmt.Errorf("%w: no host that is configured for %s has the capability to push", ErrConfig, ref.Host)
	}

	// When a large upload is complete, the registry may have to copy it.
	h := newHop(eps[at], ref, creds, "pull,push", 0)
	r.hops = []*hop{h}
	return &Pusher{r, h}, nil
}

// Close closes idle connections.
func (p *Pusher) Close() { p.repo.Close() }

// Host is the host that is pushed to.
func (p *Pusher) Host() string { return p.hop.base.Host }

// Try finds out whether the registry would take an upload, by beginning one. It leaves
// nothing there.
func (p *Pusher) Try(ctx context.Context) error {
	to, err := p.begin(ctx, true)
	if err != nil {
		return err
	}
	p.giveUp(ctx, to)
	return nil
}

// Blob sends the blob that desc describes and open reads, unless the registry has it, and
// reports whether it was sent. It is sent as it is read. After a transient error it is
// sent again, from its beginning.
func (p *Pusher) Blob(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) (sent bool, err error) {
	backoff := firstBackoff
	for attempt := 1; ; attempt++ {
		has, err := p.has(ctx, "/blobs/", desc.Digest)
		if err != nil || has {
			return false, err
		}
		err = p.upload(ctx, desc, open)
		if err == nil || !transient(err) || attempt == maxRetries {
			return err == nil, err
		}
		if err := sleep(ctx, backoff); err != nil {
			return false, err
		}
		backoff *= 2
	}
}

// transient reports whether an upload may succeed at another time.
func transient(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return passes(status.code)
	}
	return dropped(err)
}

// HasManifest asks whether the registry has the manifest of a digest.
func (p *Pusher) HasManifest(ctx context.Context, d digest.Digest) (bool, error) {
	return p.has(ctx, "/manifests/", d)
}

// has asks whether the registry has something of a kind.
func (p *Pusher) has(ctx context.Context, kind string, d digest.Digest) (has bool, err error) {
	err = p.ask(ctx, request{
		method: http.MethodHead,
		path:   "/" + p.repo.ref.Repo + kind + d.String(),
		header: http.Header{"Accept": {manifestTypes()}},
		want:   []int{http.StatusOK, http.StatusNotFound},
	}, true, func(resp *http.Response) error {
		has = resp.StatusCode == http.StatusOK
		return nil
	})
	return has, err
}

// begin begins an upload, and returns where it goes. Transient errors are retried if again
// is set.
func (p *Pusher) begin(ctx context.Context, again bool) (to *url.URL, err error) {
	err = p.ask(ctx, request{method: http.MethodPost, path: p.uploads(), want: []int{http.StatusAccepted}}, again, func(resp *http.Response) error {
		to, err = p.hop.location(resp)
		return err
	})
	return to, err
}

func (p *Pusher) uploads() string { return "/" + p.repo.ref.Repo + "/blobs/uploads/" }

// location is where a response says that an upload goes. That is the registry's choice,
// as a redirect is, but what is sent is no less confidential than on the way to itself.
func (h *hop) location(resp *http.Response) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil {
		return nil, fmt.Errorf("%w: it does not say where to send the upload", ErrProtocol)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("%w: an upload cannot be sent to %q", ErrProtocol, clean(u.Redacted()))
	}
	if err := h.checkTarget(u); err != nil {
		return nil, err
	}
	u.Fragment = ""
	return u, nil
}

// checkTarget checks where the host has content sent.
func (h *hop) checkTarget(u *url.URL) error {
	if u.Scheme != "https" && h.base.Scheme == "https" {
		return fmt.Errorf("%w: it would have the image sent to %s without encryption", ErrProtocol, clean(u.Host))
	}
	if origin(u) == origin(h.base) {
		return nil
	}
	if err := h.reach.checkURL(u); err != nil {
		return fmt.Errorf("send the image to %s: %w", clean(u.Host), err)
	}
	return nil
}

// checkResent checks a redirect of a request that changes something: it must stay one.
func (h *hop) checkResent(req, first *http.Request) error {
	if first.Method == http.MethodGet || first.Method == http.MethodHead {
		return nil
	}
	if req.Method != first.Method {
		return fmt.Errorf("%w: redirect that makes %s of %s", ErrProtocol, req.Method, first.Method)
	}
	return h.checkTarget(req.URL)
}

// upload sends a blob. After an error nothing of it stays in the registry, as far as that
// can be told.
func (p *Pusher) upload(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	to, err := p.begin(ctx, false)
	if err != nil {
		return err
	}

	whole := *to
	query := whole.Query()
	query.Set("digest", desc.Digest.String())
	whole.RawQuery = query.Encode()
	err = p.ask(ctx, request{
		method: http.MethodPut, path: p.uploads(), url: &whole,
		header:  http.Header{"Content-Type": {"application/octet-stream"}},
		want:    []int{http.StatusCreated, http.StatusNoContent},
		content: p.content(desc, open),
	}, false, func(resp *http.Response) error { return stored(resp, desc.Digest) })
	if err != nil {
		p.giveUp(ctx, to)
	}
	return err
}

// giveUp tells the registry that an upload is not coming. One that is not told so forgets
// it some day.
func (p *Pusher) giveUp(ctx context.Context, to *url.URL) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpTime)
	defer cancel()
	resp, err := p.hop.once(ctx, request{method: http.MethodDelete, url: to}, p.repo.agent)
	if err == nil {
		drain(resp)
	}
}

// Manifest sends the manifest or index that desc describes and open reads. By digest it
// is sent under its digest only, otherwise under what the reference says.
func (p *Pusher) Manifest(ctx context.Context, desc ocispec.Descriptor, byDigest bool, open func() (io.ReadCloser, error)) error {
	id := p.repo.ref.identifier()
	if byDigest {
		id = desc.Digest.String()
	}
	return p.ask(ctx, request{
		method: http.MethodPut, path: "/" + p.repo.ref.Repo + "/manifests/" + id,
		header:  http.Header{"Content-Type": {desc.MediaType}},
		want:    []int{http.StatusCreated},
		content: p.content(desc, open),
	}, true, func(resp *http.Response) error { return stored(resp, desc.Digest) })
}

// stored checks what a registry says that it has stored, if it says so.
func stored(resp *http.Response, want digest.Digest) error {
	got := resp.Header.Get(storedDigest)
	if got == "" || digest.Digest(got).Algorithm() != want.Algorithm() || got == want.String() {
		return nil
	}
	return fmt.Errorf("%w: it has stored %s as %s", ErrProtocol, want, clean(got))
}

// ask asks the host. Transient errors are retried if again is set.
func (p *Pusher) ask(ctx context.Context, q request, again bool, take func(*http.Response) error) error {
	err := p.repo.ask(ctx, p.hop, q, again, func(_ *hop, resp *http.Response) error {
		defer drain(resp)
		return take(resp)
	})
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &HopError{URL: p.hop.base.String() + q.path, Err: err}
}
