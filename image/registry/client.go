package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"crisp/runtime/span"
)

const (
	defaultProgressTimeout = 5 * time.Minute
	defaultDialTimeout     = 30 * time.Second
	tlsTimeout             = 15 * time.Second
	// headerTimeout bounds the time until a response to one request begins.
	headerTimeout = time.Minute

	// responseTimeout bounds the time until all headers of a response have
	// arrived, redirects included.
	responseTimeout = 2 * time.Minute
	// documentTimeout bounds the transfer of a manifest or configuration, from
	// its first byte on.
	documentTimeout = time.Minute
	// errorBodyTime bounds the transfer of an error's explanation.
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
	// ConfigDirs are directories with a directory for each registry that holds a
	// hosts.toml, the first having precedence.
	ConfigDirs []string
	// ProgressTimeout ends a download in which no byte arrives for so long; 0
	// means five minutes.
	ProgressTimeout time.Duration
	// UserAgent is the User-Agent header of requests.
	UserAgent string
}

// Client reads from registries. It keeps no connections between pulls.
type Client struct{ opts Options }

// New returns a client.
func New(opts Options) *Client {
	if opts.ProgressTimeout <= 0 {
		opts.ProgressTimeout = defaultProgressTimeout
	}
	return &Client{opts: opts}
}

// Repository is one repository, on all hosts that may serve it.
type Repository struct {
	ref                Reference
	hops               []*hop
	progress, document time.Duration
	agent              string
	asks               func(host string) (answered func(error))
}

// Observe has f called with each host before that is asked, and what f returns once it
// has answered, or has failed to. Both must not block. It must be called before any
// request is made.
func (r *Repository) Observe(f func(host string) (answered func(error))) { r.asks = f }

// plan returns ref's repository without hosts, those that are configured for it, and the
// credentials for the one that ref names.
func (c *Client) plan(ref Reference, auth *Auth) (r *Repository, eps []endpoint, creds credentials, err error) {
	if creds, err = credentialsFor(auth, ref.Host); err != nil {
		return nil, nil, creds, err
	}
	if eps, err = endpoints(c.opts.ConfigDirs, ref.Host); err != nil {
		return nil, nil, creds, err
	}
	return &Repository{ref: ref, progress: c.opts.ProgressTimeout, document: documentTimeout, agent: c.opts.UserAgent}, eps, creds, nil
}

// Repository returns ref's repository, to be read with the credentials in auth,
// nil for none. Close it when done.
func (c *Client) Repository(ref Reference, auth *Auth) (*Repository, error) {
	r, eps, creds, err := c.plan(ref, auth)
	if err != nil {
		return nil, err
	}
	for _, ep := range eps {
		r.hops = append(r.hops, newHop(ep, ref, creds, "pull", headerTimeout))
	}
	return r, nil
}

// Close closes idle connections.
func (r *Repository) Close() {
	for _, h := range r.hops {
		h.client.CloseIdleConnections()
	}
}

// Hosts lists the URLs of all hosts, in the order in which they are asked.
func (r *Repository) Hosts() []string {
	var list []string
	for _, h := range r.hops {
		list = append(list, h.base.String())
	}
	return list
}

// hop is one host of a repository, with what a pull has learned about it.
type hop struct {
	endpoint
	client *http.Client
	reach  *reach
	auth   *authorizer
	// named is the registry in the reference, and creds the credentials for it.
	named string
	creds credentials
	query string

	mu sync.Mutex
	// others answer the challenges of hosts that redirects point to, by server.
	others map[string]*authorizer // guarded by mu

	// down is set once the host could not be reached: in this pull it is then
	// asked last.
	down atomic.Bool
}

// newHop is a host on which a client may do what actions lists, as in a token's scope, and
// whose responses begin in the time of wait, 0 for any.
func newHop(ep endpoint, ref Reference, creds credentials, actions string, wait time.Duration) *hop {
	timeout := ep.dialTimeout
	if timeout <= 0 {
		timeout = defaultDialTimeout
	}

	h := &hop{endpoint: ep, reach: newReach(ep.base, timeout), named: ref.Host, creds: creds, others: map[string]*authorizer{}}
	tr := &http.Transport{
		Proxy:                  h.reach.proxy,
		DialContext:            h.reach.dial,
		TLSClientConfig:        ep.tls,
		TLSHandshakeTimeout:    tlsTimeout,
		ResponseHeaderTimeout:  wait,
		MaxResponseHeaderBytes: maxHeaders,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        30 * time.Second,
		ForceAttemptHTTP2:      true,
		// Layers are compressed already, and digests are over those bytes.
		DisableCompression: true,
		ReadBufferSize:     64 << 10,
	}

	h.client = &http.Client{Transport: tr, CheckRedirect: h.checkRedirect}
	h.auth = &authorizer{transport: tr, base: ep.base, scope: "repository:" + ref.Repo + ":" + actions}

	// A mirror gets credentials only if it is in fact the named registry.
	if ep.upstream || canonicalHost(ep.base.Host) == canonicalHost(ref.Host) {
		h.auth.creds = creds
	}
	if canonicalHost(ep.base.Host) != canonicalHost(ref.Host) {
		h.query = url.Values{"ns": {ref.Host}}.Encode()
	}

	return h
}

