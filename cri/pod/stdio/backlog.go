package stdio

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// maxBacklog bounds the output that is buffered for an attached client, in
// bytes per stream.
const maxBacklog = 4 << 20

// backlog buffers output for a client, so that the writer does not block.
type backlog struct {
	max int

	mu    sync.Mutex
	more  *sync.Cond
	data  bytes.Buffer
	ended bool // no more output is added
	over  bool // the limit was exceeded
}

func newBacklog(max int) *backlog {
	b := &backlog{max: max}
	b.more = sync.NewCond(&b.mu)
	return b
}

// fill reads until the end, or until the limit is exceeded.
func (b *backlog) fill(from io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		b.mu.Lock()
		if b.data.Len()+n > b.max {
			b.over, n = true, 0
		}

		b.data.Write(buf[:n])
		b.ended = b.ended || err != nil || b.over
		ended := b.ended
		b.more.Broadcast()
		b.mu.Unlock()
		if ended {
			return
		}
	}
}

// empty writes the buffered output until the end.
func (b *backlog) empty(to io.Writer) error {
	buf := make([]byte, 64<<10)
	for {
		b.mu.Lock()
		for b.data.Len() == 0 && !b.ended {
			b.more.Wait()
		}

		n, _ := b.data.Read(buf) // returns io.EOF only when empty
		b.mu.Unlock()
		if n == 0 {
			return nil
		}

		if _, err := to.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// drop ends both sides and discards the buffer.
func (b *backlog) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.data.Reset()
	b.more.Broadcast()
}

// lost returns ErrSlow if the client did not get all output.
func (b *backlog) lost() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		return nil
	}
	return fmt.Errorf("%w: it was more than %d bytes behind, and missed the output from there on", ErrSlow, b.max)
}
