package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// errInterrupted is why a checkpoint ends early.
var errInterrupted = fmt.Errorf("the pod or a container of it is to be stopped or removed: %w", ErrState)

// interruptible returns a context for a checkpoint that whoever wants to remove
// the pod can end: a container may hold it up as long as its caller allows.
func (p *pod) interruptible(ctx context.Context, ids []string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.checkpoints == nil {
		p.checkpoints = map[*context.CancelCauseFunc][]string{}
	}
	p.checkpoints[&cancel] = ids
	if slices.ContainsFunc(ids, func(id string) bool { return p.ending[id] > 0 }) {
		cancel(errInterrupted)
	}
	return ctx, func() {
		p.mu.Lock()
		delete(p.checkpoints, &cancel)
		p.mu.Unlock()
		cancel(nil)
	}
}

// interruptCheckpoints ends the checkpoints of a container, or all for "", that are
// under way or waiting.
func (p *pod) interruptCheckpoints(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for cancel, ids := range p.checkpoints {
		if id == "" || slices.Contains(ids, id) {
			(*cancel)(errInterrupted)
		}
	}
}

// holdOffCheckpoints ends the checkpoints of a container, and refuses others until it is
// told that this is over.
func (p *pod) holdOffCheckpoints(id string) (over func()) {
	p.mu.Lock()
	if p.ending == nil {
		p.ending = map[string]int{}
	}
	p.ending[id]++
	p.mu.Unlock()
	p.interruptCheckpoints(id)

	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.ending[id]--; p.ending[id] == 0 {
			delete(p.ending, id)
		}
	}
}

// timedOut marks an error as a time-out if that was its cause.
func timedOut(ctx context.Context, err error) error {
	switch {
	case err == nil || ctx.Err() == nil || errors.Is(err, ErrTimeout):
		return err
	case errors.Is(context.Cause(ctx), errInterrupted):
		return fmt.Errorf("%w: %w", errInterrupted, err)
	case errors.Is(ctx.Err(), context.Canceled):
		return err // nobody waits for it
	default:
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	}
}
