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

// named is a descriptor with a name.
type named struct {
	name string
	fd   int
}

// entry is something that the keeper holds under an ID. Its fields are
// guarded by keeper.mu, but for those that never change once it has started.
type entry struct {
	id         string
	kind       wire.Kind
	started    bool // false while its plan runs
	adopted    bool // its process is not a child
	at         time.Time
	proc       *proc // nil for a sandbox without a process
	terminal   int   // -1 without one
	namespaces []named
	kept       []named
	log        *crilog.Log
	outputs    []*output
	exit       *wire.Exited
	events     string  // see watchMemory
	stored     *stored // guarded by keeper.storeMu; nil if nothing is
}

// reserve puts an entry in the table whose plan is about to run.
func (k *keeper) reserve(id string, kind wire.Kind) (*entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.entries[id] != nil {
		return nil, fmt.Errorf("%s: %w", id, wire.ErrExists)
	}
	e := &entry{id: id, kind: kind, terminal: -1}
	k.entries[id] = e
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

// busyLocked reports whether the entry's process is about to run, runs, or has
// ended without everybody knowing.
func (e *entry) busyLocked() bool { return !e.started || e.proc != nil && e.exit == nil }

// source is a stream of output as it comes from a daemon: a pipe and the
// spool for what is on its way from there to the log.
type source struct {
	roles     wire.Stream
	fd, spool int
}

// equip takes the descriptors of an entry out of files and makes its outputs,
// which stand still until enter. ended is closed when the process has ended.
func (k *keeper) equip(e *entry, files *wire.Files, maxLine int64, ended chan struct{}) error {
	for _, f := range files.TakeAll(wire.Kept) {
		e.kept = append(e.kept, named{f.Role.Name(wire.Kept), f.FD})
	}

	var sources []source
	for _, s := range wire.Streams() {
		if files.Has(s.Pipe) {
			sources = append(sources, source{s, files.Take(s.Pipe), files.Take(s.Spool)})
		}
	}

	logs := append(files.TakeAll(wire.Former), files.TakeAll(wire.Log)...).Numbers()
	if len(logs) == 0 {
		return nil
	}
	return k.connect(e, sources, logs, int(maxLine), ended)
}

// connect makes the outputs of an entry, which go to the last of the logs. An
// earlier keeper may have written to any of them.
func (k *keeper) connect(e *entry, sources []source, logs []int, maxLine int, ended chan struct{}) error {
	last := len(logs) - 1
	var spools []int
	for _, src := range sources {
		spools = append(spools, src.spool)
	}

	err := spool.Settle(spools, logs)
	wire.CloseAll(logs[:last])
	var streams []*crilog.Stream
	for _, src := range sources {
		terminal := -1
		if err == nil && e.terminal >= 0 {
			var copies []int
			if copies, err = duplicate([]int{e.terminal}); err == nil {
				terminal = copies[0]
			}
		}
		if err != nil {
			wire.CloseAll([]int{src.fd, src.spool})
			continue
		}

		var o *output
		if o, err = newOutput(k, e.id, src, terminal, ended); err == nil {
			e.outputs = append(e.outputs, o)
			streams = append(streams, o.stream)
		}
	}
	if err != nil {
		unix.Close(logs[last])
		return err
	}

	if e.log, err = crilog.New(logs[last], maxLine, &k.logBuf, streams...); err != nil {
		return err
	}
	for _, o := range e.outputs {
		o.log = e.log
	}

	return nil
}

// enter makes an entry known and sets its outputs going.
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
		k.touch()
	}
	return m, files
}

// abandon removes the entry of a start that failed.
func (k *keeper) abandon(e *entry) {
	k.mu.Lock()
	delete(k.entries, e.id)
	k.mu.Unlock()
	e.release()
	k.touch()
}

// release closes what an entry holds that is not in the table any more.
func (e *entry) release() {
	for _, o := range e.outputs {
		o.release()
	}
	if e.log != nil {
		e.log.Close()
	}

	closeNamed(e.namespaces)
	closeNamed(e.kept)
	if e.terminal >= 0 {
		unix.Close(e.terminal)
	}
	if e.proc != nil {
		unix.Close(e.proc.pidfd)
	}
}

