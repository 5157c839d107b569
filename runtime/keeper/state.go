package keeper

import (
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire"
	"crisp/runtime/wire/pack"
)

// stateVersion is the version of the state that one keeper program leaves to
// the next. A change of the format takes a new version, and a program also
// reads the one before.
const stateVersion = 2

const (
	maxEntries = 1 << 20
	maxSaved   = 1 << 30
)

// savedEntry is an entry as it passes from one program to the next in the same
// process, where descriptors keep their numbers. An entry from the service
// manager's store takes the same form.
type savedEntry struct {
	id        string
	kind      wire.Kind
	adopted   bool
	at        int64
	pid       int64 // 0 without a process
	ended     bool  // the process exited with status at endedAt
	status    uint64
	endedAt   int64
	exited    bool // and that was reported
	maxLine   int64
	dropped   uint64
	number    uint64 // in the service manager's store, 0 if not stored
	logs      int64
	keptNames []string // names in the store of the kept descriptors, in order
	files     wire.Files
}

// saved is the whole state that a program leaves.
type saved struct {
	oomScoreAdj string // of children
	entries     []savedEntry
}

// saveLocked describes an entry. keeper.mu and the mu of its outputs are held.
func (e *entry) saveLocked() savedEntry {
	s := savedEntry{id: e.id, kind: e.kind, adopted: e.adopted, at: e.at.UnixNano(), files: slices.Clone(e.held)}
	if p := e.proc; p != nil {
		s.pid = int64(p.pid)
		select {
		case <-p.ended:
			s.ended, s.status, s.endedAt = true, uint64(p.status), p.at.UnixNano()
		default:
		}
	}

	s.exited = e.exit != nil
	if e.stored != nil {
		s.number, s.logs = e.stored.number, int64(e.stored.log)
		for _, f := range e.held.Of(wire.Kept) {
			s.keptNames = append(s.keptNames, e.stored.kept[f.Role.Name(wire.Kept)])
		}
	}

	if e.log != nil {
		s.maxLine, s.dropped = int64(e.log.MaxLine()), e.log.Dropped()
		if fd := e.log.FD(); fd >= 0 {
			s.files.Add(wire.Log, fd)
			for _, o := range e.outputs {
				s.files = append(s.files, o.filesLocked()...)
			}
		}
	}
	return s
}

// check reports missing descriptors of an entry.
func (s *savedEntry) check() error {
	// After its exit there may be a pidfd, and processes that still write.
	may := []wire.Role{wire.PidFD, wire.Former}
	for _, st := range wire.Streams() {
		may = append(may, st.Sinks)
	}
	if err := wire.CheckHeld(s.files, s.pid != 0 && !s.exited, may...); err != nil {
		return fmt.Errorf("%s: %w: %w", s.id, wire.ErrInvalid, err)
	}
	return nil
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

	for _, v := range []int64{s.at, s.pid, s.endedAt, s.maxLine} {
		w.Int(v)
	}
	w.Uint(s.status)
	w.Uint(s.dropped)
	w.Uint(s.number)
	w.Int(s.logs)
	w.Strings(s.keptNames)

	s.files.PutRoles(w)
	for _, f := range s.files {
		w.Int(int64(f.FD))
	}
}

// readState reads the state that another program has left, or is about to leave.
func readState(fd int) (*saved, error) {
	f := os.NewFile(uintptr(fd), "state")
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, maxSaved))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}

	r := pack.NewReader(data)
	take := takeEntry
	switch v := r.Uint(); v {
	case stateVersion:
	case 1:
		take = takeEntry1
	default:
		return nil, fmt.Errorf("read state: %w: version %d, want %d", wire.ErrVersion, v, stateVersion)
	}

	s := &saved{oomScoreAdj: r.String()}
	for range r.Count(maxEntries) {
		e, err := take(r)
		if err == nil && r.Err() == nil {
			err = e.check()
		}
		if err != nil {
			return nil, fmt.Errorf("read state: %w", err)
		}
		s.entries = append(s.entries, e)
	}

	if err := r.Done(); err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return s, nil
}

