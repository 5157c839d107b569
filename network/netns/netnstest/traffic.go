package netnstest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"crisp/network/netns"
)

// Protocols are those in which [Serve] and [Ask] talk.
func Protocols() []string { return []string{"tcp", "udp", "sctp"} }

// largest is enough for each answer.
const largest = 2000

// Serve answers on a port of a namespace with the client's address, until the test ends.
// A server with several addresses must name them: by UDP it would answer from the one that
// is nearest to the client.
func Serve(t testing.TB, ns *os.File, protocol string, addr netip.AddrPort) {
	t.Helper()
	var closer io.Closer
	var serve func()
	err := netns.Do(ns, func() (err error) {
		switch protocol {
		case "tcp":
			var l net.Listener
			l, err = net.Listen("tcp", listenAddr(addr))
			closer, serve = l, func() { serveStreams(l) }
		case "udp":
			var c net.PacketConn
			c, err = net.ListenPacket("udp", listenAddr(addr))
			closer, serve = c, func() { serveDatagrams(c) }
		default:
			closer, serve, err = serveSCTP(addr)
		}
		return err
	})
	if err != nil {
		t.Fatalf("serve %s on %s: %v", protocol, addr, err)
	}

	done := make(chan struct{})
	go func() {
		defer close(done)
		serve()
	}()
	t.Cleanup(func() {
		closer.Close()
		<-done
	})
}

// listenAddr is an address for package net: an unspecified one of IPv6 means both families.
func listenAddr(addr netip.AddrPort) string {
	if addr.Addr() == netip.IPv6Unspecified() {
		return fmt.Sprint(":", addr.Port())
	}
	return addr.String()
}

func serveStreams(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		io.WriteString(conn, hostOf(conn.RemoteAddr()))
		conn.Close()
	}
}

func serveDatagrams(c net.PacketConn) {
	buf := make([]byte, largest)
	for {
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		c.WriteTo([]byte(hostOf(from)), from)
	}
}

// hostOf is an address without port and zone.
func hostOf(addr net.Addr) string {
	p, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		ip, _ := netip.ParseAddr(addr.String())
		return ip.Unmap().WithZone("").String()
	}
	return p.Addr().Unmap().WithZone("").String()
}

// Ask asks a server from a namespace, and returns the client's address as the server saw
// it. It waits up to patience for the answer.
func Ask(from *os.File, protocol string, to netip.AddrPort, patience time.Duration) (string, error) {
	if protocol == "sctp" {
		return askSCTP(from, to, patience)
	}
	var conn net.Conn
	err := netns.Do(from, func() (err error) {
		conn, err = net.DialTimeout(protocol, to.String(), patience)
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()

	end := time.Now().Add(patience)
	conn.SetDeadline(end)
	if protocol == "tcp" {
		answer, err := io.ReadAll(conn)
		return string(answer), err
	}
	return exchange(conn, []byte("?"), end, func(answer []byte) (string, bool) { return string(answer), true })
}

// exchange sends a packet again and again until accept takes an answer.
func exchange(conn net.Conn, packet []byte, end time.Time, accept func([]byte) (string, bool)) (string, error) {
	const pause = 200 * time.Millisecond
	var last error
	buf := make([]byte, largest)
	for time.Now().Before(end) {
		if _, err := conn.Write(packet); err != nil {
			last = err
			time.Sleep(pause / 10)
			continue
		}

		conn.SetReadDeadline(time.Now().Add(min(pause, time.Until(end))))
		for {
			size, err := conn.Read(buf)
			if err != nil {
				last = err
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					time.Sleep(pause / 10)
				}
				break
			}
			if seen, ok := accept(buf[:size]); ok {
				return seen, nil
			}
		}
	}
	return "", last
}

// Throughput returns what one connection by TCP carries between namespaces, in bits per
// second without headers, after what passes at once.
func Throughput(t testing.TB, from, to *os.File, addr netip.Addr) float64 {
	t.Helper()
	var l net.Listener
	err := netns.Do(to, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	done := make(chan struct{})
	go func() {
		defer close(done)
		var conn net.Conn
		err := netns.Do(from, func() (err error) {
			conn, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
			return err
		})
		if err != nil {
			l.Close()
			return
		}
		defer conn.Close()
		for err == nil {
			_, err = conn.Write(make([]byte, 16<<10))
		}
	}()
	conn, err := l.Accept()
	if err != nil {
		<-done
		t.Fatal(err)
	}
	defer func() {
		conn.Close()
		<-done
	}()

	buf := make([]byte, 64<<10)
	read := func(d time.Duration) (total int) {
		for end := time.Now().Add(d); time.Now().Before(end); {
			conn.SetReadDeadline(end)
			size, _ := conn.Read(buf)
			total += size
		}
		return total
	}
	read(500 * time.Millisecond)
	const seconds = 2
	return float64(read(seconds*time.Second)*8) / seconds
}
