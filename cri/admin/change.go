package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"crisp/cri/pod"
)

// Done is the answer to a request that changes something: what it made, or why it failed.
type Done struct {
	// ID and Name are those of the pod or image that was made, if one was.
	ID    string `json:"id,omitempty"`
	Name  string `json:"name,omitempty"`
	Error string `json:"error,omitempty"`
}

// done is the answer to a request that has made d, unless it failed.
func done(d Done, err error) Done {
	if err != nil {
		return Done{Error: err.Error()}
	}
	return d
}

// Change makes a request that changes something. An error is one of the connection.
func (c *Client) Change(ctx context.Context, method, path string) (Done, error) {
	return c.ChangeBy(ctx, method, path, nil)
}

// ChangeBy is [Client.Change] with a body, nil for none.
func (c *Client) ChangeBy(ctx context.Context, method, path string, content io.Reader) (d Done, err error) {
	answer, err := c.Send(ctx, method, path, content)
	if err != nil {
		return d, err
	}
	defer answer.Close()
	if err := json.NewDecoder(answer).Decode(&d); err != nil {
		return d, fmt.Errorf("read the answer of the daemon on %s: %w", c.socket, err)
	}
	return d, nil
}

// withPods answers a request that needs the pods.
func (s *Server) withPods(answer func(http.ResponseWriter, *http.Request, *pod.Manager)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		m := s.pods.Load()
		if m == nil {
			http.Error(w, "the daemon is starting, and does not know yet what pods there are", http.StatusServiceUnavailable)
			return
		}
		answer(w, r, m)
	}
}
