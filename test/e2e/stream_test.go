package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// dialer creates a session client for one of the two transports.
type dialer func(cfg *rest.Config, u *url.URL) (remotecommand.Executor, error)

func dialSPDY(cfg *rest.Config, u *url.URL) (remotecommand.Executor, error) {
	return remotecommand.NewSPDYExecutor(cfg, http.MethodPost, u)
}

// dialWebSocket requests the same protocol version as client-go and crictl.
func dialWebSocket(cfg *rest.Config, u *url.URL) (remotecommand.Executor, error) {
	return remotecommand.NewWebSocketExecutor(cfg, http.MethodGet, u.String())
}

// dialWebSocket4 requests the previous version.
func dialWebSocket4(cfg *rest.Config, u *url.URL) (remotecommand.Executor, error) {
	return remotecommand.NewWebSocketExecutorForProtocols(cfg, http.MethodGet, u.String(), "v4.channel.k8s.io")
}

// session connects to a session's URL and stays until it ends.
func (d dialer) session(t *testing.T, address string, o remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	client, err := d(&rest.Config{}, u)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(callTime))
	defer cancel()
	return client.StreamWithContext(ctx, o)
}

// execURL requests an exec session.
func (c *container) execURL(t *testing.T, o remotecommand.StreamOptions, cmd ...string) string {
	t.Helper()
	return call(t, c.p.n.Runtime.Exec, &runtimeapi.ExecRequest{
		ContainerId: c.id, Cmd: cmd, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	}).Url
}

func (c *container) attachURL(t *testing.T, o remotecommand.StreamOptions) string {
	t.Helper()
	return call(t, c.p.n.Runtime.Attach, &runtimeapi.AttachRequest{
		ContainerId: c.id, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	}).Url
}

func TestStreams(t *testing.T) {
	n := newNode(t, lab.Options{})
	for name, d := range map[string]dialer{"SPDY": dialSPDY, "WebSocket": dialWebSocket, "WebSocket 4": dialWebSocket4} {
		n.run(t, name, func(t *testing.T) { testSessions(t, n, d) })
	}

	for name, d := range map[string]dialer{"SPDY": dialSPDY, "WebSocket": dialWebSocket} {
		// WebSockets cannot signal the end of the input before version 5.
		n.run(t, "end of input, "+name, func(t *testing.T) { testEndOfInput(t, n, d) })
		n.run(t, "slow client, "+name, func(t *testing.T) { testSlowClient(t, n, d) })
	}

	n.run(t, "URL is good once", func(t *testing.T) {
		var out bytes.Buffer
		o := remotecommand.StreamOptions{Stdout: &out}
		u := n.pod(t).start(t).execURL(t, o, "true")
		if err := dialer(dialSPDY).session(t, u, o); err != nil {
			t.Error(err)
		}

		if err := dialer(dialSPDY).session(t, u, o); err == nil {
			t.Error("a second client was let in")
		}
	})

	n.run(t, "client hangs up", func(t *testing.T) { testHangUp(t, n) })
	n.run(t, "port forward", func(t *testing.T) { testPortForward(t, n) })
}

