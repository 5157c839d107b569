package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"crisp/runtime/ordinary"
)

const (
	// maxResponse is longer than any response, in bytes.
	maxResponse = 64 << 10
	// endTime is how long CRIU may take to end once it was told to.
	endTime = 2 * time.Second
)

// ask starts CRIU for one request, which it gets through a socket, and returns
// its response: https://criu.org/RPC. It waits at the stages that the request has it name,
// while at is called. When ctx ends CRIU is ended.
//
// Its library for Go is used for the messages alone, since the socket that it
// makes is inherited by any other program that is started at that moment.
func (p Program) ask(ctx context.Context, at func(Stage), request *rpc.CriuReq) (*rpc.CriuResp, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()

	cmd := command(ctx, p.Path, "swrk", "3")
	cmd.ExtraFiles = []*os.File{theirs} // the first is 3
	err = ordinary.Start(cmd)
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("start CRIU: %w", err)
	}

	stop := context.AfterFunc(ctx, func() { _ = ours.SetDeadline(time.Now().Add(endTime)) })
	response, err := converse(ours, request, func(e Event) error {
		at(e.Stage)
		return nil // whatever it is, CRIU has to finish
	})
	ours.Close() // it ends
	stop()
	if err != nil {
		// It is not reaped yet, so this is its group.
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	}
	if exited := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%w (%v)", err, exited)
	}
	return response, nil
}

// socketPair returns the ends of a socket for requests: ours does not block a thread.
func socketPair() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket for CRIU: %w", err)
	}
	err = unix.SetNonblock(pair[0], true)
	ours, theirs = os.NewFile(uintptr(pair[0]), "CRIU"), os.NewFile(uintptr(pair[1]), "CRIU")
	if err != nil {
		ours.Close()
		theirs.Close()
		return nil, nil, fmt.Errorf("make socket for CRIU: %w", err)
	}
	return ours, theirs, nil
}

// roundTrip sends a message and returns the next one from CRIU, with the descriptor that
// came with it, nil for none.
func roundTrip(socket *os.File, request *rpc.CriuReq) (*rpc.CriuResp, *os.File, error) {
	text, err := request.MarshalVT()
	if err != nil {
		return nil, nil, fmt.Errorf("encode request to CRIU: %w", err)
	}
	if _, err := socket.Write(text); err != nil {
		return nil, nil, fmt.Errorf("ask CRIU: %w", err)
	}

	answer, file, err := receive(socket)
	if err != nil {
		return nil, nil, fmt.Errorf("wait for CRIU's response: %w", err)
	}
	response := new(rpc.CriuResp)
	if err := response.UnmarshalVT(answer); err != nil {
		closeFile(file)
		return nil, nil, fmt.Errorf("decode CRIU's response: %w", err)
	}
	return response, file, nil
}

// receive receives one message, with at most one descriptor.
func receive(socket *os.File) (text []byte, file *os.File, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	text, oob := make([]byte, maxResponse), make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	rerr := raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, err = unix.Recvmsg(int(fd), text, oob, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if err := errors.Join(rerr, err); err != nil {
		return nil, nil, err
	}

	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, nil, err
	}
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil && len(fds) == 1 {
			err := unix.SetNonblock(fds[0], true) // its user waits by polling
			if file = os.NewFile(uintptr(fds[0]), "terminal"); err != nil {
				file.Close()
				return nil, nil, err
			}
		}
	}
	if n == 0 {
		closeFile(file)
		return nil, nil, io.EOF
	}
	return text[:n], file, nil
}

// setGroup lets a command and what it starts be ended together. Told to end, it
// has a moment before it is killed.
func setGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = endTime
}
