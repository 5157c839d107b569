// Package portforward forwards a client's stream to a port inside a pod.
//
// The daemon itself connects, from within the pod's network namespace, without a
// helper program. Either direction may end before the other: its end is passed on
// as a half-close, and the other direction continues.
package portforward

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"crisp/network/netns"
)

const (
	// dialTimeout bounds the connect, which gets no response if a packet filter
	// in the pod drops it.
	dialTimeout = 10 * time.Second
	// linger is how long a client may stay connected without sending anything
	// after the pod's side has ended. TCP does not reveal whether the peer would
	// still read.
	linger = 10 * time.Second
	// resetGrace is how long after the end of a client's data a reset of its
	// stream may take to become visible.
	resetGrace = 200 * time.Millisecond
)

// Forward connects to a port on the pod's localhost and copies until both
// sides are done or ctx ends. A nil namespace is the host's.
func Forward(ctx context.Context, ns *os.File, port int, stream io.ReadWriteCloser) error {
	conn, err := Dial(ctx, ns, port)
	if err != nil {
		return err
	}
	Copy(ctx, stream, conn)
	return nil
}

// Dial connects to a TCP port on localhost inside a network namespace, first over
// IPv4 and then over IPv6. A nil namespace is the host's.
func Dial(ctx context.Context, ns *os.File, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("dial port %d: %w", port, ErrInvalidPort)
	}
	if ns == nil {
		return dialLocal(ctx, port)
	}

	var conn net.Conn
	err := netns.Do(ns, func() error {
		var err error
		conn, err = dialLocal(ctx, port)
		return err
	})
	return conn, err
}

// dialLocal relies on net.Dialer creating the socket for a literal address on the
// calling thread.
func dialLocal(ctx context.Context, port int) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err4 := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err4 == nil {
		return conn, nil
	}

	conn, err6 := dialer.DialContext(ctx, "tcp", net.JoinHostPort("::1", strconv.Itoa(port)))
	if err6 == nil {
		return conn, nil
	}

	return nil, fmt.Errorf("dial port %d: %w; %w", port, err4, err6)
}

// Copy copies between a client's stream and a connection until both directions
// have ended, and closes both. It returns no error: a broken connection only
// concerns this stream, while clients take an error for the failure of all their
// streams.
func Copy(ctx context.Context, stream io.ReadWriteCloser, conn net.Conn) {
	c := &copying{stream: stream, conn: conn, up: make(chan struct{}), down: make(chan struct{})}
	go func() {
		defer close(c.up)
		io.Copy(&counted{conn, &c.sent}, stream)
		closeWrite(conn)
	}()

	go func() {
		defer close(c.down)
		io.Copy(stream, conn)
		stream.Close()
	}()

	c.wait(ctx)
	c.abort()
	<-c.up
	<-c.down
}

// copying is a copy in progress. The channels are closed as each direction ends.
type copying struct {
	stream   io.ReadWriteCloser
	conn     net.Conn
	up, down chan struct{}
	sent     atomic.Int64 // bytes from the client written to the pod
}

// wait returns when both directions have ended, or waiting longer is pointless.
func (c *copying) wait(ctx context.Context) {
	select {
	case <-c.up:
		c.waitDown(ctx)
	case <-c.down:
		c.waitUp(ctx)
	case <-ctx.Done():
	}
}

// waitDown waits for the pod to finish its response, as long as it takes, unless
// the client has reset the stream: then the response is not read, and writes to a
// SPDY stream are dropped without an error.
func (c *copying) waitDown(ctx context.Context) {
	grace := time.NewTimer(resetGrace)
	defer grace.Stop()
	for {
		select {
		case <-c.down:
			return
		case <-ctx.Done():
			return
		case <-grace.C:
			if finished(c.stream) {
				return
			}
		}
	}
}

// waitUp waits for the client to finish, as long as it keeps sending.
func (c *copying) waitUp(ctx context.Context) {
	tick := time.NewTicker(linger)
	defer tick.Stop()
	for sent := c.sent.Load(); ; {
		select {
		case <-c.up:
			return
		case <-tick.C:
			now := c.sent.Load()
			if now == sent {
				return
			}
			sent = now
		case <-ctx.Done():
			return
		}
	}
}

// counted counts what is written to it.
type counted struct {
	io.Writer
	bytes *atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.bytes.Add(int64(n))
	return n, err
}

// abort unblocks both directions. Resetting a stream that is already closed for
// writing sends nothing.
func (c *copying) abort() {
	c.conn.Close()
	if r, ok := c.stream.(interface{ Reset() error }); ok {
		r.Reset()
		return
	}
	c.stream.Close()
}

// finished reports whether a stream accepts no more data; false if the stream does
// not know.
func finished(stream any) bool {
	f, ok := stream.(interface{ IsFinished() bool })
	return ok && f.IsFinished()
}

// closeWrite closes the sending half of a connection.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		return
	}
	conn.Close()
}
