// Package crilog writes container output in the log format of the CRI:
//
//	2026-01-02T15:04:05.000000000Z stdout F a whole line
//	2026-01-02T15:04:05.000000001Z stdout P the beginning of a long line
//
// A line longer than the limit is split into P (partial) pieces and a last F
// (full) piece; output that ends without a newline ends with a P piece, so that
// the original bytes can be reassembled exactly.
//
// Every write(2) to the file holds whole lines, so the file can be reopened
// between any two writes. A partial write (a full disk) is cut off again, and
// the bytes stay in the stream's spool for a retry. The spool also makes sure
// that each byte is logged once even if this process is killed.
package crilog

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/spool"
)

const (
	// DefaultMaxLine is the length at which lines are split.
	DefaultMaxLine = 16 << 10
	// maxMaxLine bounds the memory of an unfinished line, and is what "no limit" means.
	maxMaxLine = 16 << 20
	// flushSize is how much is buffered for one write.
	flushSize = 64 << 10
)

// Buffers is a pool of write buffers that all logs share.
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
	where  spool.Write // guarded by mu; the last write
	null   bool        // guarded by mu; not a regular file: it has no size
	failed *Stream     // guarded by mu; its write failed and is not undone yet; without a spool once it has left
	second int64       // guarded by mu; the Unix time of stamp
	stamp  []byte      // guarded by mu; date and time without the fraction

	// fd is written with both locks, so that it can be copied while a write waits for the disk.
	fdMu sync.Mutex
	fd   int // -1 once closed
}

// Stream is one of the outputs that a log mixes.
type Stream struct {
	name    string
	spool   *spool.Spool
	scanned int // held bytes known to have no newline
}

// NewStream returns a stream; name is stdout or stderr.
func NewStream(name string, s *spool.Spool) *Stream { return &Stream{name: name, spool: s} }

// MaxLine returns the length in bytes at which lines are split for the
// requested n: 0 means the default, a negative n no limit, that is 16 MiB.
func MaxLine(n int) int {
	switch {
	case n == 0:
		return DefaultMaxLine
	case n < 0 || n > maxMaxLine:
		return maxMaxLine
	}
	return n
}

// New returns a log of streams that appends to fd, which it owns. Lines are
// split earlier than at maxLine if a stream's spool has no room for that.
func New(fd, maxLine int, buffers *Buffers, streams ...*Stream) (*Log, error) {
	l := &Log{fd: -1, maxLine: MaxLine(maxLine), buffers: buffers}
	for _, s := range streams {
		l.maxLine = min(l.maxLine, s.spool.MaxLine())
		l.where.Seq = max(l.where.Seq, s.spool.Seq())
	}
	if err := l.use(fd); err != nil {
		return nil, err
	}

	for _, s := range streams {
		if err := l.resume(s); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// resume takes over a write that an earlier keeper left unfinished and that could not
// be cut off: nothing is written before it is. In a former log it stays.
func (l *Log) resume(s *Stream) error {
	w, unfinished := s.spool.Unfinished()
	if !unfinished {
		return nil
	}
	if w.Dev != l.where.Dev || w.Ino != l.where.Ino {
		return s.spool.Retract()
	}
	l.failed, l.where.Offset, l.where.Length = s, w.Offset, w.Length
	return nil
}

// use makes fd the file. Both locks are held, or the log is not published yet.
func (l *Log) use(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return fmt.Errorf("examine log: %w", err)
	}
	if l.fd >= 0 {
		unix.Close(l.fd)
	}
	l.fd, l.null = fd, st.Mode&unix.S_IFMT != unix.S_IFREG
	l.where.Dev, l.where.Ino = uint64(st.Dev), st.Ino
	return nil
}

// Write logs what the stream's spool holds, except an unfinished last line.
// After an error the rest is still held, to be written by the next call.
func (l *Log) Write(s *Stream) error { return l.write(s, false) }

// End is Write including an unfinished last line.
func (l *Log) End(s *Stream) error { return l.write(s, true) }

func (l *Log) write(s *Stream, all bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	buf := l.buffers.get()
	defer l.buffers.put(buf)

	held := s.spool.Held()
	taken := 0 // how many bytes of held are in buf
	for {
		part, tag, n := l.next(s, held[taken:], all)
		if n == 0 {
			break
		}

		l.emit(buf, s.name, tag, part)
		s.scanned = 0
		taken += n
		if len(*buf) >= flushSize {
			if err := l.flush(buf, s, taken); err != nil {
				return err
			}
			held, taken = s.spool.Held(), 0
		}
	}

	return l.flush(buf, s, taken)
}

// next returns the content of the first line, its tag, and how many bytes it
// takes up with its end; none if b begins with an unfinished line.
func (l *Log) next(s *Stream, b []byte, all bool) (part []byte, tag byte, n int) {
	if end := min(len(b), l.maxLine+1); s.scanned < end {
		if i := bytes.IndexByte(b[s.scanned:end], '\n'); i >= 0 {
			i += s.scanned
			return b[:i], 'F', i + 1
		}
	}

	switch {
	case len(b) > l.maxLine:
		return b[:l.maxLine], 'P', l.maxLine
	case all:
		return b, 'P', len(b)
	}

	s.scanned = len(b)
	return nil, 0, 0
}

// Drop discards what the stream's spool holds, except an unfinished line.
func (l *Log) Drop(s *Stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := s.spool.Held()
	taken, lines := 0, 0
	for {
		_, _, n := l.next(s, held[taken:], false)
		if n == 0 {
			break
		}
		s.scanned = 0
		taken += n
		lines++
	}

	s.spool.Advance(taken)
	l.dropped.Add(uint64(lines))
}

// Reopen continues the log in fd, which it owns from now on. It is false, and
// fd is closed, if the log is closed.
func (l *Log) Reopen(fd int) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fdMu.Lock()
	defer l.fdMu.Unlock()

	if l.fd < 0 {
		unix.Close(fd)
		return false, nil
	}

	if err := l.mend(); err != nil && l.failed != nil && !l.isFile(fd) {
		// The former file keeps a torn line, which the spool records as written.
		if err := l.retract(); err != nil {
			unix.Close(fd)
			return true, err
		}
	}

	return true, l.use(fd)
}

