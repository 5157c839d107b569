package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"crisp/runtime/keeper/crilog"
)

const (
	// pollTime is how often a log that is followed is looked at.
	pollTime = 200 * time.Millisecond
	// rotateTime is how long a log may be away while it is rotated.
	rotateTime = time.Second
	// maxHeader is more than the time, stream and tag before a line's text, in bytes.
	maxHeader = 64
)

// Line is a line of a container's log, or a part of one.
type Line struct {
	Time    time.Time
	Stream  string // stdout or stderr
	Text    []byte
	Partial bool // the next one of the stream continues it
}

// parse reads a line in the format of the CRI. One in another format has only a
// text.
func parse(raw []byte) Line {
	fields := bytes.SplitN(raw, []byte(" "), 4)
	if len(fields) < 4 {
		return Line{Text: raw}
	}
	at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return Line{Text: raw}
	}
	return Line{Time: at, Stream: string(fields[1]), Text: fields[3], Partial: bytes.HasPrefix(fields[2], []byte("P"))}
}

// Log is a part of a container's log.
type Log struct {
	Path string
	// Tail is the number of lines from the end with which it begins, negative for
	// all; Since is the time of the first one.
	Tail  int
	Since time.Time
	// Started says that the container has started: then it has a log.
	Started bool
	// Alive, if not nil, reports whether more can come: then it is waited for.
	Alive func(context.Context) bool
	// End, if not nil, is called whenever all that there is of a log that is followed
	// has been read, with a time before that: what follows was written later.
	End func(time.Time) error
}

// Read calls f with each line. It follows a log that is rotated.
func (l Log) Read(ctx context.Context, f func(Line) error) error {
	file, err := l.open(ctx)
	if err != nil || file == nil {
		return err
	}
	defer func() { file.Close() }()

	r := &lines{each: func(raw []byte) error {
		if line := parse(raw); !line.Time.Before(l.Since) {
			return f(line)
		}
		return nil
	}}
	if err := l.first(ctx, file, r, f); err != nil {
		return err
	}

	for l.Alive != nil {
		at, alive := time.Now(), l.Alive(ctx)
		if err := r.from(ctx, file); err != nil {
			return err
		}
		next, err := l.rotated(file)
		if err != nil {
			return err
		}
		if next != nil {
			err := r.from(ctx, file) // what was written before the rotation
			file.Close()
			file = next
			if err != nil {
				return err
			}
			continue
		}

		if !alive {
			break
		}
		if err := l.rest(ctx, at); err != nil {
			return err
		}
	}
	return nil
}

// rest waits until it is time to look at the log again, which was read to its end.
func (l Log) rest(ctx context.Context, at time.Time) error {
	if l.End != nil {
		if err := l.End(at); err != nil {
			return err
		}
	}
	select {
	case <-time.After(pollTime):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// open opens the log. That of a container which has not started does not exist: it
// is waited for, or there is none.
func (l Log) open(ctx context.Context) (*os.File, error) {
	for began := time.Now(); ; {
		at := time.Now()
		file, err := os.Open(l.Path)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read log: %w", err)
		}
		if alive := l.Alive != nil && l.Alive(ctx); !alive {
			if !l.Started {
				return nil, nil
			}
			if time.Since(began) > rotateTime {
				return nil, fmt.Errorf("read log: it was removed: %w", err)
			}
		}

		if err := l.rest(ctx, at); err != nil {
			return nil, err
		}
	}
}

// first reads what is in the log now, and keeps the last lines.
func (l Log) first(ctx context.Context, file *os.File, r *lines, f func(Line) error) error {
	if l.Tail < 0 {
		return r.from(ctx, file)
	}

	each, ring := r.each, [][]byte{}
	r.each = func(raw []byte) error {
		ring = append(ring, bytes.Clone(raw))
		if len(ring) > l.Tail {
			ring = ring[1:]
		}
		return nil
	}
	err := r.from(ctx, file)
	r.each = each

	for _, raw := range ring {
		if err == nil {
			err = each(raw)
		}
	}
	return err
}

// rotated opens the file that has replaced the log, nil if none has.
func (l Log) rotated(file *os.File) (*os.File, error) {
	now, err := os.Stat(l.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it is being rotated, or was removed
	}
	old, e := file.Stat()
	if err := errors.Join(err, e); err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}

	if !os.SameFile(now, old) {
		next, err := os.Open(l.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return next, err
	}
	at, err := file.Seek(0, io.SeekCurrent)
	if err == nil && at > now.Size() { // cut off
		_, err = file.Seek(0, io.SeekStart)
	}
	return nil, err
}

// longestLine is that of a log of crisp's, in bytes, and bounds the memory for one of
// other logs.
func longestLine() int { return crilog.MaxLine(-1) + maxHeader }

// lines splits what is read into lines.
type lines struct {
	each func([]byte) error
	rest []byte
}

// from reads to the end of a file. A last line without an end is kept.
func (s *lines) from(ctx context.Context, r io.Reader) error {
	longest := longestLine()
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		n, err := r.Read(buf)
		s.rest = append(s.rest, buf[:n]...)
		for {
			line, rest, ok := bytes.Cut(s.rest, []byte("\n"))
			if !ok && len(s.rest) < longest {
				break
			}
			if err := s.each(line); err != nil {
				return err
			}
			s.rest = rest
		}

		if errors.Is(err, io.EOF) {
			s.rest = bytes.Clone(s.rest)
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
	return ctx.Err()
}
