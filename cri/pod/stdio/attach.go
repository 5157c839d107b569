package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"crisp/runtime/keeper/client"
)

// lostTime is how long after the end of an attached output it takes to detect
// that the keeper's connection was lost, which may be the cause.
const lostTime = 100 * time.Millisecond

// Container is the container that a client attaches to.
type Container struct {
	ID     string
	Keeper *client.Link
	// TTY means that the output is one stream; with Once the end of the first
	// client's input closes the container's.
	TTY, Once bool
	// Stdin is the write end of the container's input, nil if that is not open,
	// Terminal its terminal, nil without one.
	Stdin, Terminal *os.File
	// Exited is closed when the container has exited.
	Exited <-chan struct{}
}

// Attach connects a client to the container through the current keeper, and
// through the next one if that dies. It returns when the container exits, the
// client disconnects, or ctx ends, whose cause is the error then; forever is
// the daemon's own context.
func (c *Container) Attach(ctx, forever context.Context, st Streams) error {
	stopResize := followResize(c.Terminal, st.Resize)
	defer stopResize()
	k := conversation{c: c, st: st}
	if st.Stdout == nil && st.Stderr == nil {
		return k.listen(ctx, c.feed(forever, st.Stdin))
	}

	for again := false; ; again = true {
		keeper, err := k.connect(ctx)
		if again && (errors.Is(err, client.ErrNotRunning) || errors.Is(err, client.ErrNotFound)) {
			return nil // it exited meanwhile
		}
		if err != nil {
			return err
		}

		if !again { // not before its output can be received
			c.feed(forever, st.Stdin)
		}
		if over, err := k.converse(ctx); over || err != nil {
			return err
		}

		select {
		case <-keeper.Done():
		case <-time.After(lostTime):
			return nil // the output has ended, not the keeper
		}
	}
}

// conversation is a client attached to a container.
type conversation struct {
	c  *Container
	st Streams

	readers [2]*os.File // stdout, stderr
}

// connect has the keeper copy the output to new pipes.
func (k *conversation) connect(ctx context.Context) (keeper *client.Client, err error) {
	var writers [2]*os.File
	k.readers = writers
	defer func() {
		closeAll(writers)
		if err != nil {
			closeAll(k.readers)
		}
	}()

	for i, want := range []bool{k.st.Stdout != nil, k.st.Stderr != nil && !k.c.TTY} {
		if !want {
			continue
		}
		r, w, err := Pipe()
		if err != nil {
			return nil, err
		}

		writers[i] = w
		if k.readers[i], err = Polled(r); err != nil {
			return nil, err
		}
	}

	err = k.c.Keeper.Retry(ctx, func(c *client.Client) error {
		keeper = c
		return c.Attach(ctx, k.c.ID, writers[0], writers[1])
	})
	return keeper, err
}

func closeAll(files [2]*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// listen serves a client that only writes, until its input ends.
func (k *conversation) listen(ctx context.Context, input <-chan struct{}) error {
	select {
	case <-input:
	case <-k.c.Exited:
	case <-ctx.Done():
		return whyEnded(ctx)
	}
	return nil
}

// converse moves bytes until the output ends; over means that the container has
// exited or the client has disconnected.
func (k *conversation) converse(ctx context.Context) (over bool, err error) {
	var backlogs []*backlog
	var filling, emptying sync.WaitGroup
	gone := make(chan struct{}, 2)
	for i, to := range []io.Writer{k.st.Stdout, k.st.Stderr} {
		from := k.readers[i]
		if from == nil {
			continue
		}

		b := newBacklog(maxBacklog)
		backlogs = append(backlogs, b)
		filling.Go(func() { b.fill(from) })
		emptying.Go(func() {
			if b.empty(to) != nil {
				gone <- struct{}{}
			}
		})
	}

	filled, emptied := closedAfter(&filling), closedAfter(&emptying)
	defer func() {
		for _, b := range backlogs {
			b.drop()
		}
		<-emptied
	}()

	over, err = k.await(ctx, filled, gone)
	for _, f := range k.readers {
		if f != nil {
			f.SetReadDeadline(time.Now())
		}
	}

	<-filled
	for _, f := range k.readers {
		if client.OutputLost(f) {
			err = errors.Join(err, fmt.Errorf("%w: the output came faster than the client read it", ErrSlow))
		}
	}

	closeAll(k.readers)
	if err != nil {
		return over, err
	}

	// The client gets the rest, however slow it is.
	select {
	case <-emptied:
	case <-gone:
		over = true
	case <-ctx.Done():
		return true, whyEnded(ctx)
	}

	for _, b := range backlogs {
		err = errors.Join(err, b.lost())
	}
	return over || err != nil, err
}

// await waits until there is no more output to come, or no client for it.
func (k *conversation) await(ctx context.Context, filled, gone <-chan struct{}) (over bool, err error) {
	select {
	case <-filled:
		return false, nil
	case <-gone:
		return true, nil
	case <-k.c.Exited:
		// The keeper closes its ends after the last output.
		select {
		case <-filled:
		case <-time.After(attachDrain):
		}
		return true, nil
	case <-ctx.Done():
		return true, whyEnded(ctx)
	}
}

func closedAfter(wg *sync.WaitGroup) <-chan struct{} {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	return done
}

// whyEnded is the cause of the end of a session's context, nil if its client
// has disconnected.
func whyEnded(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// attachDrain bounds the wait for a container's last output after its exit.
const attachDrain = 2 * time.Second

// feed copies a client's input to the container. With stdin_once its end closes
// the container's input.
func (c *Container) feed(ctx context.Context, from io.Reader) <-chan struct{} {
	if from == nil {
		return nil
	}
	done := make(chan struct{})

	// Not waited for: a client that sends nothing blocks its read forever.
	go func() {
		defer close(done)
		io.Copy(c.Stdin, from)
		if !c.Once || c.TTY {
			return
		}

		c.Stdin.Close()
		err := c.Keeper.Retry(ctx, func(k *client.Client) error { return k.CloseKept(ctx, c.ID, "stdin") })
		if err != nil {
			klog.ErrorS(err, "Could not close a container's input", "container", c.ID)
		}
	}()

	return done
}
