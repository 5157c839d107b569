package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/span"
	"crisp/runtime/wire"
)

// Client is a connection to a keeper. Its methods may be used concurrently.
type Client struct {
	conn   *wire.Conn
	pid    int       // the keeper's process
	keeper *exec.Cmd // the keeper if this process started it
	exits  chan Exit
	done   chan struct{}
	quit   chan struct{}
	wg     sync.WaitGroup
	once   sync.Once

	mu    sync.Mutex
	seq   uint32           // guarded by mu
	calls map[uint32]*call // guarded by mu; nil once the connection is lost
	queue []Exit           // guarded by mu; exits not yet delivered
	wake  chan struct{}    // has a token when queue grew
}

func newClient(conn *wire.Conn, keeper *exec.Cmd) *Client {
	c := &Client{
		conn: conn, pid: conn.Peer(), keeper: keeper,
		exits: make(chan Exit), done: make(chan struct{}), quit: make(chan struct{}),
		calls: make(map[uint32]*call), wake: make(chan struct{}, 1),
	}
	c.wg.Go(c.receive)
	c.wg.Go(c.deliver)
	return c
}

// Done is closed when the keeper is gone or the client is closed.
func (c *Client) Done() <-chan struct{} { return c.done }

// Events delivers exits in the order in which the keeper reported them, each
// after the last byte of the process's output is in its log. The channel is
// closed after Done, when all that had arrived is delivered.
func (c *Client) Events() <-chan Exit { return c.exits }

// Close ends the connection. The keeper and all that it holds keep running.
func (c *Client) Close() error {
	c.once.Do(func() { close(c.quit) })
	err := c.conn.Close()
	c.wg.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// End asks a keeper that this process started to exit, waits until it has, and
// closes the connection. The keeper exits when none of its processes is left.
func (c *Client) End(ctx context.Context) error {
	if c.keeper == nil {
		return fmt.Errorf("end keeper: %w: it was started by another process", ErrInvalid)
	}
	if err := c.keeper.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end keeper: %w", err)
	}

	select {
	case <-c.done:
		for range c.exits { // exits not received
		}
		c.wg.Wait()
		return c.Close()
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("end keeper: %w", ctx.Err()), c.Close())
	}
}

// receive passes every packet to the call that waits for it.
func (c *Client) receive() {
	for {
		p, err := c.conn.Recv()
		if err != nil {
			break
		}

		if x, ok := p.Msg.(wire.Exited); ok {
			p.Files.Close()
			c.push(exitOf(x))
			continue
		}

		c.mu.Lock()
		k := c.calls[p.Seq]
		c.mu.Unlock()
		if k == nil {
			p.Files.Close()
			continue
		}

		select {
		case k.answers <- p:
		case <-k.over:
			p.Files.Close()
		case <-c.quit:
			p.Files.Close()
		}
	}
	c.conn.Close()

	c.mu.Lock()
	c.calls = nil
	c.mu.Unlock()
	close(c.done)

	if c.keeper != nil {
		c.reap()
	}
}

// reapPeriod is the polling interval for a keeper's exit.
const reapPeriod = 20 * time.Millisecond

// reap reaps a keeper that this process started. It may still run if the
// connection ended for another reason; Close does not wait for it then.
func (c *Client) reap() {
	// Errors mean that it was reaped already.
	defer func() { _ = c.keeper.Process.Release() }()
	tick := time.NewTicker(reapPeriod)
	defer tick.Stop()

	for {
		pid, err := unix.Wait4(c.keeper.Process.Pid, nil, unix.WNOHANG, nil)
		if pid != 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}

		select {
		case <-c.quit:
			return
		case <-tick.C:
		}
	}
}

