package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"crisp/network/portforward"
)

// fake is a runtime of functions.
type fake struct {
	exec    func(ctx context.Context, e execution) error
	forward func(ctx context.Context, pod string, port int32, stream io.ReadWriteCloser) error
}

// execution is what Exec or Attach was called with.
type execution struct {
	id        string
	cmd       []string
	in        io.Reader
	out, errw io.WriteCloser
	tty       bool
	resize    <-chan remotecommand.TerminalSize
}

func (f fake) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return f.exec(ctx, execution{id, cmd, in, out, errw, tty, resize})
}

func (f fake) Attach(ctx context.Context, id string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return f.exec(ctx, execution{id, nil, in, out, errw, tty, resize})
}

func (f fake) PortForward(ctx context.Context, pod string, port int32, stream io.ReadWriteCloser) error {
	return f.forward(ctx, pod, port, stream)
}

// start serves until the test ends, and then demands that nothing is left.
func start(t *testing.T, o Options, rt Runtime) *Server {
	t.Helper()
	s, err := Start(o, rt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return s
}

func execURL(t *testing.T, s *Server, req *runtimeapi.ExecRequest) string {
	t.Helper()
	resp, err := s.GetExec(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

const (
	v4      = "v4.channel.k8s.io"
	forward = "portforward.k8s.io"
)

func TestExec(t *testing.T) {
	s := start(t, Options{}, fake{exec: func(_ context.Context, e execution) error {
		if e.id != "c1" || !reflect.DeepEqual(e.cmd, []string{"cat", "-n"}) || e.tty {
			return fmt.Errorf("called with %+v", e)
		}
		in, err := io.ReadAll(e.in)
		if err != nil {
			return err
		}

		fmt.Fprintf(e.errw, "%d bytes", len(in))
		e.out.Write(bytes.ToUpper(in))
		return nil
	}})

	url := execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Cmd: []string{"cat", "-n"}, Stdin: true, Stdout: true, Stderr: true})
	if !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Errorf("url is %s", url)
	}

	c := dial(t, url, v4)
	c.open("error")
	stdin := c.open("stdin")
	c.open("stdout")
	c.open("stderr")
	io.WriteString(stdin, "hello")
	stdin.Close()

	if out, errs := c.read("stdout"), c.read("stderr"); out != "HELLO" || errs != "5 bytes" {
		t.Errorf("got %q and %q", out, errs)
	}
	if got := c.end(); got != "Success" {
		t.Errorf("ended with %s", got)
	}

	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()

	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("using the URL again: %s", resp.Status)
	}
}

// crictl and debugging tools connect by WebSocket: a byte before each message
// names its stream.
func TestExecByWebSocket(t *testing.T) {
	s := start(t, Options{}, fake{exec: func(_ context.Context, e execution) error {
		word := make([]byte, 5)
		if _, err := io.ReadFull(e.in, word); err != nil {
			return err
		}
		e.out.Write(bytes.ToUpper(word))
		return &ExitError{42}
	}})

	url := execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdin: true, Stdout: true})
	conn, err := websocket.Dial(strings.Replace(url, "http:", "ws:", 1), v4, "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	if err := websocket.Message.Send(conn, []byte("\x00hello")); err != nil {
		t.Fatal(err)
	}
	got := map[byte]string{}
	for {
		var message []byte
		if err := websocket.Message.Receive(conn, &message); err != nil {
			break
		}
		got[message[0]] += string(message[1:])
	}

	if got[1] != "HELLO" || !strings.Contains(got[3], `"42"`) {
		t.Errorf("got %q", got)
	}
}

func TestExecEnds(t *testing.T) {
	for want, err := range map[string]error{
		"Success":      nil,
		"exit code 42": fmt.Errorf("exec: %w", &ExitError{42}),
		"Internal error occurred: error executing command in container: no such container": errors.New("no such container"),
	} {
		s := start(t, Options{}, fake{exec: func(context.Context, execution) error { return err }})
		c := dial(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdout: true}), v4)
		c.open("error")
		c.open("stdout")
		if got := c.end(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A command that does not read all its input must still deliver its output
// and exit code: the connection may not be reset over the unread rest.
func TestExecLeavingInputUnread(t *testing.T) {
	output := strings.Repeat("0123456789abcdef", 1<<12)
	s := start(t, Options{}, fake{exec: func(_ context.Context, e execution) error {
		if _, err := io.ReadFull(e.in, make([]byte, 1)); err != nil {
			return err
		}
		io.WriteString(e.out, output)
		return &ExitError{3}
	}})

	for range 20 {
		c := dial(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdin: true, Stdout: true}), v4)
		c.open("error")
		stdin := c.open("stdin")
		c.open("stdout")
		var writing sync.WaitGroup
		writing.Go(func() {
			for range 100 {
				if _, err := stdin.Write(make([]byte, 32<<10)); err != nil {
					return
				}
			}
		})

		if got := c.read("stdout"); got != output {
			t.Fatalf("got %d bytes of output", len(got))
		}
		if got := c.end(); got != "exit code 3" {
			t.Fatalf("ended with %s", got)
		}
		c.Close()
		writing.Wait()
	}
}

