package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// maxRefusal bounds what is read of a refusal, in bytes.
const maxRefusal = 1 << 10

// maxAnswer bounds an answer, in bytes: with thousands of pods it has some megabytes.
const maxAnswer = 256 << 20

// Client asks the daemon on a socket.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client, which connects with its first request.
func NewClient(socket string) *Client {
	return &Client{socket, http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Do makes a request, whose answer the caller closes. An error of the connection
// wraps that of the kernel.
func (c *Client) Do(ctx context.Context, method, path string) (io.ReadCloser, error) {
	return c.Send(ctx, method, path, nil)
}

// Send is [Client.Do] with a body, which is sent as it is read; nil for none.
func (c *Client) Send(ctx context.Context, method, path string, content io.Reader) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://crisp"+path, content)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon on %s: %w", c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, c.refusal(resp)
	}
	return resp.Body, nil
}

// refusal is the error of an answer that is none.
func (c *Client) refusal(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	return fmt.Errorf("ask the daemon on %s: %s: %s", c.socket, resp.Status, strings.TrimSpace(string(text)))
}

// Get decodes the answer to a request.
func (c *Client) Get(ctx context.Context, path string, into any) error {
	body, err := c.Do(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("read the answer of the daemon on %s: %w", c.socket, err)
	}
	return nil
}
