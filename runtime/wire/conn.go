package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire/pack"
)

const (
	// maxPacket is the largest packet; bulk data is passed by descriptors.
	maxPacket = 32 << 10
	// maxRights is the kernel's SCM_MAX_FD.
	maxRights = 253
	// headerSize is the type and the sequence number.
	headerSize = 5
	// sendTimeout is how long a peer may leave its socket full.
	sendTimeout = 10 * time.Second
)

// Packet is a message with its sequence number and descriptors.
type Packet struct {
	Seq uint32
	Msg Message
	// Files are the receiver's. Their numbers are > 2 when 0, 1 and 2 are open.
	Files Files
}

// Conn is one end of a connection. Sends may be concurrent; only one
// goroutine receives.
type Conn struct {
	file *os.File
	raw  syscall.RawConn

	recvBuf, recvOOB []byte
	// peer is the sender of the last packet that came with its credentials.
	peer   int
	sendMu sync.Mutex
}

// NewConn makes a connection of a SEQPACKET socket, which it then owns.
func NewConn(fd int) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set socket nonblocking: %w", err)
	}
	file := os.NewFile(uintptr(fd), "keeper connection")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("use socket: %w", err)
	}
	return &Conn{file: file, raw: raw}, nil
}

// CheckPeer checks that the peer runs as the same user.
func (c *Conn) CheckPeer() error {
	var cred *unix.Ucred
	var err error
	if cerr := c.raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("identify peer: %w", err)
	}

	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: uid %d", ErrPeer, cred.Uid)
	}
	return nil
}

// Identify has packets come with the process that sends them, or no longer. SO_PEERCRED
// names the one that made the socket to which this one was connected.
func (c *Conn) Identify(on bool) error {
	value := 0
	if on {
		value = 1
	}
	var err error
	if cerr := c.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, value) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("identify sender: %w", err)
	}
	return nil
}

// Peer is the process that sent the last packet received while [Conn.Identify] was on, 0
// without one. It must not be called while a Recv is under way that may change it.
func (c *Conn) Peer() int { return c.peer }

// Close ends the connection; a Recv under way returns an error.
func (c *Conn) Close() error { return c.file.Close() }

// HungUp reports whether the peer has disconnected. Packets that it sent before
// may be unread.
func (c *Conn) HungUp() bool {
	gone := true // if this end is closed
	_ = c.raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(poll, 0)
		gone = err == nil && poll[0].Revents&unix.POLLHUP != 0
	})
	return gone
}

// Send sends a message with copies of the descriptors in files.
func (c *Conn) Send(seq uint32, m Message, files Files) error {
	var w pack.Writer
	m.put(&w)
	if len(files) > 0 && m.kind() != typeUpgrade {
		files.PutRoles(&w)
	}
	if len(w.Bytes())+headerSize > maxPacket || len(files) > maxFiles {
		return fmt.Errorf("send packet: %w: %d bytes, %d files", ErrProtocol, len(w.Bytes()), len(files))
	}

	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if err := c.file.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("send packet: %w", err)
	}

	fds := files.Numbers()
	for len(fds) > maxRights {
		if err := c.sendPacket(typeMore, seq, nil, fds[:maxRights]); err != nil {
			return err
		}
		fds = fds[maxRights:]
	}

	return c.sendPacket(m.kind(), seq, w.Bytes(), fds)
}

func (c *Conn) sendPacket(typ byte, seq uint32, payload []byte, fds []int) error {
	buf := make([]byte, headerSize, headerSize+len(payload))
	buf[0] = typ
	binary.LittleEndian.PutUint32(buf[1:], seq)
	buf = append(buf, payload...)
	var oob []byte

	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	var err error
	werr := c.raw.Write(func(fd uintptr) bool {
		for {
			err = unix.Sendmsg(int(fd), buf, oob, nil, unix.MSG_NOSIGNAL)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})

	if werr != nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("send packet: %w", err)
	}
	return nil
}

// Recv waits for the next message. At the end of the connection it returns
// io.EOF.
func (c *Conn) Recv() (p Packet, err error) {
	if c.recvBuf == nil {
		c.recvBuf = make([]byte, maxPacket)
		c.recvOOB = make([]byte, unix.CmsgSpace(4*maxRights)+unix.CmsgSpace(unix.SizeofUcred))
	}

	var fds []int
	defer func() {
		if err != nil {
			CloseAll(fds)
			p = Packet{}
		}
	}()

	for first := true; ; first = false {
		b, more, err := c.recvPacket()
		fds = append(fds, more...)
		if err != nil {
			return p, err
		}

		if len(b) < headerSize || len(fds) > maxFiles {
			return p, fmt.Errorf("receive packet: %w: %d bytes, %d files", ErrProtocol, len(b), len(fds))
		}
		seq := binary.LittleEndian.Uint32(b[1:])
		if !first && seq != p.Seq {
			return p, fmt.Errorf("receive packet: %w: files without their message", ErrProtocol)
		}

		p.Seq = seq
		if b[0] == typeMore {
			continue
		}

		p.Msg, p.Files, err = decode(b[0], b[headerSize:], len(fds))
		for i := range p.Files {
			p.Files[i].FD = fds[i]
		}
		return p, err
	}
}

// recvPacket receives one packet; [io.EOF] means that the peer has closed the
// connection and all that it sent has been received. The kernel reports the end of
// a connection, too, if the last packet and the close come between its look for a
// packet and that for the end, so the end counts when it is reported again.
func (c *Conn) recvPacket() (b []byte, fds []int, err error) {
	b, fds, err = c.recvOnce()
	if err == io.EOF {
		b, fds, err = c.recvOnce()
	}
	return b, fds, err
}

func (c *Conn) recvOnce() (b []byte, fds []int, err error) {
	var n, oobn, flags int
	rerr := c.raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, err = unix.Recvmsg(int(fd), c.recvBuf, c.recvOOB, unix.MSG_CMSG_CLOEXEC)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})

	if rerr != nil { // the file is closed, the only cause; there is no sentinel for it
		err = os.ErrClosed
	}
	switch {
	case errors.Is(err, unix.ECONNRESET):
		return nil, nil, io.EOF
	case err != nil:
		return nil, nil, fmt.Errorf("receive packet: %w", err)
	}

	if oobn > 0 {
		var sender int
		if fds, sender, err = control(c.recvOOB[:oobn]); sender != 0 {
			c.peer = sender
		}
	}
	switch {
	case err != nil:
		return nil, fds, err
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		return nil, fds, fmt.Errorf("receive packet: %w: truncated", ErrProtocol)
	case n == 0:
		return nil, fds, io.EOF
	}

	return c.recvBuf[:n], fds, nil
}

// control parses what came with a packet: descriptors, and its sender if that is there.
func control(oob []byte) (all []int, sender int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, 0, fmt.Errorf("receive packet: %w: %w", ErrProtocol, err)
	}

	for i := range msgs {
		if h := msgs[i].Header; h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_CREDENTIALS {
			if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
				sender = int(cred.Pid)
			}
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return all, sender, fmt.Errorf("receive packet: %w: %w", ErrProtocol, err)
		}
		all = append(all, fds...)
	}
	return all, sender, nil
}
