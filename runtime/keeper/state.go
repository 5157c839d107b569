package keeper

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire"
	"crisp/runtime/wire/pack"
)

// stateVersion is the version of what one keeper program leaves to the next.
// A program that changes the form gets a new one, and reads the last as well.
const stateVersion = 1

const (
	maxEntries  = 1 << 20
	maxSaved    = 1 << 30
	maxChildren = 64 // descriptors of one kind in one entry
)

// savedEntry is an entry as it passes from one program to the next in the same
// process: its descriptors are numbers that stay as they are.
type savedEntry struct {
	id         string
	kind       wire.Kind
	adopted    bool
	at         int64
	pid        int64 // 0 without a process
	pidfd      int
	ended      bool // the process has ended with status at endedAt
	status     uint64
	endedAt    int64
	exited     bool // and everybody was told of it
	terminal   int  // -1 without one
	namespaces []named
	kept       []named
	log        int // -1 without one, or closed
	maxLine    int64
	dropped    uint64
	outputs    []savedOutput
	number     uint64 // in the service manager's store, 0 without
	logs       int64
	keptNames  []string // in the store, as kept
	former     []int    // not saved: logs that it may have gone to
}

type savedOutput struct {
	name        string
	pipe, spool int
	sinks       []int
}

// saved is all that a program leaves.
type saved struct {
	oomScoreAdj string // what children get back
	entries     []savedEntry
}

// saveLocked describes an entry. keeper.mu and the mu of its outputs are held.
func (e *entry) saveLocked() savedEntry {
	s := savedEntry{
		id: e.id, kind: e.kind, adopted: e.adopted, at: e.at.UnixNano(), terminal: e.terminal,
		namespaces: e.namespaces, kept: e.kept, log: -1, pidfd: -1,
	}

	if p := e.proc; p != nil {
		s.pid, s.pidfd = int64(p.pid), p.pidfd
		select {
		case <-p.ended:
			s.ended, s.status, s.endedAt = true, uint64(p.status), p.at.UnixNano()
		default:
		}
	}

	s.exited = e.exit != nil
	if e.stored != nil {
		s.number, s.logs = e.stored.number, int64(e.stored.log)
		for _, n := range e.kept {
			s.keptNames = append(s.keptNames, e.stored.kept[n.name])
		}
	}
	if e.log == nil {
		return s
	}

	s.log, s.maxLine, s.dropped = e.log.FD(), int64(e.log.MaxLine()), e.log.Dropped()
	for _, o := range e.outputs {
		if o.ended || s.log < 0 {
			continue
		}
		out := savedOutput{name: o.roles.Name, pipe: o.relay, spool: o.spoolFD, sinks: o.sinks}
		// It fails if the entry is being released; then nothing is left of it.
		if out.pipe >= 0 || o.raw.Control(func(fd uintptr) { out.pipe = int(fd) }) == nil {
			s.outputs = append(s.outputs, out)
		}
	}

	return s
}

// files are the descriptors that an entry must not lose.
func (s *savedEntry) files() (fds []int) {
	for _, list := range [][]named{s.namespaces, s.kept} {
		for _, n := range list {
			fds = append(fds, n.fd)
		}
	}

	for _, o := range s.outputs {
		fds = append(append(fds, o.pipe, o.spool), o.sinks...)
	}
	for _, fd := range []int{s.pidfd, s.terminal, s.log} {
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}

	return fds
}

func (s *saved) encode() []byte {
	var w pack.Writer
	w.Uint(stateVersion)
	w.String(s.oomScoreAdj)
	w.Uint(uint64(len(s.entries)))
	for i := range s.entries {
		s.entries[i].put(&w)
	}
	return w.Bytes()
}

func (s *savedEntry) put(w *pack.Writer) {
	w.String(s.id)
	w.Uint(uint64(s.kind))
	for _, b := range []bool{s.adopted, s.ended, s.exited} {
		w.Bool(b)
	}

	for _, v := range []int64{s.at, s.pid, int64(s.pidfd), s.endedAt, int64(s.terminal), int64(s.log), s.maxLine} {
		w.Int(v)
	}
	w.Uint(s.status)
	w.Uint(s.dropped)
	w.Uint(s.number)
	w.Int(s.logs)
	w.Strings(s.keptNames)

	for _, list := range [][]named{s.namespaces, s.kept} {
		w.Uint(uint64(len(list)))
		for _, n := range list {
			w.String(n.name)
			w.Int(int64(n.fd))
		}
	}

	w.Uint(uint64(len(s.outputs)))
	for _, o := range s.outputs {
		w.String(o.name)
		w.Int(int64(o.pipe))
		w.Int(int64(o.spool))
		w.Uint(uint64(len(o.sinks)))
		for _, fd := range o.sinks {
			w.Int(int64(fd))
		}
	}
}

