package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Defaults of [Options].
const (
	defaultAddr            = "127.0.0.1:0"
	defaultIdleTimeout     = 4 * time.Hour
	defaultCreationTimeout = 30 * time.Second
	defaultHelloTimeout    = 10 * time.Second
)

// farewellTime is how long sessions may take to end, and to notify their
// client, when the server stops.
const farewellTime = 2 * time.Second

// maxHeader bounds the head of a request.
const maxHeader = 64 << 10

// Options of a [Server]. The zero value serves on a free port of loopback.
type Options struct {
	// Addr is the address to listen on. A client needs a URL that was issued,
	// but the data is not encrypted.
	Addr string
	// IdleTimeout closes a connection that carries nothing for so long.
	IdleTimeout time.Duration
	// CreationTimeout is how long a client may take to open its streams.
	CreationTimeout time.Duration
	// HelloTimeout is how long a client may be connected until it has sent a
	// request for a URL that was issued.
	HelloTimeout time.Duration
}

// Runtime runs the sessions of the server.
type Runtime interface {
	// Exec runs a command in a container. Streams that the client did not
	// ask for are nil or discard what they get. An exit code other than zero
	// is returned as [*ExitError].
	Exec(ctx context.Context, containerID string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	// Attach connects to a running container until it ends or ctx does.
	Attach(ctx context.Context, containerID string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	// PortForward carries one connection to a port of a pod. It is called
	// concurrently.
	PortForward(ctx context.Context, podSandboxID string, port int32, stream io.ReadWriteCloser) error
}

// Server issues URLs and serves them. It is safe for concurrent use.
type Server struct {
	options  Options
	runtime  Runtime
	tokens   *tokens
	listener *listener
	http     *http.Server
	sessions group
	// served is closed, with err set, when the server accepts no more.
	served chan struct{}
	err    error
}

// Start listens and begins to serve.
func Start(o Options, rt Runtime) (*Server, error) {
	if o.Addr == "" {
		o.Addr = defaultAddr
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = defaultIdleTimeout
	}
	if o.CreationTimeout == 0 {
		o.CreationTimeout = defaultCreationTimeout
	}
	if o.HelloTimeout == 0 {
		o.HelloTimeout = defaultHelloTimeout
	}

	inner, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("serve streams: %w", err)
	}

	s := &Server{
		options:  o,
		runtime:  rt,
		tokens:   newTokens(),
		listener: newListener(inner, o.HelloTimeout),
		served:   make(chan struct{}),
	}

	s.http = &http.Server{
		Handler:           s.handler(),
		ConnContext:       connContext,
		ConnState:         connState,
		ReadHeaderTimeout: o.HelloTimeout,
		IdleTimeout:       o.HelloTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(io.Discard, "", 0),
	}

	go func() {
		defer close(s.served)
		if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			s.err = fmt.Errorf("serve streams: %w", err)
		}
	}()
	return s, nil
}

// Stop ends all sessions and waits until their handlers have returned, or ctx
// ends. Clients are notified that their command was cut short: to them, a
// closed connection alone looks like success.
func (s *Server) Stop(ctx context.Context) error {
	err := s.http.Close()
	s.listener.hangUp()
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		<-s.served
		s.sessions.wait()
		close(ended)
		s.listener.closing.Wait()
	}()

	select {
	case <-ended:
	case <-time.After(farewellTime):
	case <-ctx.Done():
	}

	s.listener.closeAll()
	select {
	case <-done:
		return errors.Join(s.err, err)
	case <-ctx.Done():
		return fmt.Errorf("stop streams: %w", ctx.Err())
	}
}

// GetExec returns the URL to run a command at. The runtime finds the issuer in the
// [Session] of its context.
func (s *Server) GetExec(issuer any, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := validate(req.GetContainerId(), req.GetTty(), req.GetStdin(), req.GetStdout(), req.GetStderr()); err != nil {
		return nil, err
	}
	url, err := s.url("exec", issuer, req)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// GetAttach returns the URL to attach to a container at.
func (s *Server) GetAttach(issuer any, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := validate(req.GetContainerId(), req.GetTty(), req.GetStdin(), req.GetStdout(), req.GetStderr()); err != nil {
		return nil, err
	}
	url, err := s.url("attach", issuer, req)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

// GetPortForward returns the URL to reach the ports of a pod at.
func (s *Server) GetPortForward(issuer any, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if req.GetPodSandboxId() == "" {
		return nil, fmt.Errorf("%w: no pod", ErrInvalid)
	}
	url, err := s.url("portforward", issuer, req)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}

func validate(container string, tty, stdin, stdout, stderr bool) error {
	switch {
	case container == "":
		return fmt.Errorf("%w: container is missing", ErrInvalid)
	case tty && stderr:
		return fmt.Errorf("%w: a terminal has no separate stderr", ErrInvalid)
	case !stdin && !stdout && !stderr:
		return fmt.Errorf("%w: none of stdin, stdout and stderr", ErrInvalid)
	}
	return nil
}

func (s *Server) url(verb string, issuer, req any) (string, error) {
	path, err := s.tokens.issue(verb, issuer, req)
	if err != nil {
		return "", err
	}
	return "http://" + s.listener.Addr().String() + path, nil
}

// handler serves a path once, for the request that it was issued for.
func (s *Server) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		own, ok := r.Context().Value(connKey{}).(*conn)
		if !ok {
			http.Error(w, "unknown connection", http.StatusInternalServerError)
			return
		}

		if r.Method != http.MethodGet && r.Method != http.MethodPost {
			w.Header().Set("Connection", "close")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}

		issued, ok := s.tokens.redeem(r.URL.Path)
		if !ok || !s.listener.admit(own) || !s.sessions.begin() {
			w.Header().Set("Connection", "close")
			http.NotFound(w, r)
			return
		}
		defer s.sessions.end()
		s.session(w, r, own, issued)
	})
}

