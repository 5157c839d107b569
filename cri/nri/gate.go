package nri

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"
)

// gate bounds what plugins ask of the daemon, which the protocol's library does not:
// it reads as many requests as are sent, keeps each until it is answered, and neither
// refuses nor answers one that registers a plugin again.
type gate struct {
	// updates bounds the updates that are decoded and made at a time.
	updates chan struct{}
}

// maxUpdates is how many requests of all plugins for updates are made at a time.
// Others wait, before they are decoded.
const maxUpdates = 4

// maxRequests is how many requests of one plugin may be unanswered. Each has up to
// 4 MiB. A plugin with more is not listened to any more, and its requests end; it is
// asked about containers as before.
const maxRequests = 16

func newGate() *gate { return &gate{updates: make(chan struct{}, maxUpdates)} }

// options are those of the server that each plugin has in the library.
func (g *gate) options() []ttrpc.ServerOpt {
	return []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(g.intercept), ttrpc.WithServerHandshaker(g)}
}

// intercept makes a request wait for its turn.
func (g *gate) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	if !strings.HasSuffix(info.FullMethod, "/UpdateContainers") {
		return method(ctx, unmarshal)
	}
	select {
	case g.updates <- struct{}{}:
		defer func() { <-g.updates }()
		return method(ctx, unmarshal)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Handshake implements [ttrpc.Handshaker].
func (g *gate) Handshake(_ context.Context, c net.Conn) (net.Conn, any, error) {
	return &watched{Conn: c, from: bufio.NewReader(c)}, nil, nil
}

// watched is a plugin's connection. It passes one request after the other on, and
// ends at one that a plugin may not make.
type watched struct {
	net.Conn
	// Used by the one reader: the rest of the present request, and whether the plugin
	// has registered.
	from       *bufio.Reader
	rest       []byte
	registered bool

	mu         sync.Mutex
	out        frames // guarded by mu
	unanswered int    // guarded by mu
}

// Read implements [net.Conn]. After an error other than that of a lost connection the
// library would let the requests go on that it has begun.
func (w *watched) Read(p []byte) (int, error) {
	if len(w.rest) == 0 {
		request, err := readFrame(w.from)
		if err == nil {
			err = w.judge(request)
		}
		switch {
		case errors.Is(err, io.EOF):
			return 0, err
		case err != nil:
			klog.InfoS("Plugin is not listened to any more", "err", err)
			return 0, io.ErrUnexpectedEOF
		}
		w.rest = request
	}

	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

// judge refuses a request beyond the limit, and one that registers the plugin again:
// it could take another's name, which the library reads meanwhile.
func (w *watched) judge(frame []byte) error {
	w.mu.Lock()
	w.unanswered++
	over := w.unanswered > maxRequests
	w.mu.Unlock()
	if over {
		return fmt.Errorf("%w: it has more than %d unanswered requests", ErrTooMany, maxRequests)
	}

	var r ttrpc.Request
	if err := proto.Unmarshal(frame[headerSize:], &r); err != nil {
		return fmt.Errorf("decode a request: %w", err)
	}
	if r.GetMethod() != "RegisterPlugin" {
		return nil
	}
	if w.registered {
		return fmt.Errorf("%w: it registers again", ErrTooMany)
	}
	w.registered = true
	return nil
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	w.unanswered -= w.out.count(p)
	w.mu.Unlock()
	return w.Conn.Write(p)
}

// headerSize is that of a message's header, which begins with the size of what
// follows, at most maxMessage.
const headerSize, maxMessage = 10, 4 << 20

// readFrame reads a message with its header.
func readFrame(from *bufio.Reader) ([]byte, error) {
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxMessage {
		return nil, fmt.Errorf("%w: a message of %d bytes, at most %d", ErrTooMany, size, maxMessage)
	}

	frame := make([]byte, headerSize+size)
	copy(frame, head)
	if _, err := io.ReadFull(from, frame[headerSize:]); err != nil {
		return nil, err
	}
	return frame, nil
}

// frames counts the messages in a stream of bytes.
type frames struct {
	header []byte
	body   uint64 // bytes of the present message that are still to come
}

// count returns how many messages have begun in the next part of the stream.
func (f *frames) count(p []byte) (begun int) {
	for len(p) > 0 {
		if f.body > 0 {
			n := min(f.body, uint64(len(p)))
			f.body -= n
			p = p[n:]
			continue
		}

		n := min(headerSize-len(f.header), len(p))
		f.header = append(f.header, p[:n]...)
		p = p[n:]
		if len(f.header) == headerSize {
			f.body = uint64(binary.BigEndian.Uint32(f.header))
			f.header = f.header[:0]
			begun++
		}
	}
	return begun
}
