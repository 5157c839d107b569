package table

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"crisp/runtime/keeper/client"
	"crisp/runtime/orphan"
)

// connectRetry is how long the daemon waits before it tries again to start a keeper.
const connectRetry = time.Second

// Table is the daemon's processes. Its methods may be used concurrently.
type Table struct {
	link *client.Link
	// retry makes a request of the present keeper, and once more of the next if
	// that dies over it. It and recordedExits are the link's, but for tests.
	retry         func(ctx context.Context, request func(keeper) error) error
	recordedExits func() (map[string]client.Exit, error)
	// reaper reaps what a keeper that died leaves to the daemon.
	reaper *orphan.Reaper
	// unknown gets the ends of processes without a row.
	unknown func(client.Exit)

	mu   sync.Mutex
	rows map[string]*Row // guarded by mu; by the keeper's id
}

// keeper is what a keeper is asked for when it takes over; [client.Client] is one.
type keeper interface {
	List(ctx context.Context) ([]client.Entry, error)
	Adopt(ctx context.Context, a client.Adoption) error
}

// Hooks are called when something happens to a row. They must not block.
type Hooks struct {
	// Ended gets the end of the row's process, perhaps more than once.
	Ended func(client.Exit)
	// Lost says that the row's process cannot be handed to a new keeper, so
	// that its end will not be reported.
	Lost func(error)
}

// New makes an empty table. The function gets the ends of processes without a
// row; it must not block.
func New(l *client.Link, unknown func(client.Exit)) *Table {
	return &Table{
		link: l, recordedExits: l.RecordedExits,
		retry: func(ctx context.Context, request func(keeper) error) error {
			return l.Retry(ctx, func(c *client.Client) error { return request(c) })
		},
		reaper: orphan.New(), unknown: unknown, rows: map[string]*Row{},
	}
}

// Begin makes the row of what is about to be started under an id.
func (t *Table) Begin(id string, kind client.Kind, h Hooks) *Row {
	r := &Row{id: id, kind: kind, table: t, hooks: h}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows[id] = r
	return r
}

// Restore makes the row of what the keeper has had since an earlier daemon.
func (t *Table) Restore(e *client.Entry, h Hooks) *Row {
	r := t.Begin(e.ID, e.Kind, h)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state, r.process, r.log = started, e.Started, e.Log
	return r
}

// row returns a row, nil if there is none.
func (t *Table) row(id string) *Row {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rows[id]
}

func (t *Table) drop(r *Row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rows[r.id] == r {
		delete(t.rows, r.id)
	}
}

// Run reports the ends of processes, and puts another keeper in the place of
// one that died, until ctx ends.
func (t *Table) Run(ctx context.Context) {
	var reaping sync.WaitGroup
	defer reaping.Wait()
	reaping.Go(func() { t.reaper.Run(ctx) })

	for ctx.Err() == nil {
		t.follow(ctx, t.link.Client())
		if ctx.Err() == nil {
			t.replace(ctx)
		}
	}
}

// follow returns when the keeper is gone or ctx has ended.
func (t *Table) follow(ctx context.Context, c *client.Client) {
	for {
		select {
		case e, ok := <-c.Events():
			if !ok {
				return
			}
			t.ended(e)
		case <-ctx.Done():
			return
		}
	}
}

// ended reports an end.
func (t *Table) ended(e client.Exit) {
	if r := t.row(e.ID); r != nil {
		r.hooks.Ended(e)
	} else {
		t.unknown(e)
	}
}

// replace connects to the next keeper and hands it what the last one had.
func (t *Table) replace(ctx context.Context) {
	klog.InfoS("Lost the connection to the keeper; looking for it or starting another")
	t.reaper.Hurry()
	for {
		c, err := t.link.Reconnect(ctx)
		if err == nil {
			t.handOver(ctx, c)
			if err := t.link.Replace(c); err != nil {
				klog.InfoS("Could not close the connection to the last keeper", "err", err)
			}
			return
		}

		klog.ErrorS(err, "Could not start another keeper, will retry")
		select {
		case <-time.After(connectRetry):
		case <-ctx.Done():
			return
		}
	}
}

// handOver goes through the rows for a keeper that is not the present one yet.
func (t *Table) handOver(ctx context.Context, k keeper) {
	held, err := holdings(ctx, k)
	if err != nil { // it is gone, too: the next one is asked
		klog.ErrorS(err, "Could not ask the keeper what it holds")
		return
	}
	recorded, err := t.recordedExits()
	if err != nil {
		klog.ErrorS(err, "Could not read the exits that the last keeper recorded")
	}

	t.mu.Lock()
	rows := slices.Collect(maps.Values(t.rows))
	t.mu.Unlock()
	for _, r := range rows {
		exit, has := held[r.id]
		if exit == nil {
			if e, ok := recorded[r.id]; ok {
				exit = &e
			}
		}
		r.handOver(ctx, k, has, exit)
	}
}

// holdings are what a keeper has, each with its end if that has come.
func holdings(ctx context.Context, k keeper) (map[string]*client.Exit, error) {
	list, err := k.List(ctx)
	if err != nil {
		return nil, err
	}

	held := make(map[string]*client.Exit, len(list))
	for _, e := range list {
		held[e.ID] = e.Exit
		e.Close()
	}
	return held, nil
}

// isLost reports whether a request failed because its keeper died, so that the
// next one is asked.
func isLost(err error) bool { return errors.Is(err, client.ErrLost) }
