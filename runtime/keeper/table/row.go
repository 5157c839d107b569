package table

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/client"
	"crisp/runtime/orphan"
)

// orphanTimeout is how long the end of an orphan may take to be noticed here
// once the keeper or a SIGKILL has reported it.
const orphanTimeout = 2 * time.Second

// state is how far a row has come.
type state int

const (
	// starting: the start is about to be sent, was sent, or was answered.
	starting state = iota
	// started: the row has what was started.
	started
	// ended: there is no process any more, or never was one. A pod still has
	// its namespaces.
	ended
)

// Row is a process, or a pod's namespaces, at the keeper.
type Row struct {
	id    string
	kind  client.Kind
	table *Table
	hooks Hooks

	// mu guards the fields below. It is held while the row is handed over, so
	// that what is dropped is not handed to anyone afterwards.
	mu    sync.Mutex
	state state
	// missed says that a keeper has come while the row was starting.
	missed  bool
	process client.Started
	log     *client.LogConfig
	// keep names what the keeper holds along with the process; nil for nothing.
	keep func() []client.Named
	// orphan knows how the process ended if the keeper that was its parent has
	// died before.
	orphan *orphan.Orphan
}

// ID is what the keeper knows the row by.
func (r *Row) ID() string { return r.id }

// Pid is the process, 0 before it has started.
func (r *Row) Pid() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process.Pid
}

// PidFD is the process's, nil before it has started. It is the row's, and open
// until [Row.Close].
func (r *Row) PidFD() *os.File {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process.PidFD
}

// Terminal is the master end of the process's terminal, nil without one.
func (r *Row) Terminal() *os.File {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process.Terminal
}

// Hold says what another keeper is to get besides the process: where its output
// goes, and what is held along with it.
func (r *Row) Hold(log *client.LogConfig, keep func() []client.Named) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log, r.keep = log, keep
}

// Log is where the output of the process goes, nil for nowhere.
func (r *Row) Log() *client.LogConfig {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log
}

// ChangeLog exchanges what [Row.Log] returns for what change makes of it.
func (r *Row) ChangeLog(change func(client.LogConfig) client.LogConfig) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := change(*r.log)
	r.log = &l
}

// Started notes what was started, whose descriptors become the row's. If a
// keeper has come meanwhile, it is handed over now.
func (r *Row) Started(ctx context.Context, s *client.Started) error {
	r.mu.Lock()
	r.process, r.state = *s, started
	missed := r.missed
	r.missed = false
	r.mu.Unlock()
	if !missed {
		return nil
	}

	recorded, err := r.table.recordedExits()
	if err != nil {
		return fmt.Errorf("read the exits that the last keeper recorded: %w", err)
	}
	e, exited := recorded[r.id]
	if exited {
		r.hooks.Ended(e)
	}

	err = r.table.retry(ctx, func(k keeper) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.adopt(ctx, k, exited)
	})
	if err != nil {
		return fmt.Errorf("hand %s to the new keeper: %w", r.id, err)
	}
	return nil
}

// handOver makes sure that a keeper has the row, given whether it has, and the
// end of its process, if that is known.
func (r *Row) handOver(ctx context.Context, k keeper, has bool, exit *client.Exit) {
	r.mu.Lock()
	if r.state == starting {
		r.missed = !has
		has = true
	}
	var err error
	if !has {
		err = r.adopt(ctx, k, exit != nil)
	}
	r.mu.Unlock()

	if exit != nil {
		r.hooks.Ended(*exit)
	}
	if err != nil && !isLost(err) { // lost: the next keeper gets it
		r.hooks.Lost(err)
	}
}

// adopt gives the row to a keeper, unless that has it. A process that is known
// to have ended is left out. It is called with mu held.
func (r *Row) adopt(ctx context.Context, k keeper, exited bool) error {
	a := client.Adoption{ID: r.id, Kind: r.kind, Started: r.process, Log: r.log}
	if r.state == ended || exited {
		a.Pid, a.PidFD, a.Terminal, a.Log = 0, nil, nil, nil
	} else if r.keep != nil {
		a.Keep = r.keep()
	}
	if a.PidFD == nil && len(a.Namespaces) == 0 {
		return nil // there is nothing to hold
	}

	wasOrphan := r.orphan != nil
	if a.PidFD != nil {
		o, err := r.table.reaper.Watch(a.Pid, a.PidFD)
		if err != nil {
			return err
		}
		r.orphan = o
	}

	err := k.Adopt(ctx, a)
	if !errors.Is(err, client.ErrExists) {
		return err
	}

	// It is the keeper that started the process after all.
	if r.orphan != nil && !wasOrphan {
		r.table.reaper.Release(r.orphan)
		r.orphan = nil
	}
	return nil
}

// Exit completes the end of a process as a keeper reported it. If the keeper
// that started it had died it became the daemon's child, and the new one, which
// is not its parent, may not know how it ended. Neither may the daemon: then it
// is not known.
func (r *Row) Exit(e client.Exit) (_ client.Exit, known bool) {
	r.mu.Lock()
	o := r.orphan
	r.mu.Unlock()
	if o == nil {
		return e, true
	}

	select {
	case <-o.Done:
	case <-time.After(orphanTimeout):
		return e, false
	}

	switch {
	case !o.Known:
	case o.Status.Signaled():
		e.Signal, e.Code = int(o.Status.Signal()), 128+int(o.Status.Signal())
	default:
		e.Signal, e.Code = 0, o.Status.ExitStatus()
	}
	return e, o.Known
}

// Reap waits a moment for the end of a process that was killed because no
// keeper has it.
func (r *Row) Reap() error {
	r.mu.Lock()
	o, err := r.table.reaper.Watch(r.process.Pid, r.process.PidFD)
	r.mu.Unlock() // a keeper that comes must not wait for this
	if err != nil {
		return err
	}

	select {
	case <-o.Done:
	case <-time.After(orphanTimeout):
	}
	return nil
}

// Signal sends a signal to the process; one that is dead is fine.
func (r *Row) Signal(sig unix.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.process.PidFD == nil || r.state == ended {
		return nil
	}
	return client.Signal(r.process.PidFD, sig)
}

// End notes that the process has ended, or was never started. A pod's
// namespaces are handed over all the same.
func (r *Row) End() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = ended
}

// Abandon says that no other keeper is to get the row. The end of its process
// is still reported.
func (r *Row) Abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state, r.process.Namespaces = ended, nil
}

// CloseLog closes what the output of the process went to.
func (r *Row) CloseLog() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log.Close()
}

// Drop takes the row out of the table and closes its descriptors, but for the
// namespaces, which are the caller's.
func (r *Row) Drop() {
	r.table.drop(r)
	r.Abandon()
	r.CloseLog()

	r.mu.Lock()
	defer r.mu.Unlock()
	r.process.Close()
}