func testSessions(t *testing.T, n *node, d dialer) {
	p := n.pod(t)
	c := p.start(t)
	var out, errs bytes.Buffer
	t.Run("exec", func(t *testing.T) {
		o := remotecommand.StreamOptions{Stdin: strings.NewReader("to be sorted\nare these\n"), Stdout: &out, Stderr: &errs}
		err := d.session(t, c.execURL(t, o, "sh", "-c", "head -n 2 | sort; echo done >&2; exit 42"), o)
		var exit utilexec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 42 {
			t.Errorf("got %v, want exit code 42", err)
		}

		if out.String() != "are these\nto be sorted\n" || errs.String() != "done\n" {
			t.Errorf("got %q and %q", out.String(), errs.String())
		}
	})

	t.Run("terminal", func(t *testing.T) {
		out.Reset()
		in, typed := io.Pipe()
		defer typed.Close()
		o := remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: &sizes{{Width: 123, Height: 45}}}
		go fmt.Fprint(typed, "word\r")
		const script = `until [ "$(stty size)" = "45 123" ]; do sleep 0.02; done; read x; echo $x; tty; echo $TERM`
		if err := d.session(t, c.execURL(t, o, "sh", "-c", script), o); err != nil {
			t.Error(err)
		}

		if want := "word\r\n/dev/pts/0\r\nxterm\r\n"; !strings.HasSuffix(out.String(), want) {
			t.Errorf("got %q, want it to end with %q", out.String(), want)
		}
	})

	t.Run("attach", func(t *testing.T) {
		out.Reset()
		head := p.start(t, named("head"), sh("head -n 1; echo bye"), func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
		o := remotecommand.StreamOptions{Stdin: strings.NewReader("hello\n"), Stdout: &out}
		if err := d.session(t, head.attachURL(t, o), o); err != nil {
			t.Error(err)
		}

		head.wantEnd(t, 0, "Completed")
		if got := head.logged(t); got != "hello\nbye\n" || out.String() != got {
			t.Errorf("attached to %q, logged %q, want both", out.String(), got)
		}
	})

	t.Run("attach to a terminal", func(t *testing.T) {
		out.Reset()
		shell := p.start(t, named("shell"), sh("read x; echo got $x"), func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true })
		o := remotecommand.StreamOptions{Stdin: strings.NewReader("word\r"), Stdout: &out, Tty: true}
		if err := d.session(t, shell.attachURL(t, o), o); err != nil {
			t.Error(err)
		}

		if !strings.HasSuffix(out.String(), "got word\r\n") {
			t.Errorf("got %q", out.String())
		}
		shell.wantEnd(t, 0, "Completed")
	})
}

// testEndOfInput closes the input and expects the rest of the output.
func testEndOfInput(t *testing.T, n *node, d dialer) {
	p := n.pod(t)
	var out bytes.Buffer
	o := remotecommand.StreamOptions{Stdin: strings.NewReader("to be sorted\nare these\n"), Stdout: &out}
	if err := d.session(t, p.start(t).execURL(t, o, "sort"), o); err != nil || out.String() != "are these\nto be sorted\n" {
		t.Errorf("exec: got %q, %v", out.String(), err)
	}
	out.Reset()
	o.Stdin = strings.NewReader("to be sorted\nare these\n")
	sort := p.start(t, named("sort"), sh("sort"), func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	if err := d.session(t, sort.attachURL(t, o), o); err != nil || out.String() != "are these\nto be sorted\n" {
		t.Errorf("attach: got %q, %v", out.String(), err)
	}
	sort.wantEnd(t, 0, "Completed")
}

// sizes are the sizes that a terminal takes.
type sizes []remotecommand.TerminalSize

func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(*s) == 0 {
		return nil
	}
	next := (*s)[0]
	*s = (*s)[1:]
	return &next
}

// testHangUp has clients disconnect while commands run, which are killed then.
// slowly is a writer that accepts little data at a time.
type slowly struct{ bytes.Buffer }

func (s *slowly) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / (2 << 20)) // 2 MiB/s
	return s.Buffer.Write(p)
}

