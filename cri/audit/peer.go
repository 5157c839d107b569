package audit

import (
	"context"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/peer"

	"crisp/runtime/untrusted"
)

// Caller is a process that is connected to the socket.
type Caller struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
	PID int `json:"pid"`
	// Program is what it executed when it connected, "" if that is unknown.
	Program string `json:"program,omitempty"`
}

// maxProgram bounds a program's path, in bytes.
const maxProgram = 256

// Peers wraps a listener of a Unix socket so that its connections know who is at the
// other end.
func Peers(l net.Listener) net.Listener { return peers{l} }

type peers struct{ net.Listener }

func (l peers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return conn{c, addr{c.RemoteAddr(), callerAt(c)}}, nil
}

// conn is a connection whose remote address says who is there.
type conn struct {
	net.Conn
	remote addr
}

func (c conn) RemoteAddr() net.Addr { return c.remote }

type addr struct {
	net.Addr
	caller *Caller
}

// callerAt asks the kernel who is at the other end, nil if it does not say.
func callerAt(c net.Conn) *Caller {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || failed != nil {
		return nil
	}

	program, _ := os.Readlink("/proc/" + strconv.Itoa(int(cred.Pid)) + "/exe") // it may have exited
	return &Caller{UID: int(cred.Uid), GID: int(cred.Gid), PID: int(cred.Pid), Program: untrusted.Of(program).Name(maxProgram)}
}

// CallerOf is who made a call of the CRI, nil if that is unknown.
func CallerOf(ctx context.Context) *Caller {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	a, ok := p.Addr.(addr)
	if !ok {
		return nil
	}
	return a.caller
}
