package keeper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/crilog"
	"crisp/runtime/keeper/spool"
	"crisp/runtime/wire"
)

// entry is what the keeper holds under an ID. Its fields are guarded by
// keeper.mu, except those that never change once it has started.
type entry struct {
	id      string
	kind    wire.Kind
	started bool // false while its plan runs
	adopted bool // its process is not a child
	at      time.Time
	proc    *proc // nil for a sandbox without a process
	// held are the pidfd, until the process exits, the terminal, namespaces,
	// and kept descriptors.
	held    wire.Files
	log     *crilog.Log
	outputs []*output
	exit    *wire.Exited
	events  string  // see watchMemory
	stored  *stored // guarded by keeper.storeMu; nil if not in the store
}

// reserve adds an entry to the table before its plan runs.
func (k *keeper) reserve(id string, kind wire.Kind) (*entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.entries[id] != nil {
		return nil, fmt.Errorf("%s: %w", id, wire.ErrExists)
	}
	e := &entry{id: id, kind: kind}
	k.putLocked(e)
	return e, nil
}

// lookupLocked returns a started entry.
func (k *keeper) lookupLocked(id string) (*entry, error) {
	e := k.entries[id]
	if e == nil || !e.started {
		return nil, fmt.Errorf("%s: %w", id, wire.ErrNotFound)
	}
	return e, nil
}

// busyLocked reports whether the entry's process is starting, runs, or has
// exited and was not reported yet.
func (e *entry) busyLocked() bool { return !e.started || e.proc != nil && e.exit == nil }

// equip takes over the descriptors of an entry and makes its outputs, which
// start with enter. After an error the caller closes what is left in files.
// ended is closed when the process has exited.
func (k *keeper) equip(e *entry, files *wire.Files, maxLine int64, ended chan struct{}) error {
	roles := []wire.Role{wire.Former, wire.Log}
	for _, s := range wire.Streams() {
		roles = append(roles, s.Pipe, s.Spool, s.Sinks)
	}
	log := files.TakeAll(roles...)
	e.held = append(e.held, *files...)
	*files = log

	if !files.Has(wire.Log) {
		return nil
	}
	return k.connect(e, files, int(maxLine), ended)
}

// connect makes the outputs of an entry. An earlier keeper may have written to
// any of the log files.
func (k *keeper) connect(e *entry, files *wire.Files, maxLine int, ended chan struct{}) error {
	var spools wire.Files
	for _, s := range wire.Streams() {
		spools = append(spools, files.Of(s.Spool)...)
	}
	logs := append(files.Of(wire.Former), files.Of(wire.Log)...)
	if err := spool.Recover(spools.Numbers(), logs.Numbers()); err != nil {
		return err
	}

	var streams []*crilog.Stream
	for _, s := range wire.Streams() {
		if !files.Has(s.Pipe) {
			continue
		}
		o, err := newOutput(k, e, s, files, ended)
		if err != nil {
			return err
		}
		e.outputs = append(e.outputs, o)
		streams = append(streams, o.stream)
	}

	var err error
	if e.log, err = crilog.New(files.Take(wire.Log), maxLine, &k.logBuf, streams...); err != nil {
		return err
	}
	for _, o := range e.outputs {
		o.log = e.log
	}
	return nil
}

// enter publishes an entry and starts its outputs.
func (k *keeper) enter(e *entry) (wire.Started, wire.Files) {
	k.mu.Lock()
	e.started = true
	m, files := e.startedLocked()
	for _, o := range e.outputs {
		o.pumped = true
		k.wg.Go(o.pump)
	}
	k.mu.Unlock()
	if e.proc == nil {
		k.checkIdle()
	}
	return m, files
}

// abandon removes the entry of a start that failed.
func (k *keeper) abandon(e *entry) {
	k.mu.Lock()
	k.dropLocked(e.id)
	k.mu.Unlock()
	e.release()
	k.checkIdle()
}

// release closes the descriptors of an entry that was removed from the table.
func (e *entry) release() {
	for _, o := range e.outputs {
		o.release()
	}
	if e.log != nil {
		e.log.Close()
	}
	e.held.Close()
}