func takeEntry(r *pack.Reader) (s savedEntry, err error) {
	s = savedEntry{id: r.String(), kind: wire.Kind(r.Uint()), adopted: r.Bool(), ended: r.Bool(), exited: r.Bool()}
	s.at, s.pid, s.endedAt, s.maxLine = r.Int(), r.Int(), r.Int(), r.Int()
	s.status, s.dropped, s.number, s.logs = r.Uint(), r.Uint(), r.Uint(), r.Int()
	s.keptNames = r.Strings(wire.MaxKept)

	s.files, err = wire.TakeRoles(r)
	for i := range s.files {
		s.files[i].FD = int(r.Int())
	}
	return s, err
}

// restore fills the table, before anything else runs.
func (k *keeper) restore(s *saved) error {
	for i := range s.entries {
		for _, f := range s.entries[i].files {
			unix.CloseOnExec(f.FD)
		}
	}
	for i := range s.entries {
		if err := k.restoreEntry(&s.entries[i], s.entries[i].inStore(k)); err != nil {
			return fmt.Errorf("restore %s: %w", s.entries[i].id, err)
		}
	}
	// Children may have exited unnoticed during the upgrade.
	k.sweep <- struct{}{}
	return nil
}

// inStore returns what the service manager's store has of an entry.
func (s *savedEntry) inStore(k *keeper) *stored {
	if s.number == 0 || k.store == nil {
		return nil
	}
	k.store.last.Store(max(k.store.last.Load(), s.number))

	st := newStored(s.number)
	st.log = int(s.logs)
	for i, f := range s.files.Of(wire.Kept) {
		if i < len(s.keptNames) && s.keptNames[i] != "" {
			st.kept[f.Role.Name(wire.Kept)] = s.keptNames[i]
			k.store.count(st, s.keptNames[i], 1)
		}
	}

	if s.files.Has(wire.Log) {
		k.store.count(st, st.name(".l", st.log), 1)
	}
	k.store.count(st, st.name(), len(unnamed(s.files)))
	k.store.count(st, st.name(".m", st.log), 1)
	return st
}

// restoreEntry adds an entry to the table, and owns its descriptors.
func (k *keeper) restoreEntry(s *savedEntry, st *stored) error {
	e := &entry{stored: st, id: s.id, kind: s.kind, adopted: s.adopted, at: time.Unix(0, s.at)}
	ended := make(chan struct{})
	if s.pid != 0 {
		e.proc = &proc{pid: int(s.pid), pidfd: s.files.FD(wire.PidFD), ended: ended}
		e.watchMemory()
	}

	err := k.equip(e, &s.files, s.maxLine, ended)
	s.files.Close()
	if err != nil {
		e.release()
		return err
	}
	if e.log != nil {
		e.log.AddDropped(s.dropped)
	}

	k.mu.Lock()
	k.putLocked(e)
	k.mu.Unlock()
	return k.resume(e, s)
}

// resume starts the outputs of a restored entry and watches its process as before.
func (k *keeper) resume(e *entry, s *savedEntry) error {
	p := e.proc
	switch {
	case p == nil:
	case s.ended:
		p.status, p.at = unix.WaitStatus(s.status), time.Unix(0, s.endedAt)
		close(p.ended)
		if s.exited {
			e.exit = k.recorded(e)
			unix.Close(e.held.Take(wire.PidFD)) // kept by some programs
			break
		}
		defer k.wg.Go(func() { k.exited(e, k.recorded(e).OOMKills) })
	case s.adopted:
		watch, err := pollable(p.pidfd)
		if err != nil {
			return err
		}
		k.wg.Go(func() { k.await(e, watch) })
	default:
		k.mu.Lock()
		p.entry = e
		k.addLocked(p)
		k.mu.Unlock()
	}

	k.enter(e)
	return nil
}