func TestAttachWithTerminal(t *testing.T) {
	s := start(t, Options{}, fake{exec: func(_ context.Context, e execution) error {
		if e.id != "c1" || !e.tty || e.errw != nil {
			return fmt.Errorf("called with %+v", e)
		}
		size := <-e.resize
		fmt.Fprintf(e.out, "%dx%d", size.Width, size.Height)
		return nil
	}})

	resp, err := s.GetAttach(nil, &runtimeapi.AttachRequest{ContainerId: "c1", Tty: true, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}

	c := dial(t, resp.Url, v4)
	for _, kind := range []string{"error", "stdin", "stdout", "resize"} {
		c.open(kind)
	}

	io.WriteString(c.streams["resize"], `{"Width":132,"Height":43}`)
	if got := c.read("stdout"); got != "132x43" {
		t.Errorf("got %q", got)
	}
	if got := c.end(); got != "Success" {
		t.Errorf("ended with %s", got)
	}
}

func TestClientGoingAwayEndsExec(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	s := start(t, Options{}, fake{exec: func(ctx context.Context, e execution) error {
		close(begun)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}})

	c := dial(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdout: true}), v4)
	c.open("error")
	c.open("stdout")
	<-begun
	c.Close()

	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("the command is not notified that its client disconnected")
	}
}

func TestStopEndsEverything(t *testing.T) {
	var running sync.WaitGroup
	running.Add(2)
	s, err := Start(Options{}, fake{
		exec: func(ctx context.Context, e execution) error {
			running.Done()
			<-ctx.Done()
			return context.Cause(ctx)
		},
		forward: func(ctx context.Context, _ string, _ int32, stream io.ReadWriteCloser) error {
			running.Done()
			<-ctx.Done()
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}

	c := dial(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdout: true}), v4)
	c.open("error")
	c.open("stdout")
	resp, err := s.GetPortForward(nil, &runtimeapi.PortForwardRequest{PodSandboxId: "p1"})
	if err != nil {
		t.Fatal(err)
	}

	forwarding := dial(t, resp.Url, forward)
	_, failure := forwarding.forward(80, 1)
	running.Wait()

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}

	if _, err := net.Dial("tcp", s.listener.Addr().String()); err == nil {
		t.Error("still listening")
	}
	if got := c.end(); !strings.Contains(got, ErrStopping.Error()) {
		t.Errorf("the command's client gets %q", got)
	}

	if got, err := io.ReadAll(failure); err != nil || !strings.Contains(string(got), ErrStopping.Error()) {
		t.Errorf("the client of a port gets %q, %v", got, err)
	}
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	release, begun := make(chan struct{}), make(chan struct{})
	s := start(t, Options{}, fake{exec: func(context.Context, execution) error {
		close(begun)
		<-release
		return nil
	}})

	c := dial(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdout: true}), v4)
	c.open("error")
	c.open("stdout")
	<-begun

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	close(release)
}

// echoServer echoes on a port of localhost.
func echoServer(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}

	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})

	return l.Addr().(*net.TCPAddr).Port
}

func TestPortForward(t *testing.T) {
	port := echoServer(t)
	s := start(t, Options{}, fake{forward: func(ctx context.Context, pod string, to int32, stream io.ReadWriteCloser) error {
		if pod != "p1" {
			return fmt.Errorf("pod %q", pod)
		}
		return portforward.Forward(ctx, nil, int(to), stream)
	}})
	resp, err := s.GetPortForward(nil, &runtimeapi.PortForwardRequest{PodSandboxId: "p1", Port: []int32{int32(port)}})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, resp.Url, forward)
	c.wantEchoes(port, 10_000)
}

func TestPortForwardTellsWhatFails(t *testing.T) {
	s := start(t, Options{}, fake{forward: func(context.Context, string, int32, io.ReadWriteCloser) error {
		return errors.New("connection refused")
	}})
	resp, err := s.GetPortForward(nil, &runtimeapi.PortForwardRequest{PodSandboxId: "p1"})
	if err != nil {
		t.Fatal(err)
	}

	c := dial(t, resp.Url, forward)
	for i := range 2 {
		_, failure := c.forward(80, i)
		if said, err := io.ReadAll(failure); err != nil || !strings.Contains(string(said), "connection refused") {
			t.Errorf("server says %q, %v", said, err)
		}
	}
}

