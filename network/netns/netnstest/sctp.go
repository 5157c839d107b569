package netnstest

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"crisp/network/netns"
)

// A kernel without SCTP still routes and translates its packets. The first two of an
// association are therefore made here, and sent by sockets that need no more than IP:
// INIT, which carries a tag, and INIT ACK, by which the server answers with it. Where the
// kernel has SCTP, its ABORT answers as well: nothing listens there.
const (
	chunkInit    = 1
	chunkInitAck = 2
	chunkAbort   = 6
	// initLength is the length of both chunks in bytes, and headerLength that of what is
	// before them.
	initLength, headerLength = 20, 12
	// addrOption is the type of a parameter with the client's address as a text, which
	// those who do not know it skip.
	addrOption = 0x8042
)

// sctpPacket is a packet with one chunk, and a parameter if text is not "".
func sctpPacket(source, target uint16, tag uint32, kind byte, own uint32, text string) []byte {
	length := initLength
	if text != "" {
		length += 4 + len(text)
	}
	p := make([]byte, headerLength+(length+3)/4*4)
	binary.BigEndian.PutUint16(p[0:], source)
	binary.BigEndian.PutUint16(p[2:], target)
	binary.BigEndian.PutUint32(p[4:], tag)

	chunk := p[headerLength:]
	chunk[0] = kind
	binary.BigEndian.PutUint16(chunk[2:], uint16(length))
	binary.BigEndian.PutUint32(chunk[4:], own)
	binary.BigEndian.PutUint32(chunk[8:], 64<<10) // window
	binary.BigEndian.PutUint16(chunk[12:], 1)     // streams out and in
	binary.BigEndian.PutUint16(chunk[14:], 1)
	binary.BigEndian.PutUint32(chunk[16:], own)
	if text != "" {
		binary.BigEndian.PutUint16(chunk[20:], addrOption)
		binary.BigEndian.PutUint16(chunk[22:], uint16(4+len(text)))
		copy(chunk[24:], text)
	}
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

// ipNetwork names packets of SCTP for package net.
func ipNetwork(v4 bool) string {
	if v4 {
		return "ip4:132"
	}
	return "ip6:132"
}

// closers closes several things.
type closers []io.Closer

func (c closers) Close() error {
	for _, one := range c {
		one.Close()
	}
	return nil
}

// serveSCTP answers INIT on a port, of both families if the address is unspecified. It
// runs in the namespace.
func serveSCTP(addr netip.AddrPort) (io.Closer, func(), error) {
	addrs := []netip.Addr{addr.Addr()}
	if addr.Addr() == netip.IPv6Unspecified() {
		addrs = append(addrs, netip.IPv4Unspecified())
	}
	var all closers
	var conns []net.PacketConn
	for _, a := range addrs {
		c, err := net.ListenPacket(ipNetwork(a.Is4()), a.String())
		if err != nil {
			all.Close()
			return nil, nil, err
		}
		all, conns = append(all, c), append(conns, c)
	}

	return all, func() {
		done := make(chan struct{})
		for _, c := range conns {
			go func() {
				answerInit(c, addr.Port())
				done <- struct{}{}
			}()
		}
		for range conns {
			<-done
		}
	}, nil
}

func answerInit(c net.PacketConn, port uint16) {
	const own = 0x0c215900
	buf := make([]byte, largest)
	for {
		size, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		if size < headerLength+initLength || buf[headerLength] != chunkInit || binary.BigEndian.Uint16(buf[2:]) != port {
			continue
		}
		tag := binary.BigEndian.Uint32(buf[headerLength+4:])
		c.WriteTo(sctpPacket(port, binary.BigEndian.Uint16(buf), tag, chunkInitAck, own, hostOf(from)), from)
	}
}

// askSCTP sends INIT and waits for the answer. If that is an ABORT, the answer is "abort".
func askSCTP(from *os.File, to netip.AddrPort, patience time.Duration) (string, error) {
	var conn net.Conn
	err := netns.Do(from, func() (err error) {
		conn, err = net.Dial(ipNetwork(to.Addr().Is4()), to.Addr().String())
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()

	// Another port for each question, as connection tracking remembers them.
	tag := rand.Uint32() | 1
	source := uint16(20000 + tag%40000)
	return exchange(conn, sctpPacket(source, to.Port(), 0, chunkInit, tag, ""), time.Now().Add(patience), func(p []byte) (string, bool) {
		if to.Addr().Is4() && len(p) > 0 { // with the header of IPv4, unlike IPv6
			const words = 0x0f
			p = p[min(len(p), int(p[0]&words)*4):]
		}
		if len(p) < headerLength+4 || binary.BigEndian.Uint16(p) != to.Port() || binary.BigEndian.Uint16(p[2:]) != source || binary.BigEndian.Uint32(p[4:]) != tag {
			return "", false
		}
		chunk := p[headerLength:]
		if chunk[0] == chunkAbort {
			return "abort", true
		}
		if length := int(binary.BigEndian.Uint16(chunk[2:])); chunk[0] == chunkInitAck && initLength+4 <= length && length <= len(chunk) {
			return string(chunk[initLength+4 : length]), true
		}
		return "", false
	})
}
