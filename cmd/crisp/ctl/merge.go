package ctl

import (
	"bytes"
	"context"
	"sync"
	"time"

	"crisp/cri/client"
)

const (
	// aheadLines is how many lines of each log are read ahead.
	aheadLines = 64
	// writeTime is how long it may take from a line's time until it can be read.
	writeTime = 100 * time.Millisecond
	// quietTime is how long a log that is followed may say nothing, not even that it
	// has nothing, before the others do not wait for it any more.
	quietTime = 2 * time.Second
)

// source is a log that is merged with others.
type source struct {
	// read passes on lines and, if it follows the log, each time at which it has begun
	// to read and come to the end.
	read  func(ctx context.Context, line func(client.Line) error, end func(time.Time) error) error
	write func(client.Line) error
}

// merger writes the lines of several logs in the order of their times.
type merger struct {
	logs []*following
	wake chan struct{} // has a token if a log has something new
}

// following is a source while it is read.
type following struct {
	source
	ahead chan event
	head  *event // the next line, nil if none is known yet
	ended bool
	err   error // why, set before ahead is closed

	// reached is the time before which there are no more lines, zero for a log whose
	// end was not reached yet; heard is when it was last.
	reached, heard time.Time
}

// event is a line that was read at a time or, if it is nil, an end that was reached.
type event struct {
	line *client.Line
	at   time.Time
}

// due is the time that other logs must have been read to before a line is written: a
// time after that at which it was read is of another clock.
func (e event) due() time.Time {
	if e.line.Time.After(e.at) {
		return e.at
	}
	return e.line.Time
}

// merge writes the lines of several logs in the order of their times. A log whose own
// lines are not in that order, as after the clock was set back, keeps its order; a line
// without a time belongs to the one before it. Where logs are followed, a line waits
// until the others have been read as far, which they are several times a second. A log
// that cannot be read further ends, and its error is returned when all have; one of a
// writer ends all.
func merge(ctx context.Context, sources []source) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	m := merger{wake: make(chan struct{}, 1)}
	for _, s := range sources {
		f := &following{source: s, ahead: make(chan event, aheadLines)}
		m.logs = append(m.logs, f)
		wg.Go(func() { m.follow(ctx, f) })
	}
	if err := m.run(); err != nil {
		return err
	}

	for _, f := range m.logs {
		if f.err != nil {
			return f.err
		}
	}
	return nil
}

// follow reads a log to its end.
func (m *merger) follow(ctx context.Context, f *following) {
	defer m.signal()
	defer close(f.ahead)
	send := func(e event) error {
		select {
		case f.ahead <- e:
			m.signal()
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}

	f.err = f.read(ctx, func(l client.Line) error {
		l.Text = bytes.Clone(l.Text)
		return send(event{&l, time.Now()})
	}, func(at time.Time) error { return send(event{nil, at}) })
}

func (m *merger) signal() {
	select {
	case m.wake <- struct{}{}:
	default: // there is a token
	}
}

// run writes until all logs have ended.
func (m *merger) run() error {
	tick := time.NewTicker(quietTime / 4)
	defer tick.Stop()

	for {
		first, ended := m.look()
		switch {
		case first != nil && !m.waits(first):
			if err := first.write(*first.head.line); err != nil {
				return err
			}
			first.head = nil
			continue
		case ended:
			return nil
		}

		select {
		case <-m.wake:
		case <-tick.C:
		}
	}
}

// look takes what the logs have, and finds the one with the earliest line, nil if none
// has any, and whether all have ended.
func (m *merger) look() (first *following, ended bool) {
	ended = true
	for _, f := range m.logs {
		f.take()
		ended = ended && f.ended && f.head == nil
		if f.head != nil && (first == nil || f.head.line.Time.Before(first.head.line.Time)) {
			first = f
		}
	}
	return first, ended
}

// take takes the next line that was read, if there is one.
func (f *following) take() {
	for f.head == nil && !f.ended {
		select {
		case e, ok := <-f.ahead:
			switch {
			case !ok:
				f.ended = true
			case e.line == nil:
				f.reached, f.heard = e.at.Add(-writeTime), time.Now()
			default:
				f.head = &e
			}
		default:
			return
		}
	}
}

// waits reports whether a log may still have a line before another's.
func (m *merger) waits(first *following) bool {
	for _, f := range m.logs {
		if f.head != nil || f.ended {
			continue
		}
		if f.reached.IsZero() || first.head.due().After(f.reached) && time.Since(f.heard) < quietTime {
			return true
		}
	}
	return false
}
