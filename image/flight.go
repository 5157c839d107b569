package image

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"

	"crisp/runtime/span"
)

// flights deduplicate work: of several pulls that need the same thing, one leads
// and does it, and the others wait for its flight to land.
type flights struct {
	mu  sync.Mutex
	all map[digest.Digest]chan struct{}
}

// lead returns true if the caller has to provide what have reports as missing,
// and must call land afterwards, whether it succeeded or not. It returns false
// once the thing exists. If another leader failed, the caller may lead next.
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
			if have() { // another flight landed since the first check
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

// land ends the flight for key.
func (f *flights) land(key digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.all[key])
	delete(f.all, key)
}

// pullKey identifies pulls that can be shared.
type pullKey struct {
	ref  string
	auth Auth
}

// pulls are the pulls in progress. A pull is shared by all its waiters and is
// cancelled only when none is left.
type pulls struct {
	mu     sync.Mutex
	all    map[pullKey]*sharedPull
	closed bool
}

// sharedPull is a pull with its waiters and, once done is closed, its result.
type sharedPull struct {
	waiters  int // guarded by pulls.mu
	cancel   context.CancelCauseFunc
	done     chan struct{}
	progress *progress // set at its begin
	image    Image
	err      error
}

// do joins the pull for key, or begins one with start, which must do the work in
// a goroutine and then call finish.
func (p *pulls) do(ctx context.Context, key pullKey, start func(*sharedPull)) (Image, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return Image{}, ErrClosed
	}

	op := p.all[key]
	if op != nil {
		span.Note(ctx, "waits for a pull of the image that an earlier call began")
	} else {
		op = &sharedPull{done: make(chan struct{})}
		if p.all == nil {
			p.all = map[pullKey]*sharedPull{}
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
			delete(p.all, key) // the next caller begins a new pull
		}
	}

	return Image{}, context.Cause(ctx)
}

// finish hands a pull's result to its waiters.
func (p *pulls) finish(key pullKey, op *sharedPull, im Image, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	op.image, op.err = im, err
	if p.all[key] == op {
		delete(p.all, key)
	}
	close(op.done)
}

// enter counts other work that close must wait for, unless it is too late.
func (p *pulls) enter(work *sync.WaitGroup) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		work.Add(1)
	}
	return !p.closed
}

// close prevents new pulls.
func (p *pulls) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}
