package stdio

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// TestBacklog buffers output that a slow client has not read, up to a limit,
// and never blocks the writer.
func TestBacklog(t *testing.T) {
	const limit = 100_000
	for name, c := range map[string]struct {
		size int
		lost error
	}{"as much as there is room": {limit, nil}, "a byte more": {limit + 1, ErrSlow}} {
		b := newBacklog(limit)
		b.fill(strings.NewReader(strings.Repeat("x", c.size))) // it returns although there is no reader
		var out bytes.Buffer
		if err := b.empty(&out); err != nil {
			t.Error(err)
		}

		if err := b.lost(); !errors.Is(err, c.lost) || c.lost == nil && out.Len() != c.size {
			t.Errorf("%s: %d bytes came, %v", name, out.Len(), err)
		}
	}

	// Dropping it unblocks both sides.
	b := newBacklog(limit)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() { b.fill(r); close(done) }()

	emptied := make(chan error)
	go func() { emptied <- b.empty(io.Discard) }()
	b.drop()
	w.Close()

	for range 2 {
		select {
		case err := <-emptied:
			if err != nil {
				t.Error(err)
			}
		case <-done:
			done = nil
		case <-time.After(30 * time.Second):
			t.Fatal("one side has not ended")
		}
	}
}