func (c *Client) push(x Exit) {
	c.mu.Lock()
	c.queue = append(c.queue, x)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// deliver feeds the events channel, so that a slow reader of it delays no call.
func (c *Client) deliver() {
	defer close(c.exits)
	for {
		c.mu.Lock()
		queue := c.queue
		c.queue = nil
		c.mu.Unlock()

		for _, x := range queue {
			select {
			case c.exits <- x:
			case <-c.quit:
				return
			}
		}

		if len(queue) > 0 {
			continue
		}
		select {
		case <-c.wake:
		case <-c.quit:
			return
		case <-c.done:
			c.mu.Lock()
			rest := len(c.queue)
			c.mu.Unlock()
			if rest == 0 {
				return
			}
		}
	}
}

// call is a request under way.
type call struct {
	c       *Client
	seq     uint32
	answers chan wire.Packet
	over    chan struct{} // closed when the call no longer waits for answers
}

func (c *Client) begin() (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls == nil {
		return nil, ErrUnsent
	}
	c.seq++
	if c.seq == 0 {
		c.seq = 1
	}
	k := &call{c: c, seq: c.seq, answers: make(chan wire.Packet), over: make(chan struct{})}
	c.calls[k.seq] = k
	return k, nil
}

// end forgets the call; later answers are dropped.
func (k *call) end() {
	k.c.mu.Lock()
	delete(k.c.calls, k.seq)
	k.c.mu.Unlock()
	close(k.over)
}

func (k *call) send(m wire.Message, files wire.Files) error {
	if err := k.c.conn.Send(k.seq, m, files); err != nil {
		if errors.Is(err, wire.ErrProtocol) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrUnsent, err)
	}
	return nil
}

// next waits for an answer. A Fail is returned as its error.
func (k *call) next(ctx context.Context) (wire.Packet, error) {
	select {
	case p := <-k.answers:
		if f, ok := p.Msg.(wire.Fail); ok {
			p.Files.Close()
			return wire.Packet{}, f
		}
		return p, nil
	case <-k.c.done:
		return wire.Packet{}, ErrLost
	case <-ctx.Done():
		return wire.Packet{}, ctx.Err()
	}
}

// simple sends a request that is answered by Done, what names it in traces.
func (c *Client) simple(ctx context.Context, what string, m wire.Message, out outgoing) (err error) {
	ctx, end := span.Start(ctx, what)
	defer func() { end(err) }()
	if out.err != nil {
		return out.err
	}

	k, err := c.begin()
	if err != nil {
		return err
	}
	defer k.end()

	err = k.send(m, out.files)
	out.close()
	if err != nil {
		return err
	}

	p, err := k.next(ctx)
	p.Files.Close()
	return err
}

// ReopenLog makes a container's log continue in out.
func (c *Client) ReopenLog(ctx context.Context, id string, out *os.File) error {
	var files outgoing
	files.add(wire.Log, out)
	if err := c.simple(ctx, "keeper reopen", wire.Reopen{ID: id}, files); err != nil {
		return fmt.Errorf("reopen log of %s: %w", id, err)
	}
	return nil
}

// OutputLost reports whether the pipe of which r is the read end was closed
// because its reader was too slow for the output.
func OutputLost(r *os.File) bool {
	if r == nil {
		return false
	}
	st, err := r.Stat()
	return err == nil && st.Mode().Perm() == wire.OutputLost
}

// Attach copies what a container writes from now on to stdout and stderr, write
// ends of pipes of which either may be nil. They are closed when the output
// ends, or when a reader is too slow, which [OutputLost] reports. The caller
// should close its own copies, which the keeper makes nonblocking.
func (c *Client) Attach(ctx context.Context, id string, stdout, stderr *os.File) error {
	var files outgoing
	for i, f := range []*os.File{stdout, stderr} {
		if f != nil {
			files.add(wire.Streams()[i].Sinks, f)
		}
	}
	if err := c.simple(ctx, "keeper attach", wire.Attach{ID: id}, files); err != nil {
		return fmt.Errorf("attach to %s: %w", id, err)
	}
	return nil
}

