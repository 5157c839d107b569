package stdio

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// maxBacklog is how much of a container's output may wait for an attached
// client, in bytes of each stream.
const maxBacklog = 4 << 20

// backlog is output that waits for a client, so that the writer does not.
type backlog struct {
	max int

	mu    sync.Mutex
	more  *sync.Cond
	data  bytes.Buffer
	ended bool // nothing is added any more
	over  bool // it did not suffice
}

func newBacklog(max int) *backlog {
	b := &backlog{max: max}
	b.more = sync.NewCond(&b.mu)
	return b
}

// fill reads until the end, or until there is too much.
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

// empty writes what comes until the end.
func (b *backlog) empty(to io.Writer) error {
	buf := make([]byte, 64<<10)
	for {
		b.mu.Lock()
		for b.data.Len() == 0 && !b.ended {
			b.more.Wait()
		}

		n, _ := b.data.Read(buf) // it ends with nothing
		b.mu.Unlock()
		if n == 0 {
			return nil
		}

		if _, err := to.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// drop ends both sides and forgets what waits.
func (b *backlog) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.data.Reset()
	b.more.Broadcast()
}

// lost is ErrSlow if the client has not got all.
func (b *backlog) lost() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		return nil
	}
	return fmt.Errorf("%w: it was more than %d bytes behind, and has not got the output from there on", ErrSlow, b.max)
}