func TestClientGoingAwayEndsPortForward(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	s := start(t, Options{}, fake{forward: func(ctx context.Context, _ string, _ int32, _ io.ReadWriteCloser) error {
		close(begun)
		<-ctx.Done()
		close(ended)
		return nil
	}})

	resp, err := s.GetPortForward(nil, &runtimeapi.PortForwardRequest{PodSandboxId: "p1"})
	if err != nil {
		t.Fatal(err)
	}

	c := dial(t, resp.Url, forward)
	c.forward(80, 1)
	<-begun
	c.Close()

	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("the forwarding is not notified that its client disconnected")
	}
}

// A client that connects and then opens no streams must not be kept.
func TestSilentClientIsDropped(t *testing.T) {
	s := start(t, Options{CreationTimeout: 100 * time.Millisecond}, fake{})
	c := dial(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdout: true}), v4)
	select {
	case <-c.CloseChan():
	case <-time.After(30 * time.Second):
		t.Error("still connected")
	}
}

func TestSessionsLeaveNoGoroutines(t *testing.T) {
	s := start(t, Options{}, fake{exec: func(context.Context, execution) error { return errors.New("no") }})
	before := runtime.NumGoroutine()
	for range 100 {
		c := dial(t, execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdin: true, Stdout: true, Tty: true}), v4)
		for _, kind := range []string{"error", "stdin", "stdout", "resize"} {
			c.open(kind)
		}
		io.WriteString(c.streams["resize"], `{"Width":1,"Height":1}{"Width":2,"Height":2}`)
		c.end()
		c.Close()
	}

	after := 0
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if after = runtime.NumGoroutine(); after <= before+5 {
			return
		}
	}
	t.Errorf("%d goroutines before, %d after", before, after)
}

func TestRequestsAreChecked(t *testing.T) {
	s := start(t, Options{}, fake{})
	for name, req := range map[string]*runtimeapi.ExecRequest{
		"no container":        {Stdout: true},
		"no streams":          {ContainerId: "c1"},
		"stderr and terminal": {ContainerId: "c1", Tty: true, Stdout: true, Stderr: true},
	} {
		if _, err := s.GetExec(nil, req); !errors.Is(err, ErrInvalid) {
			t.Errorf("exec, %s: %v", name, err)
		}
		attach := &runtimeapi.AttachRequest{ContainerId: req.ContainerId, Tty: req.Tty, Stdout: req.Stdout, Stderr: req.Stderr}
		if _, err := s.GetAttach(nil, attach); !errors.Is(err, ErrInvalid) {
			t.Errorf("attach, %s: %v", name, err)
		}
	}

	if _, err := s.GetPortForward(nil, &runtimeapi.PortForwardRequest{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("port-forward without pod: %v", err)
	}
}

func TestUnknownURLs(t *testing.T) {
	s := start(t, Options{}, fake{})
	url := execURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c1", Stdout: true})
	for _, other := range []string{strings.Replace(url, "/exec/", "/attach/", 1), url + "x", "http://" + s.listener.Addr().String() + "/"} {
		resp, err := http.Get(other)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", other, resp.Status)
		}
	}

	// A plain request uses the URL up, and its response says what is wrong.
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()

	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("no upgrade: %s", resp.Status)
	}
}

func TestTokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := newTokens()
		path, err := tokens.issue("exec", nil, 1)
		if err != nil {
			t.Fatal(err)
		}

		time.Sleep(tokenLife - time.Second)
		if issued, ok := tokens.redeem(path); !ok || issued.req != 1 {
			t.Errorf("got %v, %t", issued.req, ok)
		}

		if _, ok := tokens.redeem(path); ok {
			t.Error("redeemed twice")
		}

		for range maxTokens {
			if path, err = tokens.issue("exec", nil, 1); err != nil {
				t.Fatal(err)
			}
		}

		if _, err := tokens.issue("exec", nil, 1); !errors.Is(err, ErrTooMany) {
			t.Errorf("got %v", err)
		}
		time.Sleep(tokenLife + time.Second)

		if _, ok := tokens.redeem(path); ok {
			t.Error("redeemed too late")
		}
		if _, err := tokens.issue("exec", nil, 1); err != nil {
			t.Errorf("after the others expired: %v", err)
		}
	})
}

// TestSlowReaderGetsAll ends a session of which the client has read nothing
// yet, and keeps sending as a proxy does: nevertheless it gets the output
// and the exit code.
func TestSlowReaderGetsAll(t *testing.T) {
	const size = 8 << 20
	l := newListener(listenLoopback(t), time.Minute)
	defer l.closeAll()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}

	go func() {
		server.Write(make([]byte, size))
		server.Close()
	}()

	got := 0
	for buf := make([]byte, 256<<10); ; time.Sleep(100 * time.Millisecond) {
		if _, err := client.Write([]byte("more")); err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		n, err := client.Read(buf)
		got += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("after %d bytes of %d: %v", got, size, err)
		}
	}

	if got != size {
		t.Errorf("%d bytes of %d", got, size)
	}
}

func listenLoopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
