package netns

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// UnixSocket is a socket of the machine: Name is its path, "@" and its name if that is
// abstract, or "", and Peer the inode of the socket that it is connected to, 0 for none.
type UnixSocket struct {
	Name string
	Peer uint32
}

// Of the kernel's include/uapi/linux/unix_diag.h.
const (
	showName, showPeer = 1 << 0, 1 << 2
	attrName, attrPeer = 0, 2
	sizeofDiag         = 16
)

// UnixSockets lists the sockets of the machine that were made in a network namespace, by
// their inodes.
func UnixSockets(ns *os.File) (map[uint32]UnixSocket, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: int(ns.Fd())})
	if err != nil {
		return nil, fmt.Errorf("list Unix sockets: %w", err)
	}
	defer conn.Close()

	request := []byte{unix.AF_UNIX, 0, 0, 0}
	for _, n := range []uint32{^uint32(0), 0, showName | showPeer, 0, 0} { // states, inode, what to show, cookie
		request = binary.NativeEndian.AppendUint32(request, n)
	}
	const byFamily = 20
	answers, err := conn.Execute(netlink.Message{Header: netlink.Header{Type: byFamily, Flags: netlink.Request | netlink.Dump}, Data: request})
	if err != nil {
		return nil, fmt.Errorf("list Unix sockets: %w", err)
	}

	all := map[uint32]UnixSocket{}
	for _, m := range answers {
		inode, s, err := parseUnixSocket(m.Data)
		if err != nil {
			return nil, fmt.Errorf("list Unix sockets: %w", err)
		}
		all[inode] = s
	}
	return all, nil
}

// parseUnixSocket decodes struct unix_diag_msg and what follows it.
func parseUnixSocket(text []byte) (inode uint32, s UnixSocket, err error) {
	if len(text) < sizeofDiag {
		return 0, s, fmt.Errorf("an answer of %d bytes", len(text))
	}
	inode = binary.NativeEndian.Uint32(text[4:])
	attributes, err := netlink.NewAttributeDecoder(text[sizeofDiag:])
	if err != nil {
		return 0, s, err
	}

	for attributes.Next() {
		switch attributes.Type() {
		case attrName:
			s.Name = string(attributes.Bytes())
			if name, abstract := strings.CutPrefix(s.Name, "\x00"); abstract {
				s.Name = "@" + name
			}
			s.Name = strings.TrimRight(s.Name, "\x00")
		case attrPeer:
			s.Peer = attributes.Uint32()
		}
	}
	return inode, s, attributes.Err()
}
