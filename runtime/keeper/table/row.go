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

// orphanTimeout is how long to wait for an orphan's exit here after the keeper
// reported it or a SIGKILL was sent.
const orphanTimeout = 2 * time.Second

// state is the state of a row.
type state int

const (
	// starting: the start is about to be sent, was sent, or got its reply.
	starting state = iota
	// started: the row has what was started.
	started
	// ended: the process has exited, or there never was one. A pod still has
	// its namespaces.
	ended
)

// Row is a process, or a pod's namespaces, held by the keeper.
type Row struct {
	id    string
	kind  client.Kind
	table *Table
	hooks Hooks

	// mu guards the fields below. It is held while the row is handed over, so
	// that a dropped row is not handed over afterwards.
	mu    sync.Mutex
	state state
	// missed: a new keeper connected while the row was starting.
	missed  bool
	process client.Started
	log     *client.LogConfig
	// keep names what the keeper holds along with the process; nil for nothing.
	keep func() []client.Named
	// orphan has the exit status of the process if the keeper that was its
	// parent died first.
	orphan *orphan.Orphan
}

// ID is the row's ID at the keeper.
func (r *Row) ID() string { return r.id }

// Pid is the process's PID, 0 before it has started.
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

// Hold sets what another keeper gets in addition to the process: where its
// output goes, and the descriptors kept for it.
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

// ChangeLog replaces [Row.Log] by what change returns for it.
func (r *Row) ChangeLog(change func(client.LogConfig) client.LogConfig) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := change(*r.log)
	r.log = &l
}

// Started notes the started process, whose descriptors become the row's. If a
// new keeper has connected meanwhile, it is handed over now.
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

// handOver makes sure that a keeper has the row. has says whether it already
// does, exit is the exit of its process if known.
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
// to have exited is left out. It is called with mu held.
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
	if err != nil && !errors.Is(err, client.ErrExists) {
		return r.adoptProcess(ctx, k, a, err)
	}
	if err == nil {
		return nil
	}

	// The keeper is the one that started the process after all.
	if r.orphan != nil && !wasOrphan {
		r.table.reaper.Release(r.orphan)
		r.orphan = nil
	}
	return nil
}

// adoptProcess gives the row to a keeper that refused it for a reason, without the
// output: a process whose log cannot be written any more must still be reaped. Its
// pipes stay open here, so its writes block, and the next keeper is given all again.
func (r *Row) adoptProcess(ctx context.Context, k keeper, a client.Adoption, reason error) error {
	if isLost(reason) || a.PidFD == nil || a.Log == nil {
		return reason
	}
	a.Log, a.Keep = nil, nil
	if err := k.Adopt(ctx, a); err != nil && !errors.Is(err, client.ErrExists) {
		return reason
	}
	return fmt.Errorf("its output is not logged any more: %w", reason)
}

// Exit completes an exit that a keeper reported. If the keeper that started the
// process had died, the process became the daemon's child, and the new keeper,
// which is not its parent, may not know the exit status. known is false if the
// daemon does not know it either.
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

// Reap waits up to two seconds for the exit of a process that was killed
// because no keeper holds it.
func (r *Row) Reap() error {
	r.mu.Lock()
	o, err := r.table.reaper.Watch(r.process.Pid, r.process.PidFD)
	r.mu.Unlock() // a new keeper must not wait for this
	if err != nil {
		return err
	}

	select {
	case <-o.Done:
	case <-time.After(orphanTimeout):
	}
	return nil
}

// Signal sends a signal to the process; a dead process is not an error.
func (r *Row) Signal(sig unix.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.process.PidFD == nil || r.state == ended {
		return nil
	}
	return client.Signal(r.process.PidFD, sig)
}

// End notes that the process has exited, or was never started. A pod's
// namespaces are handed over all the same.
func (r *Row) End() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = ended
}

// Abandon excludes the row from handover to other keepers. The exit of its
// process is still reported.
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

// Drop removes the row from the table and closes its descriptors, except the
// namespaces, which are the caller's.
func (r *Row) Drop() {
	r.table.drop(r)
	r.Abandon()
	r.CloseLog()

	r.mu.Lock()
	defer r.mu.Unlock()
	r.process.Close()
}
