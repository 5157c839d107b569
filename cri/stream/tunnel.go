package stream

import (
	"bufio"
	"net"
	"net/http"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// serveTunnel serves a session whose SPDY is carried in the messages of a
// WebSocket. kubelet opens such tunnels itself and connects by SPDY; crictl and
// other clients that talk to the runtime directly, as client-go does by
// default, open them to this server. The protocol's own code gets the same
// input as without one.
func serveTunnel(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	below := r.Context().Value(http.LocalAddrContextKey)
	addr, _ := below.(net.Addr)
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			for _, offered := range c.Protocol {
				if offered == portforward.WebsocketsSPDYTunnelingPortForwardV1 {
					c.Protocol = []string{offered}
					return nil
				}
			}
			return websocket.ErrBadWebSocketProtocol
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Method = http.MethodPost
			for _, name := range []string{wsstream.WebSocketProtocolHeader, "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Extensions"} {
				inner.Header.Del(name)
			}

			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.PortForwardV1Name)
			serve(&tunnelWriter{conn: tunnel{ws, addr}, header: http.Header{}}, inner)
		},
	}.ServeHTTP(w, r)
}

// isTunnel reports whether a request asks for a tunnel.
func isTunnel(r *http.Request) bool { return wsstream.IsWebSocketRequestWithTunnelingProtocol(r) }

// tunnel is the connection that a WebSocket carries. A WebSocket's own
// addresses are URLs, and may be nil.
type tunnel struct {
	*websocket.Conn
	addr net.Addr
}

func (t tunnel) LocalAddr() net.Addr  { return t.addr }
func (t tunnel) RemoteAddr() net.Addr { return t.addr }

// tunnelWriter responds to a request whose connection was already upgraded to
// another protocol. Any other response comes too late to be read: the client
// sees its connection closed.
type tunnelWriter struct {
	conn   net.Conn
	header http.Header
}

func (w *tunnelWriter) Header() http.Header       { return w.header }
func (*tunnelWriter) WriteHeader(int)             {}
func (*tunnelWriter) Write(p []byte) (int, error) { return len(p), nil }

func (w *tunnelWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.conn, bufio.NewReadWriter(bufio.NewReader(w.conn), bufio.NewWriter(w.conn)), nil
}
