package portforward_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"crisp/network/netns"
	"crisp/network/netns/netnstest"
	"crisp/network/portforward"
	"crisp/test/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// serve runs handle for each connection to a port of localhost.
func serve(t *testing.T, ns *os.File, network, host string, handle func(*net.TCPConn)) int {
	t.Helper()
	var l net.Listener
	listen := func() error {
		var err error
		l, err = net.Listen(network, net.JoinHostPort(host, "0"))
		return err
	}

	var err error
	if ns == nil {
		err = listen()
	} else {
		err = netns.Do(ns, listen)
	}
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
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})

	return l.Addr().(*net.TCPAddr).Port
}

// stream is a client's stream like those of SPDY: closing it ends what is
// sent to the client, resetting it ends both directions.
type stream struct {
	fromClient *io.PipeReader
	toClient   *io.PipeWriter
	mu         sync.Mutex
	closed     bool
}

// client is the other end.
type client struct {
	*io.PipeWriter
	io.Reader
	out    *io.PipeReader
	stream *stream
}

func newStream() (*stream, *client) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	s := &stream{fromClient: inR, toClient: outW}
	return s, &client{PipeWriter: inW, Reader: outR, out: outR, stream: s}
}

func (s *stream) Read(p []byte) (int, error)  { return s.fromClient.Read(p) }
func (s *stream) Write(p []byte) (int, error) { return s.toClient.Write(p) }

func (s *stream) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

func (s *stream) IsFinished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *stream) Close() error {
	s.finish()
	return s.toClient.Close()
}

func (s *stream) Reset() error {
	s.fromClient.Close()
	return s.Close()
}

// reset is what arrives of a reset by the client: data ends as if it were
// complete, and data in the other direction is thrown away.
func (c *client) reset() {
	c.PipeWriter.Close()
	c.stream.finish()
	go io.Copy(io.Discard, c.out)
}

// forward runs Forward and returns what waits for its end.
func forward(t *testing.T, ctx context.Context, ns *os.File, port int) (*client, func() error) {
	t.Helper()
	s, c := newStream()
	done := make(chan error, 1)
	go func() { done <- portforward.Forward(ctx, ns, port, s) }()
	return c, func() error {
		t.Helper()
		select {
		case err := <-done:
			return err
		case <-time.After(30 * time.Second):
			t.Fatal("forwarding does not end")
			return nil
		}
	}
}

func echo(conn *net.TCPConn) { io.Copy(conn, conn) }

func TestForwardIntoNamespace(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	for _, family := range []struct{ network, host string }{{"tcp4", "127.0.0.1"}, {"tcp6", "::1"}} {
		t.Run(family.network, func(t *testing.T) {
			ns := netnstest.New(t)
			port := serve(t, ns, family.network, family.host, echo)
			c, wait := forward(t, t.Context(), ns, port)
			go func() {
				c.Write([]byte("hello"))
				c.PipeWriter.Close()
			}()

			if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
				t.Errorf("got %q, %v", got, err)
			}
			if err := wait(); err != nil {
				t.Error(err)
			}

			if _, err := portforward.Dial(t.Context(), nil, port); err == nil {
				t.Error("the port is reachable from the host")
			}
		})
	}
}

func TestForwardToTheHost(t *testing.T) {
	port := serve(t, nil, "tcp4", "127.0.0.1", echo)
	c, wait := forward(t, t.Context(), nil, port)
	go func() {
		c.Write([]byte("hello"))
		c.PipeWriter.Close()
	}()
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}

