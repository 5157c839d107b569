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
// has got everything. Closing with input unread would make the kernel reset
// the connection, and the client could lose the end of the output and the exit
// code. One that is slow, or behind a slow proxy, has as long as it takes, and
// stallTime in which it takes nothing, whatever it goes on sending.
const (
	drainTime = time.Second
	stallTime = 2 * time.Minute
)

// listener keeps track of the connections it accepted. The HTTP server
// forgets them once they are taken over by a streaming protocol.
type listener struct {
	net.Listener
	// helloTime is how long a connection may take to show a valid token.
	helloTime time.Duration

	mu        sync.Mutex
	closed    bool
	open      map[*conn]struct{}
	draining  map[*conn]struct{} // closed, and not yet released
	strangers strangers
	closing   sync.WaitGroup
}

func newListener(inner net.Listener, helloTime time.Duration) *listener {
	return &listener{
		Listener: accept.Patient(inner), helloTime: helloTime, open: map[*conn]struct{}{}, draining: map[*conn]struct{}{},
		strangers: strangers{byAddr: map[netip.Addr][]*conn{}},
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

// hangUp ends the contexts of all requests; their connections stay for a last
// word.
func (l *listener) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.open {
		c.stopping.Store(true)
		c.lost()
	}
}

// closeAll cuts every connection.
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

	for _, c := range l.strangers.all() {
		l.strangers.remove(c)
		l.cut(c)
	}
}

// conn notices when its client goes away.
type conn struct {
	net.Conn
	listener *listener
	addr     netip.Addr
	since    time.Time   // when it became a stranger
	limit    *time.Timer // of its time as a stranger
	hijacked atomic.Bool
	stopping atomic.Bool // it is not the client that went away
	once     sync.Once
	gone     chan struct{}
}

// lost marks the connection as of no more use.
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

// Close ends the connection towards the client at once and releases it when
// the client has ended its side too, or soon. A stranger counts as one until
// then.
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
		if l.strangers.remove(c) {
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
		if l.strangers.remove(c) {
			c.limit.Stop()
		}
	})

	return nil
}

// drain reads until the client ends its side, or has got everything and stays
// silent, or takes nothing more.
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

// unsent is how much of what was written the client's kernel has not got.
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

// connState notes when a connection is taken over.
func connState(c net.Conn, state http.ConnState) {
	if own, ok := c.(*conn); ok && state == http.StateHijacked {
		own.hijacked.Store(true)
	}
}
