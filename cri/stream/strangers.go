package stream

import (
	"net"
	"net/netip"
	"slices"
	"time"
)

// Whoever reaches the server can open connections, a pod among them, and only
// a token tells who was sent here. Connections without one are few and short:
// they never keep a client away that has one.
const (
	// maxStrangers bounds the connections that have shown no valid token.
	maxStrangers = 256
	// maxPerAddress bounds those of one remote address.
	maxPerAddress = 32
)

// strangers are the connections that have shown no valid token, by address, in
// the order in which they came. The listener's lock guards them.
type strangers struct {
	byAddr map[netip.Addr][]*conn
	total  int
}

// add takes a connection in, and returns the one that has to go for it, nil if
// there is room: the oldest of the same address, if that has too many, else of
// the address that has most. So one address gets none of another's room.
func (s *strangers) add(c *conn) (evicted *conn) {
	switch {
	case len(s.byAddr[c.addr]) >= maxPerAddress:
		evicted = s.byAddr[c.addr][0]
	case s.total >= maxStrangers:
		evicted = s.oldestOfMost()
	}
	if evicted != nil {
		s.remove(evicted)
	}
	s.byAddr[c.addr] = append(s.byAddr[c.addr], c)
	s.total++
	return evicted
}

func (s *strangers) oldestOfMost() *conn {
	var most []*conn
	for _, of := range s.byAddr {
		if len(of) > len(most) || len(of) == len(most) && of[0].since.Before(most[0].since) {
			most = of
		}
	}
	return most[0]
}

// remove reports whether the connection was among them.
func (s *strangers) remove(c *conn) bool {
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

func (s *strangers) all() []*conn {
	var all []*conn
	for _, of := range s.byAddr {
		all = append(all, of...)
	}
	return all
}

// receive counts a connection among the strangers, until it is admitted or its
// time is over.
//
// Preconditions: l.mu is held.
func (l *listener) receive(c *conn) {
	c.since = time.Now()
	if evicted := l.strangers.add(c); evicted != nil {
		l.cut(evicted)
	}
	c.limit = time.AfterFunc(l.helloTime, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.strangers.remove(c) {
			l.cut(c)
		}
	})
}

// cut ends a connection at once.
//
// Preconditions: l.mu is held.
func (l *listener) cut(c *conn) {
	c.limit.Stop()
	c.lost()
	c.Conn.Close()
	delete(l.open, c)
}

// admit takes a connection from the strangers, because it has shown a valid
// token, and reports whether it is still there.
func (l *listener) admit(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.strangers.remove(c) {
		return false
	}
	c.limit.Stop()
	return true
}

// expel makes an admitted connection a stranger again: its token is used up.
func (l *listener) expel(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.open[c]; ok && !l.closed {
		l.receive(c)
	}
}

// remoteAddr is the address of a connection's other end, the zero one if it
// has none.
func remoteAddr(c net.Conn) netip.Addr {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}
