package keeper

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire"
)

// goneTime bounds the wait for the requests of a disconnected daemon: cancelled
// starts, and disk writes.
const goneTime = 2 * reapTime

// session is one daemon's connection.
type session struct {
	k     *keeper
	conn  *wire.Conn
	ended chan struct{} // closed when the daemon has disconnected
	over  chan struct{} // closed when its requests have completed, too
	wg    sync.WaitGroup

	mu     sync.Mutex
	starts map[uint32]*start // guarded by mu; starts under way by sequence number
}

// serve answers a daemon until it disconnects.
func (s *session) serve() {
	defer s.close()
	if !s.greet() {
		return
	}

	for {
		p, err := s.conn.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				s.k.logf("end session: %v", err)
			}
			return
		}

		if !s.dispatch(p) {
			s.k.logf("end session: unexpected %T", p.Msg)
			p.Files.Close()
			return
		}
	}
}

func (s *session) close() {
	k := s.k
	k.mu.Lock()
	delete(k.sessions, s)
	k.mu.Unlock()
	close(s.ended)
	s.conn.Close()
	s.cancelStarts()
	s.wg.Wait()
	k.mu.Lock()
	delete(k.conns, s)
	k.mu.Unlock()
	close(s.over)
	k.checkIdle()
}

// cancelStarts cancels the starts under way when the daemon has disconnected.
func (s *session) cancelStarts() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.starts {
		st.decide(false)
	}
}

// awaitGone waits until the requests of disconnected daemons have completed or
// been cancelled, so that none takes effect after a list.
func (s *session) awaitGone() {
	s.k.mu.Lock()
	others := slices.Collect(maps.Keys(s.k.conns))
	s.k.mu.Unlock()
	late := time.NewTimer(goneTime)
	defer late.Stop()

	for _, o := range others {
		if o == s || !o.conn.HungUp() {
			continue
		}
		select {
		case <-o.over:
		case <-s.ended:
			return
		case <-late.C:
			s.k.logf("requests of a disconnected daemon do not complete")
			return
		}
	}
}

// greet does the handshake and registers the session.
func (s *session) greet() bool {
	p, err := s.conn.Recv()
	if err != nil {
		return false
	}

	if m, ok := p.Msg.(wire.Upgrade); ok {
		s.answer(p.Seq, s.k.upgrade(s, m, p.Files))
		return false
	}

	p.Files.Close()
	m, ok := p.Msg.(wire.Hello)
	if !ok {
		return false
	}

	if m.Version != wire.Version {
		s.send(p.Seq, wire.NewFail(fmt.Errorf("%w: daemon has %d, keeper has %d", wire.ErrVersion, m.Version, wire.Version)), nil)
		return false
	}

	// The reply precedes any exit: from here on none is missed.
	s.k.eventMu.Lock()
	defer s.k.eventMu.Unlock()

	s.k.mu.Lock()
	s.k.sessions[s] = true
	s.k.mu.Unlock()
	return s.send(p.Seq, wire.Hello{Version: wire.Version}, nil)
}

// send sends a packet; a daemon that cannot take it is disconnected.
func (s *session) send(seq uint32, m wire.Message, files wire.Files) bool {
	if err := s.conn.Send(seq, m, files); err != nil {
		s.conn.Close()
		return false
	}
	return true
}

// answer sends Done or Fail.
func (s *session) answer(seq uint32, err error) {
	if err != nil {
		s.send(seq, wire.NewFail(err), nil)
		return
	}
	s.send(seq, wire.Done{}, nil)
}

// dispatch begins to serve a request; it is false for a message that is not
// one. Requests run concurrently: one that waits for a disk delays no other.
func (s *session) dispatch(p wire.Packet) bool {
	switch m := p.Msg.(type) {
	case wire.Start:
		s.begin(p.Seq, m, p.Files)
		return true
	case wire.Adopt:
		s.wg.Go(func() { s.answer(p.Seq, s.k.adopt(m, p.Files)) })
		return true
	case wire.Replace:
		s.wg.Go(func() { s.answer(p.Seq, s.k.replace(m, p.Files)) })
		return true
	case wire.Proceed:
		s.decide(p.Seq, m.OK)
	case wire.Cancel:
		s.decide(p.Seq, false)
	case wire.List:
		s.wg.Go(func() { s.list(p.Seq) })
	case wire.Reopen:
		s.wg.Go(func() { s.answer(p.Seq, s.k.reopen(m, p.Files)) })
		return true
	case wire.Attach:
		s.wg.Go(func() { s.answer(p.Seq, s.k.attach(m, p.Files)) })
		return true
	case wire.CloseKept:
		s.wg.Go(func() { s.answer(p.Seq, s.k.closeKept(m)) })
	case wire.Forget:
		s.wg.Go(func() { s.answer(p.Seq, s.k.forget(m.ID)) })
	default:
		return false
	}

	p.Files.Close()
	return true
}