// isFile reports whether a descriptor is of the file that is written.
func (l *Log) isFile(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && uint64(st.Dev) == l.where.Dev && st.Ino == l.where.Ino
}

// Copy returns a copy of the file's descriptor, -1 once closed. It never waits
// for a disk.
func (l *Log) Copy() (int, error) {
	l.fdMu.Lock()
	defer l.fdMu.Unlock()
	if l.fd < 0 {
		return -1, nil
	}
	fd, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("copy descriptor of log: %w", err)
	}
	return fd, nil
}

// TryLock pauses the log until Unlock, unless it is in use.
func (l *Log) TryLock() bool { return l.mu.TryLock() }

// Lock is TryLock that waits.
func (l *Log) Lock() { l.mu.Lock() }

// Unlock resumes the log.
func (l *Log) Unlock() { l.mu.Unlock() }

// FD is the file's descriptor, -1 once closed. The log must be locked.
func (l *Log) FD() int { return l.fd }

// MaxLine is the length at which lines are split.
func (l *Log) MaxLine() int { return l.maxLine }

// AddDropped adds lines that an earlier keeper dropped.
func (l *Log) AddDropped(n uint64) { l.dropped.Add(n) }

// Dropped returns how many lines were dropped.
func (l *Log) Dropped() uint64 {
	return l.dropped.Load()
}

// Close closes the file. Output that comes later is dropped.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fdMu.Lock()
	defer l.fdMu.Unlock()
	if l.fd >= 0 {
		unix.Close(l.fd)
	}
	l.fd = -1
}

// emit adds a line.
func (l *Log) emit(buf *[]byte, stream string, tag byte, part []byte) {
	b := l.appendTime(*buf, time.Now())
	b = append(b, ' ')
	b = append(b, stream...)
	b = append(b, ' ', tag, ' ')
	b = append(b, part...)
	*buf = append(b, '\n')
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

// flush writes the buffered lines, which hold the first n bytes of the stream's
// spool, and empties buf.
func (l *Log) flush(buf *[]byte, s *Stream, n int) error {
	b := *buf
	*buf = b[:0]
	if n == 0 {
		return nil
	}
	if l.fd < 0 {
		l.dropped.Add(uint64(bytes.Count(b, []byte{'\n'})))
	} else if err := l.append(b, s, n); err != nil {
		s.scanned = 0
		return err
	}
	s.spool.Advance(n)
	return nil
}

// append appends b to the file as a whole or not at all.
func (l *Log) append(b []byte, s *Stream, n int) error {
	if l.null {
		_, err := write(l.fd, b)
		return err
	}

	if err := l.mend(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(l.fd, &st); err != nil {
		return fmt.Errorf("examine log: %w", err)
	}

	l.where.Seq++
	l.where.Offset, l.where.Length = st.Size, int64(len(b))
	if err := s.spool.Intend(l.where, n); err != nil {
		return err
	}

	_, err := write(l.fd, b)
	if err == nil {
		return nil
	}

	l.failed = s
	if cerr := l.mend(); cerr != nil {
		return fmt.Errorf("write log: %w; %w", err, cerr)
	}
	return fmt.Errorf("write log: %w", err)
}

// mend undoes a failed write, if there is one. Nothing may be written before:
// the file's size would make the write look complete.
func (l *Log) mend() error {
	if l.failed == nil {
		return nil
	}
	var st unix.Stat_t
	err := unix.Fstat(l.fd, &st)
	if err == nil && st.Size > l.where.Offset {
		err = unix.Ftruncate(l.fd, l.where.Offset)
	}
	if err != nil {
		return fmt.Errorf("cut unfinished write off log: %w", err)
	}

	return l.retract()
}

// retract has the failed stream's spool record that its write is undone.
func (l *Log) retract() error {
	if s := l.failed.spool; s != nil {
		if err := s.Retract(); err != nil {
			return err
		}
	}
	l.failed = nil
	return nil
}

// Leave must be called before the descriptor of a stream's spool is closed, whose
// number another file may get. A failed write of the stream's is still undone.
func (l *Log) Leave(s *Stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == s {
		l.failed = &Stream{name: s.name}
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