// checkRedirect removes everything that is meant for this host alone from a
// request that is redirected to another, and adds that one's authorization.
func (h *hop) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("%w: more than %d redirects", ErrProtocol, maxRedirects)
	}
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: redirect to scheme %q", ErrProtocol, req.URL.Scheme)
	}
	if err := h.checkResent(req, via[0]); err != nil {
		return err
	}

	req.Header.Del("Authorization")
	if origin(req.URL) == origin(h.base) {
		// Credentials for HTTPS are not sent over plain HTTP.
		if req.URL.Scheme == "https" || h.base.Scheme == "http" {
			h.auth.authorize(req)
		}
		return nil
	}

	if err := h.reach.checkURL(req.URL); err != nil {
		return fmt.Errorf("redirect to %s: %w", clean(req.URL.Host), err)
	}

	req.Header.Del("Cookie")
	for name := range h.header {
		req.Header.Del(name)
	}

	if other := h.other(req.URL); other != nil {
		other.authorize(req)
	}

	return nil
}

// authorizerOf returns the authorizer for the host at u, this one or the target of
// a redirect, which only gets credentials if it is the named registry over HTTPS.
// It returns nil if no authorization may be sent, or for one host too many.
func (h *hop) authorizerOf(u *url.URL) *authorizer {
	if origin(u) == origin(h.base) {
		if u.Scheme == "http" && h.base.Scheme == "https" {
			return nil
		}
		return h.auth
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	at := serverOf(u)
	if h.others[at] == nil && len(h.others) < maxRedirects {
		a := &authorizer{transport: h.auth.transport, base: &url.URL{Scheme: u.Scheme, Host: u.Host}}
		if u.Scheme == "https" && canonicalHost(u.Host) == canonicalHost(h.named) {
			a.creds = h.creds
		}
		h.others[at] = a
	}

	return h.others[at]
}

// origin returns the host of a URL, with its port unless it is the default one.
func origin(u *url.URL) string {
	host := strings.ToLower(u.Host)
	return strings.TrimSuffix(host, ":"+map[string]string{"http": "80", "https": "443"}[u.Scheme])
}

func serverOf(u *url.URL) string { return u.Scheme + "://" + origin(u) }

// request is what is sent to each host in turn.
type request struct {
	method, path string
	header       http.Header
	// byTag means that the response determines the digest of a tag.
	byTag bool
	want  []int // status codes
	// url is where the host has said to send the request, nil for path.
	url *url.URL
	// content is what is sent, nil for nothing.
	content *content
}

// taker consumes a response and closes its body.
type taker func(*hop, *http.Response) error

// each asks the hosts in turn, until one responds as wanted and take succeeds.
// Hosts in refused are not asked.
func (r *Repository) each(ctx context.Context, q request, refused map[*hop]bool, take taker) error {
	asked := r.order(q, refused)
	var failed hopErrors
	for i, h := range asked {
		err := r.ask(ctx, h, q, i == len(asked)-1, take)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failed = append(failed, &HopError{URL: h.base.String() + q.path, Err: err})
	}
	if len(failed) == 0 {
		return fmt.Errorf("%w: no configured host has the capability to serve %s", ErrConfig, q.path)
	}

	return failed
}

// ask asks one host, and tells those who watch.
func (r *Repository) ask(ctx context.Context, h *hop, q request, last bool, take taker) error {
	ctx, end := span.Start(ctx, "ask registry", "host", h.base.Host, "path", q.path)
	answered := func(error) {}
	if r.asks != nil {
		answered = r.asks(h.base.Host)
	}
	err := h.ask(ctx, q, r.agent, last, take)
	answered(err)
	end(err)
	return err
}

// order lists the hosts that may be asked, with those that are down last.
func (r *Repository) order(q request, refused map[*hop]bool) []*hop {
	var asked, postponed []*hop
	for _, h := range r.hops {
		switch {
		case q.byTag && !h.resolve, !q.byTag && !h.pull, refused[h]:
		case h.down.Load():
			postponed = append(postponed, h)
		default:
			asked = append(asked, h)
		}
	}
	return append(asked, postponed...)
}

// ask asks one host. Only the last one is retried: while there is another to try,
// a host that is busy or disconnects is skipped.
func (h *hop) ask(ctx context.Context, q request, agent string, last bool, take taker) error {
	backoff := firstBackoff
	for attempt := 1; ; attempt++ {
		wait, err := h.attempt(ctx, q, agent, take)
		if err == nil {
			h.down.Store(false)
			return nil
		}

		if wait < 0 || !last || attempt == maxRetries {
			return err
		}
		if err := sleep(ctx, max(wait, backoff)); err != nil {
			return err
		}
		backoff *= 2
	}
}

// attempt asks one host once. After a transient error it returns the time to wait
// before the next attempt, after any other error a negative one.
func (h *hop) attempt(ctx context.Context, q request, agent string, take taker) (wait time.Duration, err error) {
	resp, err := h.once(ctx, q, agent)
	if err != nil {
		err = transportError(ctx, err)
		h.down.Store(ctx.Err() == nil)
		if dropped(err) {
			return 0, err
		}
		return -1, err
	}

	if !slices.Contains(q.want, resp.StatusCode) {
		err = readStatus(resp)
		if wait, again := retryAfter(resp, 0); again {
			return wait, err
		}
		return -1, err
	}

	err = take(h, resp)
	switch {
	case err == nil:
		return 0, nil
	case errors.Is(err, errStalled):
		h.down.Store(ctx.Err() == nil) // it would stall the next request too
	case dropped(err):
		return 0, err
	}

	return -1, err
}

// dropped reports whether a connection was lost, which may be transient.
func dropped(err error) bool {
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}

	// The error types of HTTP/2 are not exported by net/http.
	text := err.Error()
	for _, known := range []string{"http2: server sent GOAWAY", "stream error: ", "server closed idle connection"} {
		if strings.Contains(text, known) {
			return true
		}
	}
	return false
}

