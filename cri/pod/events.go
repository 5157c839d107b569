package pod

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventBacklog is how many events a subscriber may be behind before it is
// disconnected, which makes kubelet relist instead of missing an event.
const eventBacklog = 1024

// ErrSlow ends a subscription whose reader fell too far behind.
var ErrSlow = errors.New("the client reads too slowly")

// Subscription delivers events until it is cancelled, falls behind or the
// manager is closed.
type Subscription struct {
	C      <-chan *runtimeapi.ContainerEventResponse
	c      chan *runtimeapi.ContainerEventResponse
	from   *broadcaster
	reason error
}

// Err returns why C was closed: nil, or [ErrSlow].
func (s *Subscription) Err() error {
	s.from.mu.Lock()
	defer s.from.mu.Unlock()
	return s.reason
}

// Cancel ends the subscription.
func (s *Subscription) Cancel() { s.from.drop(s, nil) }

// Subscribe delivers the events from now on.
func (m *Manager) Subscribe() *Subscription { return m.events.add() }

// broadcaster hands events to all subscribers without waiting for any.
type broadcaster struct {
	history func(Event) // nil for none

	mu     sync.Mutex
	subs   map[*Subscription]bool
	closed bool
}

func (b *broadcaster) add() *Subscription {
	c := make(chan *runtimeapi.ContainerEventResponse, eventBacklog)
	s := &Subscription{C: c, c: c, from: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(c)
		return s
	}
	if b.subs == nil {
		b.subs = map[*Subscription]bool{}
	}
	b.subs[s] = true
	return s
}

func (b *broadcaster) drop(s *Subscription, reason error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLocked(s, reason)
}

func (b *broadcaster) dropLocked(s *Subscription, reason error) {
	if b.subs[s] {
		delete(b.subs, s)
		s.reason = reason
		close(s.c)
	}
}

func (b *broadcaster) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for s := range b.subs {
		b.dropLocked(s, nil)
	}
}

// send builds the event only if there is a subscriber.
func (b *broadcaster) send(r *Record, id string, kind runtimeapi.ContainerEventType) {
	b.remember(r, id, kind)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.subs) == 0 {
		return
	}

	e := &runtimeapi.ContainerEventResponse{
		ContainerId: id, ContainerEventType: kind, CreatedAt: time.Now().UnixNano(),
		PodSandboxStatus: r.Status(), ContainersStatuses: r.ContainerStatuses(),
	}

	for s := range b.subs {
		select {
		case s.c <- e:
		default:
			b.dropLocked(s, ErrSlow)
		}
	}
}

// remember adds an event to the history.
func (b *broadcaster) remember(r *Record, id string, kind runtimeapi.ContainerEventType) {
	if b.history == nil {
		return
	}
	what := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(kind.String(), "CONTAINER_"), "_EVENT"))
	e := Event{What: what, Pod: r.Name(), SandboxID: r.ID}
	if id != r.ID {
		e.ContainerID = id
	}
	if c := r.Container(id); c != nil {
		e.Container = c.Config.Msg.GetMetadata().GetName()
		if c.FinishedAt != 0 {
			e.What = fmt.Sprintf("%s: %s (%d)", what, c.Reason, c.ExitCode)
		}
	}
	b.history(e)
}

func (b *broadcaster) sandbox(r *Record, kind runtimeapi.ContainerEventType) { b.send(r, r.ID, kind) }

func (b *broadcaster) container(r *Record, id string, kind runtimeapi.ContainerEventType) {
	b.send(r, id, kind)
}

// removed reports a container that the record no longer holds.
func (b *broadcaster) removed(now *Record, id string) {
	b.send(now, id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
}

// EndEvents ends all subscriptions, so that the calls that serve them return.
func (m *Manager) EndEvents() { m.events.close() }
