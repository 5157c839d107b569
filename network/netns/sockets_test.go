package netns

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// inodeOf is the inode of a socket.
func inodeOf(t *testing.T, s syscall.Conn) (inode uint32) {
	t.Helper()
	raw, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		var st unix.Stat_t
		if err := unix.Fstat(int(fd), &st); err != nil {
			t.Error(err)
		}
		inode = uint32(st.Ino)
	})
	if err != nil {
		t.Fatal(err)
	}
	return inode
}

// TestUnixSockets lists sockets with paths and abstract names, and who is connected to whom.
func TestUnixSockets(t *testing.T) {
	testkit.Root(t)
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for _, name := range []string{filepath.Join(t.TempDir(), "socket"), "@crisp-test " + t.Name()} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()

		all, err := UnixSockets(ns)
		if err != nil {
			t.Fatal(err)
		}
		listener, client, server := inodeOf(t, l.(*net.UnixListener)), inodeOf(t, c.(*net.UnixConn)), inodeOf(t, peer.(*net.UnixConn))
		if got := all[listener]; got != (UnixSocket{Name: name}) {
			t.Errorf("the listener is %+v", got)
		}
		if got := all[client]; got != (UnixSocket{Peer: server}) {
			t.Errorf("the client is %+v, want peer %d", got, server)
		}
		if got := all[server]; got != (UnixSocket{name, client}) {
			t.Errorf("the server is %+v, want peer %d", got, client)
		}
	}
}

// TestParseUnixSocket has answers that are none.
func TestParseUnixSocket(t *testing.T) {
	for name, text := range map[string][]byte{
		"short": make([]byte, sizeofDiag-1), "broken attribute": append(make([]byte, sizeofDiag), 200, 0, 0, 0), "short peer": append(make([]byte, sizeofDiag), 6, 0, attrPeer, 0, 1, 2, 0, 0),
	} {
		if inode, s, err := parseUnixSocket(text); err == nil {
			t.Errorf("%s: %d, %+v", name, inode, s)
		}
	}
}
