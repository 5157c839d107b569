package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/move"
	"crisp/cri/pod"
)

// upgrade is the protocol that a connection is used for, see package move.
const upgrade = "crisp-move"

// registerMoves adds the requests by which pods move. The connection then belongs to the
// conversation with the other node.
func (s *Server) registerMoves(mux *http.ServeMux) {
	mux.HandleFunc("POST "+MigratePath, s.withPods(func(w http.ResponseWriter, r *http.Request, m *pod.Manager) {
		limit, err := time.ParseDuration(r.FormValue("limit"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		o := pod.Migration{Node: r.FormValue("node"), Limit: limit, Address: r.FormValue("address") == "true", Settle: r.FormValue("settle") == "true"}
		s.converse(w, r, func(ctx context.Context, peer *move.Conn) error {
			report, err := m.Migrate(ctx, r.FormValue("pod"), o, peer)
			klog.InfoS("Migrated a pod", "pod", r.FormValue("pod"), "node", o.Node, "id", report.ID, "frozen", time.Duration(report.Frozen), "err", err)
			if err != nil {
				report.Error, report.Unsettled = err.Error(), errors.Is(err, pod.ErrUnsettled)
			}
			return peer.Report(report)
		})
	}))

	mux.HandleFunc("POST "+ReceivePath, s.withPods(func(w http.ResponseWriter, r *http.Request, m *pod.Manager) {
		s.converse(w, r, func(ctx context.Context, peer *move.Conn) error {
			err := m.Receive(ctx, peer)
			klog.InfoS("Received a pod", "err", err)
			return err
		})
	}))
}

// converse takes a connection over, and closes it in the end.
func (s *Server) converse(w http.ResponseWriter, r *http.Request, talk func(context.Context, *move.Conn) error) {
	if r.Header.Get("Upgrade") != upgrade {
		http.Error(w, "the request is for a connection with Upgrade: "+upgrade, http.StatusUpgradeRequired)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}

	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 %d Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", http.StatusSwitchingProtocols, upgrade); err != nil {
		klog.V(2).InfoS("Could not begin a conversation", "err", err)
		return
	}
	// What the client has said by now is in the buffer.
	peer := move.NewConn(hijacked{conn, buffered.Reader})
	if err := talk(r.Context(), peer); err != nil {
		klog.V(2).InfoS("A conversation with another node ended", "err", err)
	}
}

// hijacked reads what was buffered first.
type hijacked struct {
	net.Conn
	r *bufio.Reader
}

func (h hijacked) Read(p []byte) (int, error) { return h.r.Read(p) }

// Conversation is a connection to the daemon. Its ends can be closed one by one.
type Conversation struct {
	*net.UnixConn
	r *bufio.Reader
}

func (c *Conversation) Read(p []byte) (int, error) { return c.r.Read(p) }

// WriteTo is not the connection's, which would miss what is buffered.
func (c *Conversation) WriteTo(w io.Writer) (int64, error) { return c.r.WriteTo(w) }

// Converse makes a request whose connection is then used for a conversation. It is closed
// when ctx ends.
func (c *Client) Converse(ctx context.Context, path string) (*Conversation, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://crisp"+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", upgrade)

	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon on %s: %w", c.socket, err)
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("a socket that is none"), conn.Close())
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	buffered := bufio.NewReader(conn)
	err = r.Write(conn)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(buffered, r)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask the daemon on %s: %w", c.socket, err), conn.Close())
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, errors.Join(c.refusal(resp), resp.Body.Close(), conn.Close())
	}
	return &Conversation{unix, buffered}, nil
}
