package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/rpcerr"
)

const (
	// answerTime bounds the first call, which is answered from memory.
	answerTime = 10 * time.Second
	// maxMessage is kubelet's.
	maxMessage = 16 << 20
)

// Reasons why there is no daemon to talk to, and why a name fits nothing.
var (
	ErrDown      = errors.New("no daemon runs")
	ErrNoRights  = errors.New("no rights")
	ErrOther     = errors.New("not a socket of crisp")
	ErrNotFound  = errors.New("not found")
	ErrAmbiguous = errors.New("ambiguous")
)

// Client calls a daemon.
type Client struct {
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient
	// Version is the daemon's.
	Version string

	conn *grpc.ClientConn
}

// Open connects to the daemon on a socket.
func Open(ctx context.Context, socket string) (*Client, error) {
	if err := reachable(ctx, socket); err != nil {
		return nil, err
	}

	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	c := &Client{Runtime: runtimeapi.NewRuntimeServiceClient(conn), Images: runtimeapi.NewImageServiceClient(conn), conn: conn}
	if err := c.greet(ctx, socket); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// greet makes sure that crisp answers, and not another runtime.
func (c *Client) greet(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	v, err := c.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
	switch {
	case err != nil && rpcerr.Unserved(err):
		return fmt.Errorf("%s is %w: what listens there does not serve the CRI; name the right one with --listen", socket, ErrOther)
	case err != nil:
		return fmt.Errorf("ask the daemon on %s for its version: %s", socket, rpcerr.Message(err))
	case v.GetRuntimeName() != "crisp":
		return fmt.Errorf("%s is %w: %q serves it; name the right one with --listen", socket, ErrOther, v.GetRuntimeName())
	}
	c.Version = v.GetRuntimeVersion()
	return nil
}

// reachable connects to a socket once: unlike gRPC's, the kernel's error says what
// is wrong.
func reachable(ctx context.Context, socket string) error {
	d := net.Dialer{Timeout: answerTime}
	conn, err := d.DialContext(ctx, "unix", socket)
	if err == nil {
		return conn.Close()
	}
	return Explain(socket, err)
}

// Explain is the error of a connection to a socket in words.
func Explain(socket string, err error) error {
	st, e := os.Lstat(socket)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w to use %s: run this as root", ErrNoRights, socket)
	case e == nil && st.Mode().Type() != fs.ModeSocket, errors.Is(err, unix.EPROTOTYPE):
		return fmt.Errorf("%s is %w; name the right one with --listen", socket, ErrOther)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w on %s: start it (systemctl start crisp), or name the socket of another with --listen", ErrDown, socket)
	}
	return fmt.Errorf("connect to %s: %w", socket, err)
}
