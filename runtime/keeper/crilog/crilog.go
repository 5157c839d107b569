// Package crilog writes container output in the log format of the CRI:
//
//	2026-01-02T15:04:05.000000000Z stdout F a whole line
//	2026-01-02T15:04:05.000000001Z stdout P the beginning of a long line
//
// A line longer than the limit is split into P (partial) pieces and a last F
// (full) piece; output that ends without a newline ends with a P piece, so
// that the bytes can be put together again exactly.
//
// Every write(2) to the file holds whole lines, so the file can be exchanged
// between any two writes. A file that refuses a write (a full disk) costs the
// lines of that write, which are counted; it never holds up the container,
// and what was written of a torn line is cut off again.
package crilog

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultMaxLine is the length at which lines are split.
	DefaultMaxLine = 16 << 10
	// maxMaxLine bounds the memory of an unfinished line.
	maxMaxLine = 1 << 20
	// flushSize is how much is gathered for one write.
	flushSize = 64 << 10
	// keepTail is the largest buffer that an idle stream keeps.
	keepTail = 256
)

// Buffers lends out the memory in which writes are gathered, to all logs together.
type Buffers struct{ pool sync.Pool }

func (b *Buffers) get() *[]byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return buf
	}
	buf := make([]byte, 0, flushSize+DefaultMaxLine)
	return &buf
}

func (b *Buffers) put(buf *[]byte) {
	if cap(*buf) > 2*flushSize {
		return
	}
	*buf = (*buf)[:0]
	b.pool.Put(buf)
}

// Log is a log file with the streams that go into it.
type Log struct {
	maxLine int
	buffers *Buffers
	dropped atomic.Uint64

	mu     sync.Mutex
	fd     int    // guarded by mu; -1 once closed
	torn   bool   // guarded by mu; the file ends within a line that could not be cut off
	second int64  // guarded by mu; the time that stamp shows
	stamp  []byte // guarded by mu; date and time without the fraction
}

// Stream is one of the outputs that a log mixes. It belongs to the Log that
// its name is written to first.
type Stream struct {
	name string
	tail []byte // guarded by Log.mu; an unfinished line
}

// NewStream returns a stream; name is stdout or stderr.
func NewStream(name string) *Stream { return &Stream{name: name} }

// New returns a log that appends to fd, which it owns. A maxLine of 0 means
// the default, a negative one no limit as far as memory allows.
func New(fd, maxLine int, buffers *Buffers) *Log {
	switch {
	case maxLine == 0:
		maxLine = DefaultMaxLine
	case maxLine < 0 || maxLine > maxMaxLine:
		maxLine = maxMaxLine
	}
	return &Log{fd: fd, maxLine: maxLine, buffers: buffers}
}

// Write logs output of a stream. An unfinished last line waits for its rest.
func (l *Log) Write(s *Stream, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	buf := l.buffers.get()
	defer l.buffers.put(buf)
	for len(data) > 0 {
		line, rest, full := bytes.Cut(data, []byte{'\n'})
		data = rest
		for len(s.tail)+len(line) > l.maxLine {
			n := l.maxLine - len(s.tail)
			l.emit(buf, s, 'P', line[:n])
			line = line[n:]
		}
		if full {
			l.emit(buf, s, 'F', line)
		} else {
			s.tail = append(s.tail, line...)
		}
	}
	l.flush(buf)
	if len(s.tail) == 0 && cap(s.tail) > keepTail {
		s.tail = nil
	}
}

// End logs the unfinished line of a stream, if it has one.
func (l *Log) End(s *Stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(s.tail) == 0 {
		return
	}
	buf := l.buffers.get()
	defer l.buffers.put(buf)
	l.emit(buf, s, 'P', nil)
	l.flush(buf)
	s.tail = nil
}

// Reopen makes the log go on in fd, which it owns from now on. It is false,
// and fd is closed, if the log is closed.
func (l *Log) Reopen(fd int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		unix.Close(fd)
		return false
	}
	unix.Close(l.fd)
	l.fd, l.torn = fd, false
	return true
}

// Dropped returns how many lines could not be written.
func (l *Log) Dropped() uint64 {
	return l.dropped.Load()
}

// Close closes the file. Output that comes later is dropped.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		unix.Close(l.fd)
	}
	l.fd = -1
}

// emit adds a line made of the stream's tail and part.
func (l *Log) emit(buf *[]byte, s *Stream, tag byte, part []byte) {
	b := l.appendTime(*buf, time.Now())
	b = append(b, ' ')
	b = append(b, s.name...)
	b = append(b, ' ', tag, ' ')
	b = append(b, s.tail...)
	b = append(b, part...)
	*buf = append(b, '\n')
	s.tail = s.tail[:0]
	if len(*buf) >= flushSize {
		l.flush(buf)
	}
}

// appendTime adds the time in UTC with nine digits of fraction.
func (l *Log) appendTime(b []byte, t time.Time) []byte {
	if s := t.Unix(); s != l.second || l.stamp == nil {
		l.second = s
		l.stamp = t.UTC().AppendFormat(l.stamp[:0], "2006-01-02T15:04:05.")
	}
	b = append(b, l.stamp...)
	n := t.Nanosecond()
	var digits [10]byte
	digits[9] = 'Z'
	for i := 8; i >= 0; i-- {
		digits[i] = byte('0' + n%10)
		n /= 10
	}
	return append(b, digits[:]...)
}

// flush writes the gathered lines and empties buf.
func (l *Log) flush(buf *[]byte) {
	b := *buf
	*buf = b[:0]
	if len(b) == 0 {
		return
	}
	if l.fd < 0 {
		l.dropped.Add(uint64(bytes.Count(b, []byte{'\n'})))
		return
	}
	if l.torn {
		if n, _ := write(l.fd, []byte{'\n'}); n == 1 {
			l.torn = false
		}
	}
	n, err := write(l.fd, b)
	if err == nil {
		return
	}
	whole := bytes.LastIndexByte(b[:n], '\n') + 1
	l.dropped.Add(uint64(bytes.Count(b[whole:], []byte{'\n'})))
	if n > whole {
		l.torn = !cut(l.fd, int64(n-whole))
	}
}

// write writes all of b and returns how much of it was written.
func write(fd int, b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(fd, b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// cut takes the last n bytes off a file.
func cut(fd int, n int64) bool {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size < n {
		return false
	}
	return unix.Ftruncate(fd, st.Size-n) == nil
}