// startedLocked returns the reply to the entry's start. The files stay the entry's.
func (e *entry) startedLocked() (wire.Started, wire.Files) {
	m := wire.Started{At: e.at.UnixNano()}
	if e.proc != nil {
		m.Pid = int64(e.proc.pid)
	}
	return m, e.held.Of(wire.PidFD, wire.Terminal, wire.Namespace)
}

// describeLocked describes an entry for a daemon, with copies of what it holds.
func (e *entry) describeLocked() (wire.Entry, wire.Files, error) {
	m := wire.Entry{ID: e.id, Kind: e.kind, Exit: e.exit}
	m.Started, _ = e.startedLocked()
	if e.log != nil && e.exit == nil {
		m.Dropped = e.log.Dropped()
	}
	files, err := e.copiesLocked()
	return m, files, err
}

// copiesLocked returns copies of all descriptors of an entry. A closed log
// means that the entry is being released, and its streams with it.
func (e *entry) copiesLocked() (files wire.Files, err error) {
	if files, err = e.held.Copy(); err != nil || e.log == nil || e.exit != nil {
		return files, err
	}

	log, err := e.log.Copy()
	if log >= 0 {
		files.Add(wire.Log, log)
		for _, o := range e.outputs {
			if err == nil {
				var c wire.Files
				c, err = o.copies()
				files = append(files, c...)
			}
		}
	}
	if err != nil {
		files.Close()
		return nil, err
	}
	return files, nil
}

// exited drains the output of an entry's process into the log, then records and
// reports its exit. It runs in a goroutine of its own.
func (k *keeper) exited(e *entry, kills int64) {
	for _, o := range e.outputs {
		o.drain()
	}
	x := e.exitOf()
	x.OOMKills = kills

	if e.kind != wire.Exec {
		// Without the record the exit is lost only if the keeper dies, too.
		if err := k.record(x); err != nil {
			k.logf("record exit of %s: %v", e.id, err)
		}
	}
	if e.kind == wire.Container {
		k.withdraw(e, "")
	}

	k.eventMu.Lock()
	defer k.eventMu.Unlock()
	defer k.checkIdle()

	k.mu.Lock()
	e.exit = x
	if k.entries[e.id] == e { // otherwise forget releases all that it holds
		unix.Close(e.held.Take(wire.PidFD))
	}
	sessions := make([]*session, 0, len(k.sessions))
	for s := range k.sessions {
		sessions = append(sessions, s)
	}
	k.mu.Unlock()

	for _, s := range sessions {
		s.send(0, *x, nil)
	}
}

// exitOf is the exit of an entry whose process has exited.
func (e *entry) exitOf() *wire.Exited {
	code, signal := exitCode(e.proc.status)
	return &wire.Exited{ID: e.id, Kind: e.kind, Pid: int64(e.proc.pid), Code: code, Signal: signal, At: e.proc.at.UnixNano()}
}

// recorded is the exit of an entry as an earlier program reported it.
func (k *keeper) recorded(e *entry) *wire.Exited {
	if data, err := os.ReadFile(k.exitPath(e.id)); err == nil {
		if x, err := wire.ParseRecord(data); err == nil {
			return &x
		}
	}
	return e.exitOf()
}

func (k *keeper) exitPath(id string) string { return filepath.Join(k.stateDir, exitsDir, id) }

// unfinished is the name prefix of an exit record that is being written.
const unfinished = "."

func (k *keeper) record(x *wire.Exited) error {
	temp := k.exitPath(unfinished + x.ID)
	err := os.WriteFile(temp, x.Record(), 0o600)
	if err == nil {
		err = os.Rename(temp, k.exitPath(x.ID))
	}
	if err != nil {
		_ = os.Remove(temp) // unrecord tries again
	}
	return err
}

// unrecord removes the record of an exit, and the temporary file of a failed write.
func (k *keeper) unrecord(id string) {
	for _, name := range []string{id, unfinished + id} {
		if err := os.Remove(k.exitPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			k.logf("remove exit record: %v", err)
		}
	}
}
