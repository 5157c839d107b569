package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	defaultProgressTimeout = 5 * time.Minute
	defaultDialTimeout     = 30 * time.Second
	tlsTimeout             = 15 * time.Second
	// headerTimeout is how long a registry may think before it answers.
	headerTimeout = time.Minute

	// answerTimeout is how long it may take in all until the last header of an
	// answer is here, over redirects.
	answerTimeout = 2 * time.Minute
	// documentTimeout is how long a manifest or configuration may take in all,
	// from its first byte on.
	documentTimeout = time.Minute
	// errorBodyTime is how long a registry may take to explain a refusal.
	errorBodyTime = 5 * time.Second

	maxRedirects  = 5
	maxHeaders    = 64 << 10
	maxErrorBody  = 8 << 10
	maxRetries    = 4
	firstBackoff  = 250 * time.Millisecond
	maxRetryAfter = 30 * time.Second
)

// Options of a [Client].
type Options struct {
	// ConfigDirs are folders with a folder for each registry that holds a
	// hosts.toml, the first having precedence.
	ConfigDirs []string
	// ProgressTimeout ends a download in which no byte arrives for so long;
	// 0 means five minutes.
	ProgressTimeout time.Duration
	// UserAgent is what registries see in their logs.
	UserAgent string
}

// Client reads from registries. It holds no connection between pulls.
type Client struct{ opts Options }

// New returns a client.
func New(opts Options) *Client {
	if opts.ProgressTimeout <= 0 {
		opts.ProgressTimeout = defaultProgressTimeout
	}
	return &Client{opts: opts}
}

// Repository is what a pull reads from: one repository, wherever its hosts are.
type Repository struct {
	ref                Reference
	hops               []*hop
	progress, document time.Duration
	agent              string
}

// Repository prepares to read ref's repository with the credentials in auth,
// nil for none. Close it when done.
func (c *Client) Repository(ref Reference, auth *Auth) (*Repository, error) {
	creds, err := credentialsFor(auth, ref.Host)
	if err != nil {
		return nil, err
	}
	eps, err := endpoints(c.opts.ConfigDirs, ref.Host)
	if err != nil {
		return nil, err
	}
	r := &Repository{ref: ref, progress: c.opts.ProgressTimeout, document: documentTimeout, agent: c.opts.UserAgent}
	for _, ep := range eps {
		r.hops = append(r.hops, newHop(ep, ref, creds))
	}
	return r, nil
}

// Close drops the connections.
func (r *Repository) Close() {
	for _, h := range r.hops {
		h.client.CloseIdleConnections()
	}
}

// Hosts lists the places that are asked, in order.
func (r *Repository) Hosts() []string {
	var list []string
	for _, h := range r.hops {
		list = append(list, h.base.String())
	}
	return list
}

// hop is one host of a repository, with what was learnt about it in a pull.
type hop struct {
	endpoint
	client *http.Client
	reach  *reach
	auth   authorizer
	query  string
	// down is set once the host could not be reached: it is not asked again
	// in this pull unless nobody else answers.
	down atomic.Bool
}

func newHop(ep endpoint, ref Reference, creds credentials) *hop {
	timeout := ep.dialTimeout
	if timeout <= 0 {
		timeout = defaultDialTimeout
	}
	h := &hop{endpoint: ep, reach: newReach(ep.base, timeout)}
	tr := &http.Transport{
		Proxy:                  h.reach.proxy,
		DialContext:            h.reach.dial,
		TLSClientConfig:        ep.tls,
		TLSHandshakeTimeout:    tlsTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		MaxResponseHeaderBytes: maxHeaders,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        30 * time.Second,
		ForceAttemptHTTP2:      true,
		// A layer is compressed already, and its digest is of those bytes.
		DisableCompression: true,
		ReadBufferSize:     64 << 10,
	}
	h.client = &http.Client{Transport: tr, CheckRedirect: h.checkRedirect}
	h.auth = authorizer{transport: tr, base: ep.base, scope: "repository:" + ref.Repo + ":pull"}
	// Mirrors get credentials only if they are the named registry after all.
	if ep.upstream || canonicalHost(ep.base.Host) == canonicalHost(ref.Host) {
		h.auth.creds = creds
	}
	if canonicalHost(ep.base.Host) != canonicalHost(ref.Host) {
		h.query = url.Values{"ns": {ref.Host}}.Encode()
	}
	return h
}

// checkRedirect takes everything that is meant for this host alone out of a
// request that goes on to another.
func (h *hop) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("%w: more than %d redirects", ErrProtocol, maxRedirects)
	}
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: redirect to scheme %q", ErrProtocol, req.URL.Scheme)
	}
	if req.URL.Host == h.base.Host && req.URL.Scheme == h.base.Scheme {
		return nil
	}
	if err := h.reach.checkURL(req.URL); err != nil {
		return fmt.Errorf("redirect to %s: %w", clean(req.URL.Host), err)
	}
	req.Header.Del("Authorization")
	req.Header.Del("Cookie")
	for name := range h.header {
		req.Header.Del(name)
	}
	return nil
}

