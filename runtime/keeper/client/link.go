package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// linkPatience is how long a request waits for another keeper, whose
	// takeover takes seconds on an overloaded machine.
	linkPatience = 10 * time.Second
	// forgetRetry is the delay between attempts to forget a process that is dying.
	forgetRetry = 10 * time.Millisecond
	// forgetKills is the attempt at which a process that is still running is
	// killed again.
	forgetKills = 10
)

// Link is a connection to the keeper of a state directory, or to the next one
// once that has died. It does not reconnect by itself: the goroutine that
// follows the client's events does, see [Link.Reconnect]. Its methods may be
// used concurrently.
type Link struct {
	stateDir, binary string

	// starts is read-locked by each start under way, and locked by an upgrade.
	starts sync.RWMutex

	mu      sync.Mutex
	current *Client       // guarded by mu
	next    chan struct{} // guarded by mu; closed when current is replaced
}

// OpenLink connects to the keeper of a state directory and starts it if there
// is none; an empty binary means the one next to the running program.
func OpenLink(ctx context.Context, stateDir, binary string) (*Link, error) {
	c, err := Connect(ctx, stateDir, binary)
	if err != nil {
		return nil, err
	}
	return &Link{stateDir: stateDir, binary: binary, current: c, next: make(chan struct{})}, nil
}

// Close ends the connection. The keeper and what it holds stay.
func (l *Link) Close() error { return l.Client().Close() }

// Client is the connection to the present keeper.
func (l *Link) Client() *Client {
	c, _ := l.present()
	return c
}

func (l *Link) present() (*Client, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current, l.next
}

// Reconnect connects to the running keeper, or starts another. It becomes the
// present one by [Link.Replace], once it has taken over.
func (l *Link) Reconnect(ctx context.Context) (*Client, error) {
	return Connect(ctx, l.stateDir, l.binary)
}

// Replace makes c the present keeper and closes the connection to the last.
func (l *Link) Replace(c *Client) error {
	l.mu.Lock()
	old := l.current
	l.current = c
	close(l.next)
	l.next = make(chan struct{})
	l.mu.Unlock()
	return old.Close()
}

// Retry sends an idempotent request, and sends it again to the next keeper if
// the present one dies meanwhile.
func (l *Link) Retry(ctx context.Context, request func(*Client) error) error {
	return l.retry(ctx, ErrLost, request)
}

// retry sends a request, and sends it again to the next keeper if it fails with
// the given kind of lost connection.
func (l *Link) retry(ctx context.Context, lost error, request func(*Client) error) error {
	late := time.NewTimer(linkPatience)
	defer late.Stop()
	for {
		c, next := l.present()
		err := request(c)
		if !errors.Is(err, lost) {
			return err
		}

		select {
		case <-next:
		case <-ctx.Done():
			return err
		case <-late.C:
			return err
		}
	}
}

// Start runs a plan at the present keeper, or at the next one if the request
// did not reach the present one.
func (l *Link) Start(ctx context.Context, r Request) (*Started, error) {
	if !r.Within { // the other one holds the lock
		l.starts.RLock()
		defer l.starts.RUnlock()
	}

	var started *Started
	err := l.retry(ctx, ErrUnsent, func(c *Client) (err error) {
		started, err = c.Start(ctx, r)
		return err
	})
	return started, err
}

// Upgrade has the keeper execute the program that belongs to this daemon. No
// start is under way meanwhile; other requests wait until the connection is
// back. A keeper that cannot do so keeps its program.
func (l *Link) Upgrade(ctx context.Context) error {
	l.starts.Lock()
	defer l.starts.Unlock()

	_, next := l.present()
	replaced, err := Upgrade(ctx, l.stateDir, l.binary)
	if err != nil || !replaced {
		return err
	}
	select {
	case <-next:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// RecordedExits are the exits recorded on disk, also by dead keepers, by ID.
func (l *Link) RecordedExits() (map[string]Exit, error) {
	list, err := ReadExits(l.stateDir)
	exits := make(map[string]Exit, len(list))
	for _, e := range list {
		exits[e.ID] = e
	}
	return exits, err
}

// Forget drops the descriptors and the exit record of an ID, also a record of a
// dead keeper.
func (l *Link) Forget(ctx context.Context, id string) error {
	err := l.Retry(ctx, func(c *Client) error { return c.Forget(ctx, id) })
	return errors.Join(err, RemoveExit(l.stateDir, id))
}

// ForgetDying is Forget for a process that was killed: it retries until the
// process is dead. ended may be closed then, to save time; it may be nil. When
// ctx ends first, its error is returned.
func (l *Link) ForgetDying(ctx context.Context, id string, ended <-chan struct{}) error {
	tick := time.NewTicker(forgetRetry)
	defer tick.Stop()
	var killed error
	for tries := 1; ; tries++ {
		err := l.Forget(ctx, id)
		if !errors.Is(err, ErrRunning) {
			return err
		}

		if tries == forgetKills {
			killed = l.kill(ctx, id)
		}
		select {
		case <-ended:
			ended = nil
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), killed)
		}
	}
}

// kill kills a process that the keeper has started. The daemon may not know it,
// if the reply to its start was lost.
func (l *Link) kill(ctx context.Context, id string) error {
	entries, err := l.Client().List(ctx)
	if err != nil {
		return fmt.Errorf("kill process held by the keeper: %w", err)
	}

	for _, e := range entries {
		if e.ID == id && e.PidFD != nil && e.Exit == nil {
			err = Signal(e.PidFD, unix.SIGKILL)
		}
		e.Close()
	}
	if err != nil {
		return fmt.Errorf("kill process held by the keeper: %w", err)
	}
	return nil
}