func (s *session) begin(seq uint32, m wire.Start, files wire.Files) {
	st := newStart(s, seq, m, files)
	s.mu.Lock()
	_, taken := s.starts[seq]
	if !taken {
		s.starts[seq] = st
	}
	s.mu.Unlock()
	if taken {
		files.Close()
		s.answer(seq, fmt.Errorf("%w: sequence number in use", wire.ErrInvalid))
		return
	}

	s.wg.Go(func() {
		st.run()
		s.mu.Lock()
		delete(s.starts, seq)
		s.mu.Unlock()
	})
}

// decide lets a start under way proceed, or cancels it; it ignores unknown
// sequence numbers.
func (s *session) decide(seq uint32, ok bool) {
	s.mu.Lock()
	st := s.starts[seq]
	s.mu.Unlock()
	if st != nil {
		st.decide(ok)
	}
}

func (s *session) list(seq uint32) {
	s.awaitGone()
	for _, id := range s.k.ids() {
		s.k.mu.Lock()
		e, err := s.k.lookupLocked(id)
		if err != nil {
			s.k.mu.Unlock()
			continue
		}

		m, files, err := e.describeLocked()
		s.k.mu.Unlock()
		if err != nil {
			s.answer(seq, err)
			return
		}

		ok := s.send(seq, m, files)
		files.Close()
		if !ok {
			return
		}
	}
	s.answer(seq, nil)
}

func (k *keeper) ids() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	ids := make([]string, 0, len(k.entries))
	for id := range k.entries {
		ids = append(ids, id)
	}
	return ids
}

// reopen makes a container's log continue in a new file.
func (k *keeper) reopen(m wire.Reopen, files wire.Files) error {
	defer func() { files.Close() }()
	if err := m.Check(files); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrInvalid, err)
	}

	k.mu.Lock()
	e, err := k.lookupLocked(m.ID)
	k.mu.Unlock()
	if err == nil && e.log == nil {
		err = fmt.Errorf("%s: %w", m.ID, wire.ErrNotRunning)
	}
	if err != nil {
		return err
	}

	if ok, err := e.log.Reopen(files.Take(wire.Log)); err != nil {
		return fmt.Errorf("%s: %w", m.ID, err)
	} else if !ok {
		return fmt.Errorf("%s: %w", m.ID, wire.ErrNotRunning)
	}

	k.depositReopened(e)
	return nil
}

// attach copies a container's output to the files. A terminal has no stderr:
// its reader gets EOF at once.
func (k *keeper) attach(m wire.Attach, files wire.Files) error {
	defer func() { files.Close() }()
	if err := m.Check(files); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrInvalid, err)
	}

	k.mu.Lock()
	e, err := k.lookupLocked(m.ID)
	if err == nil && (len(e.outputs) == 0 || e.exit != nil) {
		err = fmt.Errorf("%s: %w", m.ID, wire.ErrNotRunning)
	}
	k.mu.Unlock()
	if err != nil {
		return err
	}

	for _, o := range e.outputs {
		for _, sink := range files.TakeAll(o.roles.Sinks) {
			err = errors.Join(err, o.attach(sink.FD))
		}
	}
	return err
}

// closeKept closes one kept descriptor.
func (k *keeper) closeKept(m wire.CloseKept) error {
	e, err := k.takeKept(m)
	if err == nil {
		k.withdraw(e, m.Name)
	}
	return err
}

func (k *keeper) takeKept(m wire.CloseKept) (*entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, err := k.lookupLocked(m.ID)
	if err != nil {
		return nil, err
	}

	fd := e.held.Take(wire.Kept.Of(m.Name))
	if fd < 0 {
		return nil, fmt.Errorf("%s: %s: %w", m.ID, m.Name, wire.ErrNotFound)
	}
	unix.Close(fd)
	return e, nil
}

// forget drops what is held under id unless its process lives.
func (k *keeper) forget(id string) error {
	if !wire.ValidID(id) {
		return fmt.Errorf("%w: id %q", wire.ErrInvalid, id)
	}

	k.mu.Lock()
	e := k.entries[id]
	busy := e != nil && e.busyLocked()
	if e != nil && !busy {
		k.dropLocked(id)
	}
	k.mu.Unlock()
	if busy {
		return fmt.Errorf("%s: %w", id, wire.ErrRunning)
	}

	k.unrecord(id)
	if e != nil {
		k.withdraw(e, "")
		e.release()
		k.checkIdle()
	}

	return nil
}
