package criu

import (
	"context"
	"fmt"
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
// its response: https://criu.org/RPC. When ctx ends CRIU is ended.
//
// Its library for Go is used for the messages alone, since the socket that it
// makes is inherited by any other program that is started at that moment.
func (p Program) ask(ctx context.Context, request *rpc.CriuReq) (*rpc.CriuResp, error) {
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
	response, err := roundTrip(ours, request)
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

// roundTrip sends a message and returns the next one from CRIU.
func roundTrip(socket *os.File, request *rpc.CriuReq) (*rpc.CriuResp, error) {
	text, err := request.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode request to CRIU: %w", err)
	}
	if _, err := socket.Write(text); err != nil {
		return nil, fmt.Errorf("ask CRIU: %w", err)
	}
	answer := make([]byte, maxResponse)
	n, err := socket.Read(answer)
	if err != nil {
		return nil, fmt.Errorf("wait for CRIU's response: %w", err)
	}
	response := new(rpc.CriuResp)
	if err := response.UnmarshalVT(answer[:n]); err != nil {
		return nil, fmt.Errorf("decode CRIU's response: %w", err)
	}
	return response, nil
}

// setGroup lets a command and what it starts be ended together. Told to end, it
// has a moment before it is killed.
func setGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = endTime
}
