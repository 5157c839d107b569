package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/move"
	"crisp/image"
	"crisp/runtime/checkpoint"
)

const (
	// receiveTime bounds a conversation with a node that a pod comes from.
	receiveTime = 30 * time.Minute
	// maxArrivals bounds how many pods may be moving here at a time.
	maxArrivals = 16
)

// receiving is a pod that is moving here.
type receiving struct {
	peer *move.Conn
	// ended is closed when the pod is here, or nothing of it.
	ended chan struct{}
}

// Receive takes the pod that the other end of a conversation offers. When it returns, the pod
// runs here, or there is nothing of it.
func (m *Manager) Receive(ctx context.Context, peer *move.Conn) error {
	ctx, cancel := context.WithTimeoutCause(ctx, receiveTime, fmt.Errorf("%w after %v", ErrTimeout, receiveTime))
	defer cancel()
	defer peer.While(ctx)()
	offer, err := peer.Receive(move.Offer)
	if err != nil {
		return fmt.Errorf("receive a pod: %w", err)
	}

	switch {
	case offer.Version != move.Version:
		err = fmt.Errorf("%w: it speaks version %d, and this node %d", ErrInvalid, offer.Version, move.Version)
	case offer.Token == "":
		err = fmt.Errorf("%w: an offer without a token", ErrInvalid)
	case offer.Settle:
		return m.answerSettle(ctx, peer, offer.Token)
	default:
		err = m.receive(ctx, peer, offer)
	}
	if err != nil {
		err = fmt.Errorf("receive a pod: %w", err)
		if serr := peer.Send(move.Message{Type: move.Failed, Reason: err.Error()}); serr != nil {
			klog.V(2).InfoS("Could not tell a node why its pod is refused", "err", serr)
		}
	}
	return err
}

// receive takes a pod.
func (m *Manager) receive(ctx context.Context, peer *move.Conn, offer move.Message) (err error) {
	arrived, err := m.expect(offer.Token, peer)
	if err != nil {
		return err
	}
	defer arrived()
	dump, err := decodeDump(offer.Dump)
	if err != nil {
		return err
	}
	r := RestoreRequest{Config: dump.Config.Msg, Handler: dump.Handler, Start: true, Path: "/"}
	for _, c := range dump.Containers {
		r.Containers = append(r.Containers, c.Config.Msg)
	}
	if err := m.checkRestore(ctx, r); err != nil {
		return err
	}

	if err := m.receiveImages(ctx, peer, offer.Images); err != nil {
		return err
	}
	origins, err := m.receiveContainers(ctx, peer, dump)
	defer func() { err = errors.Join(err, dropAll(ctx, origins)) }()
	if err != nil {
		return err
	}
	r.arrival = &arrival{token: offer.Token, addresses: offer.Addresses, origins: origins, prepared: func(ctx context.Context) error {
		defer peer.While(ctx)()
		if err := peer.Send(move.Message{Type: move.Prepared}); err != nil {
			return err
		}
		_, err := peer.Receive(move.Go)
		return err
	}}

	// It is not left to itself, whatever becomes of the conversation: an answer to another one
	// depends on its end.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*operationTimeout)
	defer cancel()
	id, _, err := m.RestorePod(work, r)
	if err != nil {
		return err
	}
	if err := peer.Send(move.Message{Type: move.Runs, ID: id}); err != nil {
		klog.InfoS("A pod has moved here, and the node that it comes from could not be told; it will ask", "sandbox", id, "err", err)
	}
	return nil
}

// expect notes that a pod is moving here, until the returned function is called.
func (m *Manager) expect(token string, peer *move.Conn) (arrived func(), err error) {
	r := &receiving{peer, make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.arrivals[token] != nil:
		return nil, fmt.Errorf("%w: a pod is moving here with this token", ErrInvalid)
	case len(m.arrivals) >= maxArrivals:
		return nil, fmt.Errorf("%d pods are moving here already: %w", len(m.arrivals), ErrState)
	}
	m.arrivals[token] = r
	return func() {
		m.mu.Lock()
		delete(m.arrivals, token)
		m.mu.Unlock()
		close(r.ended)
	}, nil
}

// receiveImages asks for the images that are missing here, and takes them.
func (m *Manager) receiveImages(ctx context.Context, peer *move.Conn, ids []string) error {
	answer := move.Message{Type: move.Answer}
	for _, id := range ids {
		_, err := m.Images.Get(id)
		if errors.Is(err, image.ErrNotFound) {
			answer.Missing = append(answer.Missing, id)
		} else if err != nil {
			return err
		}
	}
	if err := peer.Send(answer); err != nil || len(answer.Missing) == 0 {
		return err
	}
	enter(ctx, fmt.Sprintf("receive %d images", len(answer.Missing)), false)
	return peer.Streamed(func(from io.Reader) error {
		_, err := m.Images.Import(ctx, from, image.ImportOptions{})
		return err
	})
}

// receiveContainers unpacks the archives of the containers, by their names.
func (m *Manager) receiveContainers(ctx context.Context, peer *move.Conn, dump *PodDump) (map[string]*origin, error) {
	made := map[string]*origin{}
	for _, c := range dump.Containers {
		enter(ctx, "receive container "+c.Name, false)
		err := peer.Streamed(func(from io.Reader) error {
			o, err := m.unpack(ctx, from, "")
			if err != nil {
				return err
			}

			made[c.Name], o.config = o, c.Config.Msg
			if o.unpacked.Config.Name != c.Name {
				return fmt.Errorf("%w: its archive is of %.100q", checkpoint.ErrInvalid, o.unpacked.Config.Name)
			}
			return nil
		})
		if err != nil {
			return made, fmt.Errorf("container %.100q: %w", c.Name, err)
		}
	}
	return made, nil
}

// answerSettle says whether the pod of an attempt is here. One that is on its way is ended
// first, so that the answer stays true.
func (m *Manager) answerSettle(ctx context.Context, peer *move.Conn, token string) error {
	m.mu.RLock()
	r := m.arrivals[token]
	m.mu.RUnlock()
	if r != nil {
		_ = r.peer.Close() // it is being read from
		select {
		case <-r.ended:
		case <-ctx.Done():
			return fmt.Errorf("settle the move of a pod: %w", context.Cause(ctx))
		}
	}

	answer := move.Message{Type: move.Settled}
	for _, r := range m.Sandboxes() {
		if r.Arrived == token && !r.Restoring {
			answer.ID = r.ID
		}
	}
	if err := peer.Send(answer); err != nil {
		return fmt.Errorf("settle the move of a pod: %w", err)
	}
	return nil
}
