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

// lostTime is how long after the end of an attached output the loss of the
// connection to the keeper, which may be why it ended, takes to be noticed.
const lostTime = 100 * time.Millisecond

// Container is what a client attaches to.
type Container struct {
	ID     string
	Keeper *client.Link
	// TTY says that the output is one stream; with Once the end of the first
	// client's input is that of the container's.
	TTY, Once bool
	// Stdin is the write end of the container's input, nil if that is not open,
	// Terminal its terminal, nil without one.
	Stdin, Terminal *os.File
	// Exited is closed when the container has ended.
	Exited <-chan struct{}
}

// Attach connects a client to the container by the present keeper, and by the
// next one if that dies. It returns when the container ends, the client goes, or
// ctx ends, whose cause is the error then; forever is the daemon's own context.
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
			return nil // it ended meanwhile
		}
		if err != nil {
			return err
		}

		if !again { // not before the answer to it can be heard
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

// converse moves bytes until the output ends, which is over if the container
// has ended or the client is gone.
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
			err = errors.Join(err, fmt.Errorf("%w: the output came faster than it could be passed on", ErrSlow))
		}
	}

	closeAll(k.readers)
	if err != nil {
		return over, err
	}

	// The rest is the client's, however slow it is.
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
		// The keeper closes its ends when the last output is out.
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

// whyEnded is the reason for which a session's context ended, nil if its
// client has gone.
func whyEnded(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// attachDrain bounds the wait for a container's last output after its end.
const attachDrain = 2 * time.Second

// feed copies a client's input to the container. With stdin_once its end is
// the end of the container's input.
func (c *Container) feed(ctx context.Context, from io.Reader) <-chan struct{} {
	if from == nil {
		return nil
	}
	done := make(chan struct{})

	// Not waited for: a client that sends nothing blocks its read for ever.
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