func TestForwardToNobody(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	_, wait := forward(t, t.Context(), netnstest.New(t), 80)
	if err := wait(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
}

func TestDialRefusesWhatIsNoPort(t *testing.T) {
	for _, port := range []int{-1, 0, 65536} {
		if _, err := portforward.Dial(t.Context(), nil, port); !errors.Is(err, portforward.ErrInvalidPort) {
			t.Errorf("%d: %v", port, err)
		}
	}
}

// The client ends first and gets an answer that takes its time.
func TestClientEndsFirst(t *testing.T) {
	port := serve(t, nil, "tcp4", "127.0.0.1", func(conn *net.TCPConn) {
		asked, _ := io.ReadAll(conn)
		time.Sleep(500 * time.Millisecond)
		conn.Write(append([]byte("re: "), asked...))
	})

	c, wait := forward(t, t.Context(), nil, port)
	go func() {
		c.Write([]byte("question"))
		c.PipeWriter.Close()
	}()

	if got, err := io.ReadAll(c); err != nil || string(got) != "re: question" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
}

// The pod ends first and goes on reading.
func TestPodEndsFirst(t *testing.T) {
	read := make(chan string, 1)
	port := serve(t, nil, "tcp4", "127.0.0.1", func(conn *net.TCPConn) {
		conn.Write([]byte("bye"))
		conn.CloseWrite()
		rest, _ := io.ReadAll(conn)
		read <- string(rest)
	})

	c, wait := forward(t, t.Context(), nil, port)
	if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
		t.Errorf("got %q, %v", got, err)
	}

	c.Write([]byte("still here"))
	c.PipeWriter.Close()
	if got := <-read; got != "still here" {
		t.Errorf("the pod read %q", got)
	}

	if err := wait(); err != nil {
		t.Error(err)
	}
}

func TestPodResets(t *testing.T) {
	port := serve(t, nil, "tcp4", "127.0.0.1", func(conn *net.TCPConn) {
		io.ReadFull(conn, make([]byte, 1))
		conn.SetLinger(0)
	})

	c, wait := forward(t, t.Context(), nil, port)
	go func() {
		for {
			if _, err := c.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	}()

	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
	if err := wait(); err != nil {
		t.Errorf("one broken connection would end the client's others: %v", err)
	}
}

// A pod that sends for ever, or that never ends its side, must not keep the
// stream of a client that is gone.
func TestClientResets(t *testing.T) {
	for name, handle := range map[string]func(*net.TCPConn, <-chan struct{}){
		"busy pod": func(conn *net.TCPConn, _ <-chan struct{}) {
			for {
				if _, err := conn.Write(make([]byte, 1000)); err != nil {
					return
				}
			}
		},
		"deaf pod": func(conn *net.TCPConn, release <-chan struct{}) {
			conn.Write([]byte("x"))
			<-release
		},
	} {
		t.Run(name, func(t *testing.T) {
			release := make(chan struct{})
			defer close(release)
			port := serve(t, nil, "tcp4", "127.0.0.1", func(conn *net.TCPConn) { handle(conn, release) })
			c, wait := forward(t, t.Context(), nil, port)
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}

			c.reset()
			if err := wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestContextEndsForward(t *testing.T) {
	ended := make(chan struct{})
	port := serve(t, nil, "tcp4", "127.0.0.1", func(conn *net.TCPConn) {
		io.Copy(io.Discard, conn)
		close(ended)
	})

	ctx, cancel := context.WithCancel(t.Context())
	c, wait := forward(t, ctx, nil, port)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	cancel()

	if err := wait(); err != nil {
		t.Error(err)
	}
	<-ended
}

func TestManyForwardsKeepTheirBytes(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	ns := netnstest.New(t)
	port := serve(t, ns, "tcp4", "127.0.0.1", echo)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			data := make([]byte, 200_000+i)
			rand.Read(data)
			c, wait := forward(t, t.Context(), ns, port)
			go func() {
				io.Copy(c.PipeWriter, bytes.NewReader(data))
				c.PipeWriter.Close()
			}()

			sum := sha256.New()
			if n, err := io.Copy(sum, c.Reader); err != nil || n != int64(len(data)) || [32]byte(sum.Sum(nil)) != sha256.Sum256(data) {
				t.Errorf("%s of %d bytes, %v, or others", strconv.FormatInt(n, 10), len(data), err)
			}
			if err := wait(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