// CloseKept closes the keeper's copy of a kept descriptor.
func (c *Client) CloseKept(ctx context.Context, id, name string) error {
	if err := c.simple(ctx, "keeper close", wire.CloseKept{ID: id, Name: name}, outgoing{}); err != nil {
		return fmt.Errorf("close %s of %s: %w", name, id, err)
	}
	return nil
}

// Forget drops the descriptors and the exit record of id. It returns
// [ErrRunning] while its process lives; an unknown ID is not an error.
func (c *Client) Forget(ctx context.Context, id string) error {
	if err := c.simple(ctx, "keeper forget", wire.Forget{ID: id}, outgoing{}); err != nil {
		return fmt.Errorf("forget %s: %w", id, err)
	}
	return nil
}

// Adopt hands an entry of a keeper that died to this one, which continues where
// the other stopped. The files stay the caller's. The exit code of a process
// that is not the keeper's child is 255 where the kernel does not report it.
func (c *Client) Adopt(ctx context.Context, a Adoption) error {
	m, files := a.message()
	if err := c.simple(ctx, "keeper adopt", m, files); err != nil {
		return fmt.Errorf("adopt %s: %w", a.ID, err)
	}
	return nil
}

// Replace makes another child of the keeper's the process of an entry, with the output
// and the terminal that it has. The process that was it must have cloned that one as its
// sibling, and its own exit is no longer reported. The files stay the caller's.
func (c *Client) Replace(ctx context.Context, a Adoption) error {
	m, files := a.message()
	if err := c.simple(ctx, "keeper replace", wire.Replace{ID: m.ID, Pid: m.Started.Pid, MaxLine: m.MaxLine}, files); err != nil {
		return fmt.Errorf("replace the process of %s: %w", a.ID, err)
	}
	return nil
}

// List returns everything that the keeper holds.
func (c *Client) List(ctx context.Context) (list []Entry, err error) {
	defer func() {
		if err != nil {
			for i := range list {
				list[i].Close()
			}
			list, err = nil, fmt.Errorf("list held processes: %w", err)
		}
	}()

	k, err := c.begin()
	if err != nil {
		return nil, err
	}
	defer k.end()

	if err := k.send(wire.List{}, nil); err != nil {
		return nil, err
	}
	for {
		p, err := k.next(ctx)
		if err != nil {
			return list, err
		}

		switch m := p.Msg.(type) {
		case wire.Entry:
			e, err := entryOf(m, p.Files)
			if err != nil {
				return list, err
			}
			list = append(list, e)
		default:
			p.Files.Close()
			return list, nil
		}
	}
}

// Start runs a plan. When ctx ends the start is cancelled, and Start returns
// once it is known whether the plan ran; if it had, Start succeeds.
func (c *Client) Start(ctx context.Context, r Request) (_ *Started, err error) {
	ctx, end := span.Start(ctx, "keeper start")
	defer func() { end(err) }()
	m, out, err := r.message()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", r.ID, err)
	}

	k, err := c.begin()
	if err != nil {
		out.close()
		return nil, fmt.Errorf("start %s: %w", r.ID, err)
	}
	defer k.end()

	err = k.send(m, out.files)
	out.close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", r.ID, err)
	}
	return c.await(ctx, k, &r)
}

func (c *Client) await(ctx context.Context, k *call, r *Request) (*Started, error) {
	var cause error // why the start was cancelled
	for {
		p, err := k.next(ctx)
		if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			cause = err
			ctx = context.WithoutCancel(ctx)
			if err := k.send(wire.Cancel{}, nil); err != nil {
				return nil, fmt.Errorf("start %s: %w", r.ID, err)
			}
			continue
		}
		if err != nil {
			return nil, startError(r, cause, err)
		}

		switch m := p.Msg.(type) {
		case wire.Started:
			return startedOf(r, m, p.Files)
		case wire.Waiting:
			refused, err := c.atGate(ctx, k, r, m, p.Files)
			if refused != nil {
				cause = refused
			}
			if err != nil {
				return nil, startError(r, cause, err)
			}
		default:
			p.Files.Close()
			return nil, fmt.Errorf("start %s: %w: unexpected %T", r.ID, wire.ErrProtocol, m)
		}
	}
}

