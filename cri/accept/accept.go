// Package accept makes servers outlive a shortage of memory in the kernel.
//
// A failed accept for lack of memory is not temporary to package net, so that
// servers end. And when a write to a connection fails, package grpc ends the
// goroutine that writes and leaves it to the one that reads to close the
// connection, which assumes that it fails, too. It does not, if memory was all
// that was missing: then every call of that client waits for ever.
package accept

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// firstRetry and lastRetry are the first and the longest time between two attempts.
const firstRetry, lastRetry = 5 * time.Millisecond, time.Second

// Patient makes a listener try again when there is no memory for a connection.
func Patient(l net.Listener) net.Listener { return patient{l} }

type patient struct{ net.Listener }

func (l patient) Accept() (net.Conn, error) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		c, err := l.Listener.Accept()
		if !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ENOBUFS) {
			return c, err
		}
		time.Sleep(wait) // when it is closed meanwhile, the next error says so
	}
}

// Sound makes a listener's connections end when a write to them fails.
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

// Broken reports whether a failed write leaves a connection of no use: some of
// what was to be written may be missing in it.
func Broken(err error) bool {
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}
