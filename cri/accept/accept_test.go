package accept

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// poor is a listener without memory for a connection, or for a write.
type poor struct {
	net.Listener
	accepts, writes atomic.Int32 // how many fail
}

func (p *poor) Accept() (net.Conn, error) {
	if p.accepts.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: unix.ENOMEM}
	}
	c, err := p.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return poorConn{c, p}, nil
}

type poorConn struct {
	net.Conn
	p *poor
}

func (c poorConn) Write(b []byte) (int, error) {
	if c.p.writes.Add(-1) >= 0 {
		return 0, &net.OpError{Op: "write", Net: "unix", Err: unix.ENOMEM}
	}
	return c.Conn.Write(b)
}

func newPoor(t *testing.T) *poor {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &poor{Listener: l}
}

func TestPatient(t *testing.T) {
	p := newPoor(t)
	p.accepts.Store(3)
	l := Patient(p)
	go func() {
		if c, err := net.Dial("unix", p.Addr().String()); err == nil {
			c.Close()
		}
	}()

	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	p.Close()
	p.accepts.Store(1)

	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v, want %v", err, net.ErrClosed)
	}
}

// TestCallEnds makes a call whose response cannot be written. It must fail, and
// the next one succeed over another connection.
func TestCallEnds(t *testing.T) {
	p := newPoor(t)
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, runtimeapi.UnimplementedRuntimeServiceServer{})
	go func() { _ = s.Serve(Sound(Patient(p))) }()
	defer s.Stop()

	conn, err := grpc.NewClient("unix://"+p.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	call := func() codes.Code {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
		return status.Code(err)
	}
	if code := call(); code != codes.Unimplemented {
		t.Fatalf("code %v", code)
	}

	p.writes.Store(1)
	if code := call(); code != codes.Unavailable {
		t.Errorf("a call without an answer has code %v, want %v", code, codes.Unavailable)
	}
	if code := call(); code != codes.Unimplemented {
		t.Errorf("the call after it has code %v", code)
	}
}
