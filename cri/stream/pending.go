package stream

import (
	"net"
	"net/netip"
	"slices"
	"time"
)

// Any client that reaches the server can open connections, even a pod, and only
// a token identifies legitimate ones. Connections without one are limited in
// number and time: they never block a client that has one.
const (
	// maxPending bounds the connections that have presented no valid token.
	maxPending = 256
	// maxPerAddress bounds those of one remote address.
	maxPerAddress = 32
)

// pending are the connections that have presented no valid token, by address,
// in order of arrival. The listener's lock guards them.
type pending struct {
	byAddr map[netip.Addr][]*conn
	total  int
}

// add adds a connection, and returns the one that is evicted for it, nil if
// there is room: the oldest of the same address, if that has too many, else of
// the address that has most. So no address takes the room of another.
func (s *pending) add(c *conn) (evicted *conn) {
	switch {
	case len(s.byAddr[c.addr]) >= maxPerAddress:
		evicted = s.byAddr[c.addr][0]
	case s.total >= maxPending:
		evicted = s.oldestOfMost()
	}
	if evicted != nil {
		s.remove(evicted)
	}
	s.byAddr[c.addr] = append(s.byAddr[c.addr], c)
	s.total++
	return evicted
}

func (s *pending) oldestOfMost() *conn {
	var most []*conn
	for _, of := range s.byAddr {
		if len(of) > len(most) || len(of) == len(most) && of[0].since.Before(most[0].since) {
			most = of
		}
	}
	return most[0]
}

// remove reports whether the connection was among them.
func (s *pending) remove(c *conn) bool {
	of := s.byAddr[c.addr]
	i := slices.Index(of, c)
	if i < 0 {
		return false
	}
	s.total--
	if of = slices.Delete(of, i, i+1); len(of) == 0 {
		delete(s.byAddr, c.addr)
	} else {
		s.byAddr[c.addr] = of
	}
	return true
}

func (s *pending) all() []*conn {
	var all []*conn
	for _, of := range s.byAddr {
		all = append(all, of...)
	}
	return all
}

// receive counts a connection as pending until it is admitted or times out.
//
// Preconditions: l.mu is held.
func (l *listener) receive(c *conn) {
	c.since = time.Now()
	if evicted := l.pending.add(c); evicted != nil {
		l.cut(evicted)
	}
	c.limit = time.AfterFunc(l.helloTime, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.pending.remove(c) {
			l.cut(c)
		}
	})
}

// cut closes a connection immediately.
//
// Preconditions: l.mu is held.
func (l *listener) cut(c *conn) {
	c.limit.Stop()
	c.lost()
	c.Conn.Close()
	delete(l.open, c)
}

// admit makes a connection that has presented a valid token no longer pending,
// and reports whether it is still open.
func (l *listener) admit(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.pending.remove(c) {
		return false
	}
	c.limit.Stop()
	return true
}

// expel makes an admitted connection pending again: its token is used up.
func (l *listener) expel(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.open[c]; ok && !l.closed {
		l.receive(c)
	}
}

// remoteAddr is the address of a connection's peer, zero if it has none.
func remoteAddr(c net.Conn) netip.Addr {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}