// readState reads what another program has left, or is about to leave.
func readState(fd int) (*saved, error) {
	f := os.NewFile(uintptr(fd), "state")
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, maxSaved))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}

	r := pack.NewReader(data)
	if v := r.Uint(); v != stateVersion {
		return nil, fmt.Errorf("read state: %w: version %d, want %d", wire.ErrVersion, v, stateVersion)
	}

	s := &saved{oomScoreAdj: r.String()}
	for range r.Count(maxEntries) {
		s.entries = append(s.entries, takeEntry(r))
	}

	if err := r.Done(); err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return s, nil
}

func takeEntry(r *pack.Reader) savedEntry {
	s := savedEntry{id: r.String(), kind: wire.Kind(r.Uint()), adopted: r.Bool(), ended: r.Bool(), exited: r.Bool()}
	s.at, s.pid, s.pidfd, s.endedAt = r.Int(), r.Int(), int(r.Int()), r.Int()
	s.terminal, s.log, s.maxLine = int(r.Int()), int(r.Int()), r.Int()
	s.status, s.dropped, s.number, s.logs = r.Uint(), r.Uint(), r.Uint(), r.Int()
	s.keptNames = r.Strings(maxChildren)

	for _, list := range []*[]named{&s.namespaces, &s.kept} {
		for range r.Count(maxChildren) {
			*list = append(*list, named{r.String(), int(r.Int())})
		}
	}

	for range r.Count(maxChildren) {
		o := savedOutput{name: r.String(), pipe: int(r.Int()), spool: int(r.Int())}
		for range r.Count(maxEntries) {
			o.sinks = append(o.sinks, int(r.Int()))
		}
		s.outputs = append(s.outputs, o)
	}

	return s
}

// restore enters everything in the table, before anything else runs.
func (k *keeper) restore(s *saved) error {
	for i := range s.entries {
		for _, fd := range s.entries[i].files() {
			unix.CloseOnExec(fd)
		}
	}
	for i := range s.entries {
		if err := k.restoreEntry(&s.entries[i], s.entries[i].inStore(k)); err != nil {
			return fmt.Errorf("restore %s: %w", s.entries[i].id, err)
		}
	}
	// Some children may have ended while nobody was told.
	k.sweep <- struct{}{}
	return nil
}

// inStore is what the service manager's store has of an entry.
func (s *savedEntry) inStore(k *keeper) *stored {
	if s.number == 0 || k.store == nil {
		return nil
	}
	k.store.last.Store(max(k.store.last.Load(), s.number))

	st := newStored(s.number)
	st.log = int(s.logs)
	fixed := len(s.files())
	for i, n := range s.kept {
		fixed--
		if i < len(s.keptNames) && s.keptNames[i] != "" {
			st.kept[n.name] = s.keptNames[i]
			k.store.count(st, s.keptNames[i], 1)
		}
	}

	if s.log >= 0 {
		fixed--
		k.store.count(st, st.name(".l", st.log), 1)
	}
	k.store.count(st, st.name(), fixed)
	k.store.count(st, st.name(".m", st.log), 1)
	return st
}

func (k *keeper) restoreEntry(s *savedEntry, st *stored) error {
	e := &entry{
		stored: st,
		id:     s.id, kind: s.kind, adopted: s.adopted, at: time.Unix(0, s.at), terminal: s.terminal,
		namespaces: s.namespaces, kept: s.kept,
	}

	ended := make(chan struct{})
	if s.pid != 0 {
		e.proc = &proc{pid: int(s.pid), pidfd: s.pidfd, ended: ended}
		e.watchMemory()
	}
	if s.log >= 0 {
		var sources []source
		for _, o := range s.outputs {
			roles := wire.Streams()[0]
			if o.name != roles.Name {
				roles = wire.Streams()[1]
			}
			sources = append(sources, source{roles, o.pipe, o.spool})
		}
		if err := k.connect(e, sources, append(s.former, s.log), int(s.maxLine), ended); err != nil {
			return err
		}

		e.log.AddDropped(s.dropped)
		for i, o := range s.outputs {
			e.outputs[i].sinks = o.sinks
		}
	}

	k.mu.Lock()
	k.entries[e.id] = e
	k.mu.Unlock()
	return k.resume(e, s)
}

// resume sets an entry going that is in the table: its process is watched in
// the way in which it was.
func (k *keeper) resume(e *entry, s *savedEntry) error {
	p := e.proc
	switch {
	case p == nil:
	case s.ended:
		p.status, p.at = unix.WaitStatus(s.status), time.Unix(0, s.endedAt)
		close(p.ended)
		if s.exited {
			e.exit = k.recorded(e)
			break
		}
		defer k.wg.Go(func() { k.ended(e, k.recorded(e).OOMKills) })
	case s.adopted:
		watch, err := pollable(p.pidfd)
		if err != nil {
			return err
		}
		k.wg.Go(func() { k.await(e, watch) })
	default:
		k.mu.Lock()
		p.entry = e
		k.procs[p.pid] = p
		k.mu.Unlock()
	}

	k.enter(e)
	return nil
}