// session serves a request with a context that ends with its connection, and
// releases both.
func (s *Server) session(w http.ResponseWriter, r *http.Request, own *conn, issued issuedToken) {
	ctx, cancel := own.watch(context.WithValue(r.Context(), sessionKey{}, Session{issued.issuer, r.RemoteAddr}))
	defer cancel()
	s.serve(w, r.WithContext(ctx), issued.req)
	// The protocol's code leaves the connection open when the client does not
	// open its streams in time.
	if own.hijacked.Load() {
		own.Close()
	} else {
		s.listener.expel(own)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, req any) {
	o := s.options
	switch req := req.(type) {
	case *runtimeapi.ExecRequest:
		streams := &remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
		if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
			s.serveWebSocket(w, r, streams, func(ctx context.Context, in io.Reader, out, errw io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
				return s.runtime.Exec(ctx, req.ContainerId, req.Cmd, in, out, errw, req.Tty, resize)
			})
			return
		}

		remotecommand.ServeExec(w, r, executor{s.runtime}, "", "", req.ContainerId, req.Cmd, streams,
			o.IdleTimeout, o.CreationTimeout, remotecommand.SupportedStreamingProtocols)
	case *runtimeapi.AttachRequest:
		streams := &remotecommand.Options{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, TTY: req.Tty}
		if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
			s.serveWebSocket(w, r, streams, func(ctx context.Context, in io.Reader, out, errw io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
				return s.runtime.Attach(ctx, req.ContainerId, in, out, errw, req.Tty, resize)
			})
			return
		}

		remotecommand.ServeAttach(w, r, executor{s.runtime}, "", "", req.ContainerId, streams,
			o.IdleTimeout, o.CreationTimeout, remotecommand.SupportedStreamingProtocols)
	case *runtimeapi.PortForwardRequest:
		ctx, cancel := context.WithCancel(r.Context())
		f := &forwarder{ctx: ctx, runtime: s.runtime}
		serve := func(w http.ResponseWriter, r *http.Request) {
			portforward.ServePortForward(w, r, f, req.PodSandboxId, "", &portforward.V4Options{Ports: req.Port},
				o.IdleTimeout, o.CreationTimeout, portforward.SupportedProtocols)
		}

		if isTunnel(r) {
			serveTunnel(w, r, serve)
		} else {
			serve(w, r)
		}
		cancel()
		f.forwards.wait()
	}
}

// Session is whose a session is.
type Session struct {
	// Issuer is what the URL was issued with.
	Issuer any
	// Client is the address of the client, HOST:PORT.
	Client string
}

// sessionKey is the context's key of a session.
type sessionKey struct{}

// SessionOf is the session that a [Runtime] was called in.
func SessionOf(ctx context.Context) Session {
	s, _ := ctx.Value(sessionKey{}).(Session)
	return s
}

// executor drives the runtime for one exec or attach.
type executor struct{ runtime Runtime }

var (
	_ remotecommand.Executor = executor{}
	_ remotecommand.Attacher = executor{}
)

func (e executor) ExecInContainer(ctx context.Context, _, _, container string, cmd []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	err := e.runtime.Exec(ctx, container, cmd, in, out, errw, tty, resize)
	// The protocol's code checks the error itself, not what it wraps.
	var exit *ExitError
	if errors.As(err, &exit) {
		return exit
	}
	return err
}

func (e executor) AttachContainer(ctx context.Context, _, _, container string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return e.runtime.Attach(ctx, container, in, out, errw, tty, resize)
}

// forwarder carries the connections of one port-forward session. The
// protocol's code passes a context that never ends and does not wait for the
// connections; this does.
type forwarder struct {
	ctx      context.Context
	runtime  Runtime
	forwards group
}

var _ portforward.PortForwarder = (*forwarder)(nil)

func (f *forwarder) PortForward(_ context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	if !f.forwards.begin() {
		return context.Canceled
	}
	defer f.forwards.end()

	err := f.runtime.PortForward(f.ctx, pod, port, stream)
	if err == nil && errors.Is(context.Cause(f.ctx), ErrStopping) {
		err = ErrStopping
	}
	if err != nil {
		// The protocol's code now resets the stream. If that overtakes the
		// reply that the stream is open, the client gets no other message; a
		// write waits until that reply is sent.
		stream.Write(nil)
	}

	return err
}

// group counts tasks; after wait was called no task can start.
type group struct {
	mu     sync.Mutex
	closed bool
	tasks  sync.WaitGroup
}

func (g *group) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.tasks.Add(1)
	}
	return !g.closed
}

func (g *group) end() { g.tasks.Done() }

func (g *group) wait() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.tasks.Wait()
}
