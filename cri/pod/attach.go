package pod

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/keeper/client"
)

// Attach connects a client to a running container's standard streams until
// the container ends, the client goes, or ctx ends. Nothing that was written
// before is replayed; a client that reads too slowly loses output rather than
// hold up the container.
func (m *Manager) Attach(ctx context.Context, id string, st Streams) error {
	p, id, err := m.container(id)
	if err != nil {
		return err
	}
	c, pr := p.record().Container(id), p.process(id)
	if c == nil || pr == nil || c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("attach to container %s: it is not running: %w", id, ErrState)
	}
	if st.Stdin != nil && pr.stdin == nil {
		return fmt.Errorf("attach to container %s: its standard input is not open: %w", id, ErrState)
	}
	if err := m.attach(ctx, c, pr, st); err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	return nil
}

func (m *Manager) attach(ctx context.Context, c *Container, pr *process, st Streams) error {
	var readers, writers [2]*os.File // stdout, stderr
	closeAll := func(files [2]*os.File) {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}
	for i, want := range []bool{st.Stdout != nil, st.Stderr != nil && !c.Config.Msg.GetTty()} {
		if !want {
			continue
		}
		r, w, err := pipe()
		if err == nil {
			writers[i] = w
			readers[i], err = polled(r)
		}
		if err != nil {
			closeAll(readers)
			closeAll(writers)
			return err
		}
	}
	err := m.Keeper.insist(ctx, func(k *client.Client) error { return k.Attach(ctx, c.ID, writers[0], writers[1]) })
	closeAll(writers)
	if err != nil {
		closeAll(readers)
		return err
	}
	defer closeAll(readers)
	stopResize := followResize(pr.terminal, st.Resize)
	defer stopResize()
	return m.converse(ctx, c, pr, st, readers)
}

// converse moves bytes until the container's output ends, the client is gone,
// or, for a client that only writes, its input ends.
func (m *Manager) converse(ctx context.Context, c *Container, pr *process, st Streams, readers [2]*os.File) error {
	gone := make(chan struct{}, 2)
	var out sync.WaitGroup
	for i, to := range []io.Writer{st.Stdout, st.Stderr} {
		if from := readers[i]; from != nil {
			out.Go(func() {
				if _, err := io.Copy(to, from); err != nil {
					gone <- struct{}{}
				}
			})
		}
	}
	var drained chan struct{} // never, if there is no output to wait for
	if readers[0] != nil || readers[1] != nil {
		drained = make(chan struct{})
		go func() { out.Wait(); close(drained) }()
		defer func() {
			for _, f := range readers {
				if f != nil {
					f.SetReadDeadline(time.Now())
				}
			}
			<-drained
		}()
	}
	input := m.feed(c, pr, st.Stdin)
	for {
		select {
		case <-drained:
			return nil
		case <-gone:
			return nil
		case <-pr.exited:
			if drained == nil {
				return nil
			}
			// The keeper closes its ends when the last output is out.
			select {
			case <-drained:
			case <-time.After(attachDrain):
			}
			return nil
		case <-input:
			if drained == nil {
				return nil
			}
			input = nil
		case <-ctx.Done():
			return nil
		}
	}
}

// attachDrain bounds the wait for a container's last output after its end.
const attachDrain = 2 * time.Second

// feed copies a client's input to the container. With stdin_once its end is
// the end of the container's input.
func (m *Manager) feed(c *Container, pr *process, from io.Reader) <-chan struct{} {
	if from == nil {
		return nil
	}
	done := make(chan struct{})
	// Not waited for: a client that sends nothing blocks its read for ever.
	go func() {
		defer close(done)
		io.Copy(pr.stdin, from)
		if c.Config.Msg.GetStdinOnce() && !c.Config.Msg.GetTty() {
			pr.stdin.Close()
			err := m.Keeper.insist(m.ctx, func(k *client.Client) error { return k.CloseKept(m.ctx, c.ID, "stdin") })
			warn(err, "close a container's input", "container", c.ID)
		}
	}()
	return done
}
