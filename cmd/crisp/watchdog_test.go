package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
)

// TestKeepAlive answers a watchdog twice in its interval, and not while the daemon
// hangs or fails.
func TestKeepAlive(t *testing.T) {
	const within = time.Minute
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for name, test := range map[string]struct {
		probe func(context.Context) error
		want  int
	}{
		"responds": {func(context.Context) error { return nil }, 10},
		"fails":    {func(context.Context) error { return errors.New("no") }, 0},
		"hangs":    {hang, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*within-time.Second)
				defer cancel()

				told := 0
				keepAlive(ctx, within, test.probe, func() error { told++; return nil })
				if told != test.want {
					t.Errorf("told %d times, want %d", told, test.want)
				}
			})
		})
	}
}

// listing is a daemon of which only the list of pods is asked.
type listing struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	asked chan string
}

func (l *listing) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	l.asked <- r.GetFilter().GetId()
	return &runtimeapi.ListPodSandboxResponse{}, nil
}

// TestWatch answers the watchdog of a service manager, after a request to the
// socket; and no watchdog if there is none.
func TestWatch(t *testing.T) {
	testkit.Leaks(t)
	dir := t.TempDir()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()

	socket := filepath.Join(dir, "crisp.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	d, g := &listing{asked: make(chan string, 100)}, grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(g, d)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	defer func() { g.Stop(); <-served }()

	watch(t.Context(), socket) // returns: there is no watchdog

	t.Setenv("NOTIFY_SOCKET", manager.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "200000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); watch(ctx, socket) }()
	for range 2 {
		b := make([]byte, 64)
		n, err := manager.Read(b)
		if err != nil || string(b[:n]) != "WATCHDOG=1" {
			t.Errorf("the service manager reads %q, error %v", b[:n], err)
		}
	}
	cancel()
	<-done

	if len(d.asked) < 2 {
		t.Errorf("%d requests before two answers", len(d.asked))
	}
}
