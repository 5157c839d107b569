package registry

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// pingTime bounds the question to one host.
const pingTime = 10 * time.Second

// Ping is whether a host answers that is asked for a registry's images.
type Ping struct {
	URL string
	// Upstream is the registry itself, others are mirrors.
	Upstream bool
	Err      error
}

// Ping asks each host of a registry, mirrors first, whether it speaks the protocol.
// That it demands authorization is an answer; there are no credentials but the headers
// of its hosts.toml.
func (c *Client) Ping(ctx context.Context, host string) ([]Ping, error) {
	ref, err := ParseReference(host + "/ping/ping")
	if err != nil {
		return nil, err
	}
	r, err := c.Repository(ref, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()

	var list []Ping
	for _, h := range r.hops {
		list = append(list, Ping{h.base.String(), h.upstream, h.ping(ctx, c.opts.UserAgent)})
	}
	return list, nil
}

// ping asks one host.
func (h *hop) ping(ctx context.Context, agent string) error {
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	resp, err := h.send(ctx, request{method: http.MethodGet, path: "/", header: http.Header{"Accept": {"*/*"}}}, agent)
	if err != nil {
		return transportError(ctx, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusUnauthorized, http.StatusForbidden:
		return nil
	}
	return fmt.Errorf("%w: it answers %s", ErrProtocol, clean(resp.Status))
}
