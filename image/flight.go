package image

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// flights let one of several pulls do what all of them need.
type flights struct {
	mu  sync.Mutex
	all map[digest.Digest]chan struct{}
}

// lead returns true if the caller is to make what have reports as missing,
// and to call land afterwards, whatever becomes of it. It returns false once
// it is there. If another one who was at it failed, it is the caller's turn.
func (f *flights) lead(ctx context.Context, key digest.Digest, have func() bool) (bool, error) {
	for {
		if have() {
			return false, nil
		}

		f.mu.Lock()
		other, ok := f.all[key]
		if !ok {
			if f.all == nil {
				f.all = map[digest.Digest]chan struct{}{}
			}
			f.all[key] = make(chan struct{})
		}
		f.mu.Unlock()
		if !ok {
			if have() { // made between the look and the lock
				f.land(key)
				return false, nil
			}
			return true, nil
		}

		select {
		case <-other:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// land ends the lead for key.
func (f *flights) land(key digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.all[key])
	delete(f.all, key)
}

// pullKey is what makes two pulls the same.
type pullKey struct {
	ref  string
	auth Auth
}

// pulls are the pulls under way. A pull belongs to all who wait for it and
// ends early only when none is left.
type pulls struct {
	mu     sync.Mutex
	all    map[pullKey]*pull
	closed bool
}

type pull struct {
	waiters int // guarded by pulls.mu
	cancel  context.CancelCauseFunc
	done    chan struct{}
	image   Image
	err     error
}

// do joins the pull for key or begins it with start, which must run work in
// a goroutine and close done.
func (p *pulls) do(ctx context.Context, key pullKey, start func(*pull)) (Image, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return Image{}, ErrClosed
	}

	op := p.all[key]
	if op == nil {
		op = &pull{done: make(chan struct{})}
		if p.all == nil {
			p.all = map[pullKey]*pull{}
		}
		p.all[key] = op
		start(op)
	}

	op.waiters++
	p.mu.Unlock()
	select {
	case <-op.done:
		return op.image, op.err
	case <-ctx.Done():
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if op.waiters--; op.waiters == 0 {
		op.cancel(context.Cause(ctx))
		if p.all[key] == op {
			delete(p.all, key) // who comes now begins anew
		}
	}

	return Image{}, context.Cause(ctx)
}

// finish publishes a pull's result.
func (p *pulls) finish(key pullKey, op *pull, im Image, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	op.image, op.err = im, err
	if p.all[key] == op {
		delete(p.all, key)
	}
	close(op.done)
}

// close lets no pull begin from now on.
func (p *pulls) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}
