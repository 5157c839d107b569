package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/pace"
)

// flood opens n connections and keeps them until the test ends.
func flood(t *testing.T, s *Server, n int, say string) []net.Conn {
	t.Helper()
	var all []net.Conn
	for range n {
		c, err := net.Dial("tcp", s.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		// It may have been closed already.
		_, _ = io.WriteString(c, say)
		all = append(all, c)
	}
	return all
}

// counted returns how many connections the server has, and how many of them
// are pending.
func counted(s *Server) (open, pending int) {
	s.listener.mu.Lock()
	defer s.listener.mu.Unlock()
	return len(s.listener.open), s.listener.pending.total
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not come about that %s", what)
		}
	}
}

// A client with a token is served while clients without one hold all they can,
// in every state of a request.
func TestPendingConnectionsAreBounded(t *testing.T) {
	for name, say := range map[string]string{
		"silent":        "",
		"half a header": "POST /exec/x HTTP/1.1\r\nHost: x\r\n",
		"no token":      "POST /exec/x HTTP/1.1\r\nHost: x\r\n\r\n",
		"half a body":   "POST /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx",
		"other method":  "PUT /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx",
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Options{HelloTimeout: 2 * time.Second}, fake{exec: func(context.Context, execution) error { return nil }})
			before := runtime.NumGoroutine()
			flood(t, s, 600, say)
			open, pending := counted(s)
			if open > maxPerAddress+1 || pending > maxPerAddress {
				t.Errorf("%d connections are open, %d of them pending", open, pending)
			}

			c := dial(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdout: true}), v4)
			c.open("error")
			c.open("stdout")
			if got := c.end(); got != "Success" {
				t.Errorf("a client with a token gets %q", got)
			}
			c.Close()
			eventually(t, "all connections are closed", func() bool {
				open, pending := counted(s)
				return open == 0 && pending == 0 && runtime.NumGoroutine() <= before+5
			})
		})
	}
}

// Sessions are not pending: they stay however long they last.
func TestSessionsOutliveTheHello(t *testing.T) {
	const hello = 100 * time.Millisecond
	s := start(t, Options{HelloTimeout: hello}, fake{exec: func(ctx context.Context, e execution) error {
		select {
		case <-time.After(5 * hello):
			return &ExitError{3}
		case <-ctx.Done():
			return ctx.Err()
		}
	}})

	c := dial(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdout: true}), v4)
	c.open("error")
	c.open("stdout")
	if got := c.end(); got != "exit code 3" {
		t.Errorf("ended with %q", got)
	}
}

// A request that is refused after its token was redeemed leaves a pending
// connection.
func TestRefusedRequestIsPending(t *testing.T) {
	s := start(t, Options{HelloTimeout: time.Second}, fake{})
	url := execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdout: true})
	path := url[strings.Index(url, "/exec/"):]
	c := flood(t, s, 1, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")[0]
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	answer, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) || !strings.HasPrefix(string(answer), "HTTP/1.1 400") {
		t.Errorf("answered %q, %v", answer, err)
	}
	eventually(t, "the connection is closed", func() bool { open, pending := counted(s); return open+pending == 0 })
}

// The address with most pending connections makes room, the oldest first.
func TestPendingConnectionsAreEvictedFairly(t *testing.T) {
	s := pending{byAddr: map[netip.Addr][]*conn{}}
	now := time.Now()
	add := func(addr string) (*conn, *conn) {
		now = now.Add(time.Second)
		c := &conn{addr: netip.MustParseAddr(addr), since: now}
		return c, s.add(c)
	}

	victim, _ := add("127.0.0.1")
	var hoard []*conn
	for i := range maxPerAddress {
		c, evicted := add("10.0.0.1")
		if hoard = append(hoard, c); evicted != nil {
			t.Fatalf("number %d has another one leave", i)
		}
	}

	if _, evicted := add("10.0.0.1"); evicted != hoard[0] {
		t.Error("an address with too many does not lose its oldest")
	}
	for i := 2; s.total < maxPending; i++ {
		add(fmt.Sprintf("10.0.1.%d", i))
	}

	for i := range maxPerAddress - 1 {
		if _, evicted := add(fmt.Sprintf("10.0.2.%d", i)); evicted.addr != hoard[0].addr {
			t.Fatalf("%v leaves instead of the address that has most", evicted.addr)
		}
	}

	if s.total != maxPending || !s.remove(victim) || s.remove(victim) {
		t.Errorf("%d pending, or the only one of its address is not among them", s.total)
	}
}

// Ten thousand commands with a terminal fail before they begin. Their goroutines
// that follow the window's size, and all others, end with them (CVE-2022-23471).
func TestCVE202223471FailedTerminalsLeaveNoGoroutines(t *testing.T) {
	n := many(t, 10_000)
	s := start(t, Options{}, fake{exec: func(context.Context, execution) error { return errors.New("no such command") }})
	session := func() {
		c := dial(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdin: true, Stdout: true, Tty: true}), v4)
		for _, kind := range []string{"error", "stdin", "stdout", "resize"} {
			c.open(kind)
		}
		// Nobody reads these sizes.
		io.WriteString(c.streams["resize"], strings.Repeat(`{"Width":1,"Height":1}`, 20))
		c.end()
		c.Close()
	}
	wantFlat(t, n, session)
}

// Ten thousand clients attach and disconnect immediately (CVE-2025-64329).
func TestCVE202564329AbortedAttachesLeaveNoGoroutines(t *testing.T) {
	n := many(t, 10_000)
	s := start(t, Options{CreationTimeout: 500 * time.Millisecond}, fake{exec: func(ctx context.Context, e execution) error {
		<-ctx.Done()
		return ctx.Err()
	}})

	i := 0
	wantFlat(t, n, func() {
		resp, err := s.GetAttach(nil, &runtimeapi.AttachRequest{ContainerId: "c1", Stdin: true, Stdout: true, Tty: true})
		if err != nil {
			t.Fatal(err)
		}

		c := dial(t, resp.Url, v4)
		// At every point of the hand-shake.
		for _, kind := range []string{"error", "stdin", "stdout", "resize"}[:i%5] {
			c.open(kind)
		}

		i++
		c.Close()
	})
}

// many is n, or less in a short run or on a slow machine.
func many(t *testing.T, n int) int {
	if testing.Short() {
		return n / 50
	}
	return pace.Load(n)
}

// wantFlat runs a session n times and requires as many goroutines as before.
func wantFlat(t *testing.T, n int, session func()) {
	t.Helper()
	for range 10 {
		session()
	}
	http.DefaultClient.CloseIdleConnections()
	before := runtime.NumGoroutine()
	for range n {
		session()
	}
	eventually(t, fmt.Sprintf("there are again %d goroutines", before), func() bool { return runtime.NumGoroutine() <= before+5 })
}
