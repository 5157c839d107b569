package keeper

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/crilog"
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

// belongings are the descriptors that a daemon sends along for an entry, in
// the order in which they come: stdout, stderr, log, kept descriptors.
type belongings struct {
	files               []int
	log, stdout, stderr bool
	maxLine             int64
	keep                []string
}

// equip takes over the belongings of an entry, of which there must be as many
// as they say, and makes its outputs, which stand still until enter. ended is
// closed when the process has ended.
func (k *keeper) equip(e *entry, b belongings, ended chan struct{}) error {
	take := func() int {
		fd := b.files[0]
		b.files = b.files[1:]
		return fd
	}
	var sources []named
	if b.stdout {
		sources = append(sources, named{stdoutName, take()})
	}
	if b.stderr {
		sources = append(sources, named{stderrName, take()})
	}
	if b.log {
		e.log = crilog.New(take(), int(b.maxLine), &k.logBuf)
	}
	for _, name := range b.keep {
		e.kept = append(e.kept, named{name, take()})
	}
	terminal := e.terminal >= 0
	if b.log && terminal {
		copies, err := duplicate([]int{e.terminal})
		if err != nil {
			closeNamed(sources)
			return err
		}
		sources = append(sources, named{stdoutName, copies[0]})
	}
	for i, src := range sources {
		o, err := newOutput(k, src, e.log, ended)
		if err != nil {
			closeNamed(sources[i+1:])
			return err
		}
		o.terminal = terminal
		e.outputs = append(e.outputs, o)
	}
	return nil
}

// enter makes an entry known and sets its outputs going.
func (k *keeper) enter(e *entry) (wire.Started, []int) {
	k.mu.Lock()
	e.started = true
	m, fds := e.startedLocked()
	k.mu.Unlock()
	for _, o := range e.outputs {
		k.wg.Go(o.pump)
	}
	return m, fds
}

func count(list ...bool) (n int) {
	for _, b := range list {
		if b {
			n++
		}
	}
	return n
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
		o.file.Close()
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

// describeLocked returns an entry as a message, with copies of its descriptors.
func (e *entry) describeLocked() (wire.Entry, []int, error) {
	m := wire.Entry{ID: e.id, Kind: e.kind, Exit: e.exit}
	var fds []int
	m.Started, fds = e.startedLocked()
	for _, n := range e.kept {
		m.Keep = append(m.Keep, n.name)
		fds = append(fds, n.fd)
	}
	if e.log != nil {
		m.Dropped = e.log.Dropped()
	}
	copies, err := duplicate(fds)
	return m, copies, err
}

// startedLocked returns what an entry started as, with its own descriptors.
func (e *entry) startedLocked() (wire.Started, []int) {
	m := wire.Started{At: e.at.UnixNano(), Terminal: e.terminal >= 0}
	var fds []int
	if e.proc != nil {
		m.Pid = int64(e.proc.pid)
		if e.exit == nil {
			fds = append(fds, e.proc.pidfd)
		}
	}
	if e.terminal >= 0 {
		fds = append(fds, e.terminal)
	}
	for _, n := range e.namespaces {
		m.Namespaces = append(m.Namespaces, n.name)
		fds = append(fds, n.fd)
	}
	return m, fds
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
func (k *keeper) ended(e *entry) {
	for _, o := range e.outputs {
		o.drain()
	}
	code, signal := exitCode(e.proc.status)
	x := &wire.Exited{ID: e.id, Kind: e.kind, Pid: int64(e.proc.pid), Code: code, Signal: signal, At: e.proc.at.UnixNano()}
	if e.kind != wire.Exec {
		// Without the record the exit is lost only if the keeper is, too.
		if err := k.record(x); err != nil {
			k.logf("record exit of %s: %v", e.id, err)
		}
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

func (k *keeper) exitPath(id string) string { return filepath.Join(k.stateDir, exitsDir, id) }

func (k *keeper) record(x *wire.Exited) error {
	temp := k.exitPath("." + x.ID)
	if err := os.WriteFile(temp, x.Record(), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, k.exitPath(x.ID))
}