// atGate decides whether a child that waits may continue, and tells the keeper.
// refused is why it may not; err is the end of the start, if it fails meanwhile.
func (c *Client) atGate(ctx context.Context, k *call, r *Request, m wire.Waiting, files wire.Files) (refused, err error) {
	w := Waiting{Step: int(m.Step), Pid: int(m.Pid), PidFD: takeFile(&files, wire.PidFD)}
	files.Close()
	defer closeFiles(w.PidFD)

	var decide func(context.Context) error
	switch {
	case !m.Asks && r.Gate != nil:
		decide = func(context.Context) error { return r.Gate(w.Pid) }
	case m.Asks && r.Ask != nil && w.PidFD != nil:
		decide = func(ctx context.Context) error { return r.Ask(ctx, w) }
	default:
		return nil, fmt.Errorf("start %s: %w: keeper reports a gate that was not requested", r.ID, wire.ErrProtocol)
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	decided := make(chan error, 1)
	go func() { decided <- decide(ctx) }()

	select {
	case refused := <-decided:
		if err := k.send(wire.Proceed{OK: refused == nil}, nil); err != nil {
			return nil, fmt.Errorf("start %s: %w", r.ID, err)
		}
		return refused, nil
	case p := <-k.answers: // the child has died
		p.Files.Close()
		cancel()
		<-decided
		if f, ok := p.Msg.(wire.Fail); ok {
			return nil, f
		}
		return nil, fmt.Errorf("start %s: %w: unexpected %T", r.ID, wire.ErrProtocol, p.Msg)
	case <-c.done:
		cancel()
		<-decided
		return nil, ErrLost
	}
}

// startError returns the error of a failed start. A plan's own error names the
// plan; a cancelled start has its cause.
func startError(r *Request, cause, err error) error {
	if cause != nil {
		return fmt.Errorf("%s: %w", r.Plan.Name, cause)
	}
	return err
}

func exitOf(x wire.Exited) Exit {
	return Exit{
		ID: x.ID, Kind: x.Kind, Pid: int(x.Pid),
		Code: int(x.Code), Signal: int(x.Signal), At: time.Unix(0, x.At),
		OOMKills: uint64(max(0, x.OOMKills)),
	}
}

// startedOf reads the reply to a request.
func startedOf(r *Request, m wire.Started, files wire.Files) (*Started, error) {
	err := m.Check(files)
	if err == nil && r.Terminal && !files.Has(wire.Terminal) {
		err = errors.New("no terminal")
	}
	if err != nil {
		files.Close()
		return nil, fmt.Errorf("start %s: read reply: %w: %w", r.ID, wire.ErrProtocol, err)
	}

	s := takeStarted(m, &files)
	return &s, nil
}

func takeStarted(m wire.Started, files *wire.Files) Started {
	return Started{
		Pid: int(m.Pid), StartedAt: time.Unix(0, m.At),
		PidFD: takeFile(files, wire.PidFD), Terminal: takeFile(files, wire.Terminal), Namespaces: takeFamily(files, wire.Namespace),
	}
}

func entryOf(m wire.Entry, files wire.Files) (Entry, error) {
	if err := m.Check(files); err != nil {
		files.Close()
		return Entry{}, fmt.Errorf("read entry: %w: %w", wire.ErrProtocol, err)
	}

	e := Entry{
		ID: m.ID, Kind: m.Kind, Dropped: m.Dropped,
		Started: takeStarted(m.Started, &files), Log: takeLog(&files), Kept: takeFamily(&files, wire.Kept),
	}
	if m.Exit != nil {
		x := exitOf(*m.Exit)
		e.Exit = &x
	}
	return e, nil
}
