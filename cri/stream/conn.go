package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"crisp/cri/accept"
)

// drainTime is how long a closed connection is still read from once the client
// has got everything. Closing with input unread would make the kernel reset the
// connection, and the client could lose the end of the output and the exit
// code. A slow client, or one behind a slow proxy, has unlimited time, but is
// dropped if it reads nothing for stallTime, whatever it keeps sending.
const (
	drainTime = time.Second
	stallTime = 2 * time.Minute
)

// listener keeps track of the connections it accepted. The HTTP server
// forgets them once they are hijacked by a streaming protocol.
type listener struct {
	net.Listener
	// helloTime is how long a connection may take to present a valid token.
	helloTime time.Duration

	mu       sync.Mutex
	closed   bool
	open     map[*conn]struct{}
	draining map[*conn]struct{} // closed, and not yet released
	pending  pending
	closing  sync.WaitGroup
}

func newListener(inner net.Listener, helloTime time.Duration) *listener {
	return &listener{
		Listener: accept.Patient(inner), helloTime: helloTime, open: map[*conn]struct{}{}, draining: map[*conn]struct{}{},
		pending: pending{byAddr: map[netip.Addr][]*conn{}},
	}
}

func (l *listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, listener: l, addr: remoteAddr(inner), gone: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.Join(net.ErrClosed, inner.Close())
	}
	l.open[c] = struct{}{}
	l.receive(c)
	return c, nil
}

// hangUp ends the contexts of all requests; their connections stay open for a
// last message.
func (l *listener) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.open {
		c.stopping.Store(true)
		c.lost()
	}
}

// closeAll closes every connection.
func (l *listener) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.open {
		c.lost()
		c.Conn.Close()
	}

	clear(l.open)
	for c := range l.draining {
		c.Conn.Close()
	}

	for _, c := range l.pending.all() {
		l.pending.remove(c)
		l.cut(c)
	}
}

// conn detects that its client disconnected.
type conn struct {
	net.Conn
	listener *listener
	addr     netip.Addr
	since    time.Time   // when it became pending
	limit    *time.Timer // of its time as pending
	hijacked atomic.Bool
	stopping atomic.Bool // closed by the server, not the client
	once     sync.Once
	gone     chan struct{}
}

// lost marks the connection as unusable.
func (c *conn) lost() { c.once.Do(func() { close(c.gone) }) }

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	// The HTTP server interrupts its own reads by a deadline.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.lost()
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if accept.Broken(err) {
		c.lost()
	}
	return n, err
}

// Close shuts down the connection towards the client and releases it when the
// client has closed its side too, or soon after. A pending connection counts as
// one until then.
func (c *conn) Close() error {
	c.lost()
	l := c.listener
	l.mu.Lock()
	defer l.mu.Unlock()

	if _, ok := l.open[c]; !ok {
		return nil
	}
	delete(l.open, c)

	half, ok := c.Conn.(*net.TCPConn)
	if !ok || half.CloseWrite() != nil {
		if l.pending.remove(c) {
			c.limit.Stop()
		}
		return c.Conn.Close()
	}

	l.draining[c] = struct{}{}
	l.closing.Go(func() {
		c.drain(half)
		c.Conn.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.draining, c)
		if l.pending.remove(c) {
			c.limit.Stop()
		}
	})

	return nil
}

// drain reads until the client closes its side, or has received everything and
// stays silent, or stops reading.
func (c *conn) drain(half *net.TCPConn) {
	left, moved := unsent(half), time.Now()
	for {
		c.Conn.SetReadDeadline(time.Now().Add(drainTime))
		said, err := io.Copy(io.Discard, c.Conn)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}

		now := unsent(half)
		gotAll := now == 0 && left == 0
		if gotAll && said == 0 || time.Since(moved) > stallTime {
			return
		}

		if now != left {
			left, moved = now, time.Now()
		}
	}
}

// unsent is how many of the written bytes the client's kernel has not
// acknowledged.
func unsent(c *net.TCPConn) (n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	err = raw.Control(func(fd uintptr) {
		if queued, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
			n = queued
		}
	})
	if err != nil {
		return 0
	}
	return n
}

// watch returns a context that ends with the connection, or when cancel is
// called, which must happen. If the server stops, that is the cause.
func (c *conn) watch(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-c.gone:
			if c.stopping.Load() {
				cancel(ErrStopping)
			}
			cancel(nil)
		case <-ctx.Done():
		}
	}()

	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

func connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// connState records when a connection is hijacked.
func connState(c net.Conn, state http.ConnState) {
	if own, ok := c.(*conn); ok && state == http.StateHijacked {
		own.hijacked.Store(true)
	}
}
