package ctl

import (
	"bytes"
	"context"
	"sync"

	"crisp/cri/client"
)

// aheadLines is how many lines of each log are read ahead.
const aheadLines = 64

// merge writes the lines of several logs in the order of their times. A log whose own
// lines are not in that order, as after the clock was set back, keeps its order; a line
// without a time belongs to the one before it.
func merge(ctx context.Context, logs []func(context.Context, func(client.Line) error) error, write []func(client.Line) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	ahead, failed := make([]chan client.Line, len(logs)), make([]error, len(logs))
	for i, read := range logs {
		ahead[i] = make(chan client.Line, aheadLines)
		wg.Go(func() {
			defer close(ahead[i])
			failed[i] = read(ctx, func(l client.Line) error {
				l.Text = bytes.Clone(l.Text)
				select {
				case ahead[i] <- l:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
	}

	heads := make([]*client.Line, len(logs))
	next := func(i int) error {
		l, ok := <-ahead[i]
		if !ok {
			heads[i] = nil
			return failed[i] // set before the end of the lines
		}
		heads[i] = &l
		return nil
	}
	for i := range logs {
		if err := next(i); err != nil {
			return err
		}
	}

	for i := earliest(heads); i >= 0; i = earliest(heads) {
		if err := write[i](*heads[i]); err != nil {
			return err
		}
		if err := next(i); err != nil {
			return err
		}
	}
	return nil
}

// earliest is the index of the line with the least time, -1 if there is none. A line
// without one comes first.
func earliest(heads []*client.Line) int {
	best := -1
	for i, l := range heads {
		if l != nil && (best < 0 || l.Time.Before(heads[best].Time)) {
			best = i
		}
	}
	return best
}