// once sends the request, and repeats it with authorization each time that a host
// on the way demands it.
func (h *hop) once(ctx context.Context, q request, agent string) (*http.Response, error) {
	for challenges := 0; ; challenges++ {
		resp, err := h.send(ctx, q, agent)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || challenges == maxRedirects {
			return resp, err
		}

		a := h.authorizerOf(resp.Request.URL)
		if a == nil {
			return resp, nil
		}

		retry, err := a.challenged(ctx, resp)
		if err != nil {
			drain(resp)
			return nil, err
		}

		if !retry {
			return resp, nil
		}
		drain(resp)
	}
}

// send sends the request and returns the response, whatever its status.
func (h *hop) send(ctx context.Context, q request, agent string) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := h.newRequest(ctx, q)
	if err != nil {
		cancel(nil)
		return nil, err
	}

	if agent != "" {
		req.Header.Set("User-Agent", agent)
	}

	// Digests are over the bytes without a content coding.
	req.Header.Set("Accept-Encoding", "identity")

	limit := responseTimeout
	if q.content != nil {
		limit = q.content.limit
	}
	w := newWait(limit, func() { cancel(fmt.Errorf("%w: no response after %s", ErrUnavailable, limit)) })
	if err := q.content.attach(req, w); err != nil {
		w.end()
		cancel(nil)
		return nil, err
	}
	resp, err := h.client.Do(req)
	w.end()
	if err != nil {
		cancel(nil)
		return nil, err
	}

	resp.Body = &requestBody{resp.Body, cancel}
	return resp, nil
}

// newRequest makes a request, with what the host that it goes to may get.
func (h *hop) newRequest(ctx context.Context, q request) (*http.Request, error) {
	u := *h.base
	u.Path += q.path
	u.RawQuery = h.query
	if q.url != nil {
		u = *q.url
	}
	req, err := http.NewRequestWithContext(ctx, q.method, u.String(), nil)
	if err != nil {
		return nil, err
	}

	sources := []http.Header{q.header}
	if h.isBase(&u) {
		sources = append(sources, h.header)
	}
	for _, from := range sources {
		for name, values := range from {
			req.Header[name] = append([]string(nil), values...)
		}
	}

	if h.isBase(&u) {
		h.auth.authorize(req)
	} else if other := h.other(&u); other != nil {
		other.authorize(req)
	}
	return req, nil
}

// isBase reports whether a URL is one of the host itself, and no less confidential.
func (h *hop) isBase(u *url.URL) bool {
	return origin(u) == origin(h.base) && (u.Scheme == "https" || h.base.Scheme == "http")
}

// other is what is known of the authorization for a host that this one has named.
func (h *hop) other(u *url.URL) *authorizer {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.others[serverOf(u)]
}

// requestBody cancels its request's context when it is closed.
type requestBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

// Close ends the request.
func (b *requestBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

// readStatus turns an unwanted response into an error and closes it.
func readStatus(resp *http.Response) error {
	body := newWatchedBody(resp.Request.Context(), resp.Body, errorBodyTime, errorBodyTime, nil)
	defer body.Close()
	text, _ := io.ReadAll(io.LimitReader(body, maxErrorBody))
	return &statusError{code: resp.StatusCode, detail: errorDetail(text)}
}

// drain reads a short body to its end, so that the connection can be reused.
func drain(resp *http.Response) {
	body := newWatchedBody(resp.Request.Context(), resp.Body, errorBodyTime, errorBodyTime, nil)
	defer body.Close()
	_, _ = io.CopyN(io.Discard, body, maxErrorBody)
}

// retryAfter reports whether the request should be retried soon, and when.
func retryAfter(resp *http.Response, backoff time.Duration) (time.Duration, bool) {
	if !passes(resp.StatusCode) {
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

	// For longer waits kubelet's own back-off is more suitable.
	return wait, wait <= maxRetryAfter
}

// passes reports whether a status is of something that passes.
func passes(code int) bool {
	switch code {
	case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusRequestTimeout:
		return true
	}
	return false
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
