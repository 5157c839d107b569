package layer

import "io"

const (
	aheadChunk  = 128 << 10
	aheadChunks = 6
)

// readAhead reads its source in a goroutine of its own, a bounded number of bytes
// ahead of the reader, so that the stages of unpacking run concurrently.
type readAhead struct {
	full chan chunk
	free chan []byte
	stop chan struct{}
	done chan struct{}

	cur chunk
	off int
}

type chunk struct {
	data []byte
	err  error
}

func newReadAhead(src io.Reader) *readAhead {
	a := &readAhead{
		full: make(chan chunk, aheadChunks),
		free: make(chan []byte, aheadChunks),
		stop: make(chan struct{}),
		done: make(chan struct{}),
	}
	for range aheadChunks {
		a.free <- nil // allocated on first use
	}
	go a.fill(src)
	return a
}

func (a *readAhead) fill(src io.Reader) {
	defer close(a.done)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.stop:
			return
		}

		if buf == nil {
			buf = make([]byte, aheadChunk)
		}
		n, err := readSome(src, buf[:aheadChunk])
		select {
		case a.full <- chunk{buf[:n], err}:
		case <-a.stop:
			return
		}

		if err != nil {
			return
		}
	}
}

// readSome fills buf until the source ends. Unlike io.ReadFull it returns the
// source's own error.
func readSome(src io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = src.Read(buf[n:])
		n += m
	}
	return n, err
}

// Read returns what was read ahead.
func (a *readAhead) Read(p []byte) (int, error) {
	for a.off == len(a.cur.data) {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.data != nil {
			a.free <- a.cur.data[:0]
		}

		select {
		case a.cur = <-a.full:
		case <-a.done:
			// The last chunk may have been sent just before.
			select {
			case a.cur = <-a.full:
			default:
				return 0, io.ErrClosedPipe
			}
		}
		a.off = 0
	}

	n := copy(p, a.cur.data[a.off:])
	a.off += n
	return n, nil
}

// Close stops the goroutine and waits for it; later reads fail. The caller makes
// sure that the source's Read returns.
func (a *readAhead) Close() {
	close(a.stop)
	<-a.done
}
