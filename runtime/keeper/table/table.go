package table

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"crisp/runtime/keeper/client"
	"crisp/runtime/orphan"
)

// connectRetry is how long the daemon waits before it retries to start a keeper.
const connectRetry = time.Second

// Table holds the daemon's processes. Its methods may be used concurrently.
type Table struct {
	link *client.Link
	// retry sends a request to the present keeper, and again to the next one if
	// it dies meanwhile. It and recordedExits are the link's, except in tests.
	retry         func(ctx context.Context, request func(keeper) error) error
	recordedExits func() (map[string]client.Exit, error)
	// reaper reaps the children of a keeper that died.
	reaper *orphan.Reaper
	// unknown gets the exits of processes without a row.
	unknown func(client.Exit)

	mu   sync.Mutex
	rows map[string]*Row // guarded by mu; by the keeper's id
}

// keeper is the part of [client.Client] that a handover needs.
type keeper interface {
	List(ctx context.Context) ([]client.Entry, error)
	Adopt(ctx context.Context, a client.Adoption) error
}

// Hooks are called when something happens to a row. They must not block.
type Hooks struct {
	// Ended gets the exit of the row's process, perhaps more than once.
	Ended func(client.Exit)
	// Lost is called when the row's process cannot be handed to a new keeper,
	// so that its exit will not be reported.
	Lost func(error)
}

// New makes an empty table. unknown gets the exits of processes without a row;
// it must not block.
func New(l *client.Link, unknown func(client.Exit)) *Table {
	return &Table{
		link: l, recordedExits: l.RecordedExits,
		retry: func(ctx context.Context, request func(keeper) error) error {
			return l.Retry(ctx, func(c *client.Client) error { return request(c) })
		},
		reaper: orphan.New(), unknown: unknown, rows: map[string]*Row{},
	}
}

// Begin adds the row of a process that is about to be started under an ID.
func (t *Table) Begin(id string, kind client.Kind, h Hooks) *Row {
	r := &Row{id: id, kind: kind, table: t, hooks: h}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows[id] = r
	return r
}

// Restore adds the row of an entry that the keeper has held since an earlier daemon.
func (t *Table) Restore(e *client.Entry, h Hooks) *Row {
	r := t.Begin(e.ID, e.Kind, h)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state, r.process, r.log = started, e.Started, e.Log
	return r
}

// CountOf counts the rows of a kind whose ID begins with prefix.
func (t *Table) CountOf(kind client.Kind, prefix string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, r := range t.rows {
		if r.kind == kind && strings.HasPrefix(id, prefix) {
			n++
		}
	}
	return n
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

// Run reports exits, and replaces a keeper that died by another one, until ctx ends.
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

// follow reports exits until the keeper is gone or ctx ends.
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

// ended reports an exit.
func (t *Table) ended(e client.Exit) {
	if r := t.row(e.ID); r != nil {
		r.hooks.Ended(e)
	} else {
		t.unknown(e)
	}
}

// replace connects to the next keeper and hands it the rows of the last one.
func (t *Table) replace(ctx context.Context) {
	klog.InfoS("Lost the connection to the keeper; looking for it or starting another")
	t.reaper.ScanSoon()
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

// handOver hands all rows to a keeper before it becomes the present one.
func (t *Table) handOver(ctx context.Context, k keeper) {
	held, err := holdings(ctx, k)
	if err != nil { // it is gone, too: try the next one
		klog.ErrorS(err, "Could not list the keeper's entries")
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

// holdings returns the IDs that a keeper holds, with the exits of ended processes.
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

// isLost reports whether a request failed because its keeper died, so that it
// is sent to the next one.
func isLost(err error) bool { return errors.Is(err, client.ErrLost) }
