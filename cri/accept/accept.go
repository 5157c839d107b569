// Package accept keeps servers running while the kernel is short of memory.
// Package net does not treat an accept that fails with out of memory as a
// temporary error, so a server stops: [Patient] retries. And when a write to a
// connection fails, package grpc ends the writing goroutine and relies on the
// reading one to notice and to close the connection. If memory was all that was
// missing, reads keep working and every call of that client hangs: [Sound]
// closes such a connection.
package accept

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// firstRetry and lastRetry are the shortest and the longest delay between two
// attempts.
const firstRetry, lastRetry = 5 * time.Millisecond, time.Second

// Patient wraps a listener so that Accept retries while memory for a connection
// is lacking.
func Patient(l net.Listener) net.Listener { return patient{l} }

type patient struct{ net.Listener }

func (l patient) Accept() (net.Conn, error) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		c, err := l.Listener.Accept()
		if !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ENOBUFS) {
			return c, err
		}
		time.Sleep(wait) // if the listener is closed meanwhile, the next Accept reports it
	}
}

// Sound wraps a listener so that its connections are closed when a write to
// them fails.
func Sound(l net.Listener) net.Listener { return sound{l} }

type sound struct{ net.Listener }

func (l sound) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return conn{c}, nil
}

type conn struct{ net.Conn }

func (c conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if Broken(err) {
		c.Close()
	}
	return n, err
}

// Broken reports whether a failed write leaves a connection unusable: part of
// the data may be missing from the stream.
func Broken(err error) bool {
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}