// request is what is asked of each host in turn.
type request struct {
	method, path string
	header       http.Header
	// byTag means that the answer decides what a tag is.
	byTag bool
	want  []int
}

// do asks the hosts until one answers as wanted. The caller closes the body.
func (r *Repository) do(ctx context.Context, q request) (*http.Response, error) {
	var asked, postponed []*hop
	for _, h := range r.hops {
		switch {
		case q.byTag && !h.resolve, !q.byTag && !h.pull:
		case h.down.Load():
			postponed = append(postponed, h)
		default:
			asked = append(asked, h)
		}
	}
	asked = append(asked, postponed...)
	var failed hopErrors
	for i, h := range asked {
		resp, err := h.do(ctx, q, r.agent, i == len(asked)-1)
		if err == nil {
			return resp, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		failed = append(failed, &HopError{URL: h.base.String() + q.path, Err: err})
	}
	if len(failed) == 0 {
		return nil, fmt.Errorf("%w: no configured host may be asked for %s", ErrConfig, q.path)
	}
	return nil, failed
}

// do asks one host. Only the last one gets patience: while there is another
// to try, a busy host is passed over.
func (h *hop) do(ctx context.Context, q request, agent string, last bool) (*http.Response, error) {
	backoff := firstBackoff
	for attempt := 1; ; attempt++ {
		resp, err := h.once(ctx, q, agent)
		if err != nil {
			err = transportError(ctx, err)
			h.down.Store(ctx.Err() == nil)
			return nil, err
		}
		for _, code := range q.want {
			if resp.StatusCode == code {
				h.down.Store(false)
				return resp, nil
			}
		}
		err = readStatus(resp)
		wait, retry := retryAfter(resp, backoff)
		if !retry || !last || attempt == maxRetries {
			return nil, err
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		backoff *= 2
	}
}

// once sends the request, and once more with authorization if that is asked for.
func (h *hop) once(ctx context.Context, q request, agent string) (*http.Response, error) {
	resp, err := h.send(ctx, q, agent)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || resp.Request.URL.Host != h.base.Host {
		return resp, err
	}
	retry, err := h.auth.challenged(ctx, resp)
	if err != nil {
		drain(resp)
		return nil, err
	}
	if !retry {
		return resp, nil
	}
	drain(resp)
	return h.send(ctx, q, agent)
}

func (h *hop) send(ctx context.Context, q request, agent string) (*http.Response, error) {
	u := *h.base
	u.Path += q.path
	u.RawQuery = h.query
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, q.method, u.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for _, from := range []http.Header{q.header, h.header} {
		for name, values := range from {
			req.Header[name] = append([]string(nil), values...)
		}
	}
	if agent != "" {
		req.Header.Set("User-Agent", agent)
	}
	h.auth.authorize(req)
	timer := time.AfterFunc(answerTimeout, func() {
		cancel(fmt.Errorf("%w: no answer after %s", ErrUnavailable, answerTimeout))
	})
	resp, err := h.client.Do(req)
	timer.Stop()
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &requestBody{resp.Body, cancel}
	return resp, nil
}

// requestBody ends its request's context when it is closed.
type requestBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

// Close ends the request.
func (b *requestBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

// readStatus makes an error of an unwanted answer and closes it.
func readStatus(resp *http.Response) error {
	body := newWatchedBody(resp.Request.Context(), resp.Body, errorBodyTime, errorBodyTime, nil)
	defer body.Close()
	text, _ := io.ReadAll(io.LimitReader(body, maxErrorBody))
	return &statusError{code: resp.StatusCode, detail: errorDetail(text)}
}

func drain(resp *http.Response) {
	body := newWatchedBody(resp.Request.Context(), resp.Body, errorBodyTime, errorBodyTime, nil)
	defer body.Close()
	_, _ = io.CopyN(io.Discard, body, maxErrorBody)
}

// retryAfter tells whether the server may answer differently soon, and when.
func retryAfter(resp *http.Response, backoff time.Duration) (time.Duration, bool) {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusRequestTimeout:
	default:
		return 0, false
	}
	v := resp.Header.Get("Retry-After")
	if v == "" {
		return backoff, true
	}
	wait := backoff
	if n, err := strconv.Atoi(strings.TrimSpace(v)); err == nil && n >= 0 {
		wait = time.Duration(min(n, 1<<20)) * time.Second
	} else if at, err := http.ParseTime(v); err == nil {
		wait = max(time.Until(at), 0)
	}
	// Who asks for more patience than that is better asked again by kubelet.
	return wait, wait <= maxRetryAfter
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