// testSlowClient requires every byte, and the exit code, however slowly a
// client reads.
func testSlowClient(t *testing.T, n *node, d dialer) {
	const size = 5 << 20
	var out, errs slowly
	o := remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}
	p := n.pod(t)
	err := d.session(t, p.start(t).execURL(t, o, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero; echo end; echo other >&2; exit 7", size)), o)
	var exit utilexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("exec: got %v, want exit code 7", err)
	}

	if out.Len() != size+4 || !strings.HasSuffix(out.String(), "\x00end\n") || errs.String() != "other\n" {
		t.Errorf("exec: %d bytes of %d, and %q", out.Len(), size+4, errs.String())
	}

	// A terminal translates a newline into two bytes.
	out.Reset()
	err = d.session(t, p.start(t, named("terminal")).execURL(t, remotecommand.StreamOptions{Stdout: &out, Tty: true}, "sh", "-c", "head -c 1000000 /dev/zero; echo end; exit 7"),
		remotecommand.StreamOptions{Stdout: &out, Tty: true})

	if !errors.As(err, &exit) || exit.Code != 7 || out.Len() != 1000005 {
		t.Errorf("terminal: %d bytes of 1000005, %v", out.Len(), err)
	}

	out.Reset()
	o = remotecommand.StreamOptions{Stdin: strings.NewReader("go\n"), Stdout: &out}
	c := p.start(t, named("attach"), sh("read go; head -c 3000000 /dev/zero; echo end"), func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	if err := d.session(t, c.attachURL(t, o), o); err != nil || out.Len() != 3000004 {
		t.Errorf("attach: %d bytes of 3000004, %v", out.Len(), err)
	}

	// One that falls too far behind gets an error.
	out.Reset()
	o.Stdin = strings.NewReader("go\n")
	c = p.start(t, named("behind"), sh("read go; head -c 30000000 /dev/zero; echo end"), func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	err = d.session(t, c.attachURL(t, o), o)
	t.Logf("a client of 2 MiB/s has %d of 30000004 bytes: %v", out.Len(), err)

	if told := err != nil && strings.Contains(err.Error(), "too slowly"); !told && (err != nil || out.Len() != 30000004) {
		t.Errorf("attach: %d bytes of 30000004, %v", out.Len(), err)
	}
}

func testHangUp(t *testing.T, n *node) {
	c := n.pod(t).start(t)
	for _, tty := range []bool{true, false} {
		in, typed := io.Pipe()
		defer typed.Close()
		o := remotecommand.StreamOptions{Stdin: in, Stdout: io.Discard, Tty: tty}
		u, err := url.Parse(c.execURL(t, o, "sh", "-c", "cat; sleep 4321"))
		if err != nil {
			t.Fatal(err)
		}

		client, err := dialSPDY(&rest.Config{}, u)
		if err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- client.StreamWithContext(ctx, o) }()
		running := func() bool { return strings.Contains(c.sh(t, "ps -o args"), "sh -c cat") }
		eventually(t, "the command runs", running)
		cancel()
		<-ended
		eventually(t, fmt.Sprintf("the command is gone (terminal: %t)", tty), func() bool { return !running() })
	}
}

// testPortForward fetches a page through a forwarded port, over several
// connections.
func testPortForward(t *testing.T, n *node) {
	n.pull(t, nginx)
	p := n.pod(t)
	c := p.start(t, func(c *runtimeapi.ContainerConfig) { c.Image.Image, c.Command = nginx, nil })
	eventually(t, "the server listens", func() bool { return strings.Contains(c.sh(t, "cat /proc/net/tcp"), ":0050 ") })
	address, stop, ended := p.forward(t, 80)
	for range 3 {
		fetch(t, address)
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// forward forwards a port of the pod to a local address until stop is closed or
// it fails, and returns the error.
func (p *pod) forward(t *testing.T, port int32) (address string, stop chan<- struct{}, ended <-chan error) {
	t.Helper()
	u, err := url.Parse(call(t, p.n.Runtime.PortForward, &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{port}}).Url)
	if err != nil {
		t.Fatal(err)
	}

	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}

	quit, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u), []string{fmt.Sprintf("0:%d", port)}, quit, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}

	result := make(chan error, 1)
	go func() { result <- forwarder.ForwardPorts() }()
	<-ready
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}

	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), quit, result
}

// fetch gets the web server's page over a connection of its own.
func fetch(t *testing.T, host string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: callTime}
	r, err := client.Get("http://" + host + "/")
	if err != nil {
		t.Error(err)
		return
	}
	defer r.Body.Close()
	if page, err := io.ReadAll(r.Body); err != nil || !strings.Contains(string(page), "It works.") {
		t.Errorf("got page %q, %v", page, err)
	}
}