// describeLocked describes an entry for a daemon, with copies of what it holds.
func (e *entry) describeLocked() (m wire.Entry, files wire.Files, err error) {
	m = wire.Entry{ID: e.id, Kind: e.kind, Exit: e.exit}
	var own wire.Files
	m.Started, own = e.startedLocked()
	for _, n := range e.kept {
		own.Add(wire.Kept.Of(n.name), n.fd)
	}

	if files, err = own.Copy(); err != nil {
		return m, nil, err
	}
	if e.log == nil || e.exit != nil {
		return m, files, nil
	}

	m.Dropped = e.log.Dropped()
	if err := e.copyLog(&files); err != nil {
		files.Close()
		return m, nil, err
	}
	return m, files, nil
}

// copyLog adds copies of an entry's log and streams, unless the log is closed.
func (e *entry) copyLog(files *wire.Files) error {
	log, err := e.log.Copy()
	if err != nil || log < 0 {
		return err
	}
	files.Add(wire.Log, log)

	for _, o := range e.outputs {
		c, err := o.copies()
		if err != nil {
			return err
		}
		*files = append(*files, c...)
	}
	return nil
}

// startedLocked returns what an entry started as, with its own descriptors.
func (e *entry) startedLocked() (m wire.Started, files wire.Files) {
	m.At = e.at.UnixNano()
	if e.proc != nil {
		m.Pid = int64(e.proc.pid)
		if e.exit == nil {
			files.Add(wire.PidFD, e.proc.pidfd)
		}
	}

	if e.terminal >= 0 {
		files.Add(wire.Terminal, e.terminal)
	}
	for _, n := range e.namespaces {
		files.Add(wire.Namespace.Of(n.name), n.fd)
	}
	return m, files
}

func duplicate(fds []int) ([]int, error) {
	copies := make([]int, 0, len(fds))
	for _, fd := range fds {
		c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			wire.CloseAll(copies)
			return nil, fmt.Errorf("copy descriptor: %w", err)
		}
		copies = append(copies, c)
	}
	return copies, nil
}

// ended is the end of an entry's process: its output is brought into the log
// before anybody learns of it. It runs in a goroutine of its own.
func (k *keeper) ended(e *entry, kills int64) {
	for _, o := range e.outputs {
		o.drain()
	}
	x := e.exitOf()
	x.OOMKills = kills

	if e.kind != wire.Exec {
		// Without the record the exit is lost only if the keeper is, too.
		if err := k.record(x); err != nil {
			k.logf("record exit of %s: %v", e.id, err)
		}
	}
	if e.kind == wire.Container {
		k.withdraw(e, "")
	}

	k.eventMu.Lock()
	defer k.eventMu.Unlock()
	defer k.touch()

	k.mu.Lock()
	e.exit = x
	sessions := make([]*session, 0, len(k.sessions))
	for s := range k.sessions {
		sessions = append(sessions, s)
	}
	k.mu.Unlock()

	for _, s := range sessions {
		s.send(0, *x, nil)
	}
}

// exitOf is the exit of an entry whose process has ended.
func (e *entry) exitOf() *wire.Exited {
	code, signal := exitCode(e.proc.status)
	return &wire.Exited{ID: e.id, Kind: e.kind, Pid: int64(e.proc.pid), Code: code, Signal: signal, At: e.proc.at.UnixNano()}
}

// recorded is the exit of an entry as an earlier program told it.
func (k *keeper) recorded(e *entry) *wire.Exited {
	if data, err := os.ReadFile(k.exitPath(e.id)); err == nil {
		if x, err := wire.ParseRecord(data); err == nil {
			return &x
		}
	}
	return e.exitOf()
}

func (k *keeper) exitPath(id string) string { return filepath.Join(k.stateDir, exitsDir, id) }

// unfinished begins the name of an exit record that is being written.
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

// unrecord removes the record of an exit, and what is left of one that could
// not be written.
func (k *keeper) unrecord(id string) {
	for _, name := range []string{id, unfinished + id} {
		if err := os.Remove(k.exitPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			k.logf("remove exit record: %v", err)
		}
	}
}
