package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/move"
	"crisp/image"
	"crisp/runtime/checkpoint"
	"crisp/runtime/durable"
)

const (
	// receiveTime bounds a conversation with a node that a pod comes from, offerTime how long
	// that may take to say what it wants.
	receiveTime = 30 * time.Minute
	offerTime   = 10 * time.Second
	// maxArrivals bounds how many pods may be moving here at a time, maxConversations how
	// many nodes may be talking, of which some only ask, and maxAddresses the addresses of a pod.
	maxArrivals      = 16
	maxConversations = 32
	maxAddresses     = 8
	// goneDir is the directory below the root with a file for each pod that came here by a
	// move and was removed: its token is the name, its ID the content. The node that it came
	// from may not know yet that it was here. Files are kept for goneTime.
	goneDir  = "moved"
	goneTime = 30 * 24 * time.Hour
)

// errNotGone means that a pod could not be moved here, and that it is not certain that
// nothing of it runs: the other node is told nothing then, and has to ask.
var errNotGone = errors.New("the rest of it could not be removed yet")

// receiving is a pod that is moving here.
type receiving struct {
	peer *move.Conn
	// ended is closed when the pod is here, or nothing of it.
	ended chan struct{}
}

// Receive takes the pod that the other end of a conversation offers. When it returns, the pod
// runs here, or there is nothing of it, or what there is is being removed.
func (m *Manager) Receive(ctx context.Context, peer *move.Conn) error {
	if m.conversations.Add(1) > maxConversations {
		m.conversations.Add(-1)
		return fmt.Errorf("receive a pod: %d nodes are talking already: %w", maxConversations, ErrState)
	}
	defer m.conversations.Add(-1)
	ctx, cancel := context.WithTimeoutCause(ctx, receiveTime, fmt.Errorf("%w after %v", ErrTimeout, receiveTime))
	defer cancel()
	defer peer.While(ctx)()
	offer, err := hearOffer(ctx, peer)
	if err != nil {
		return fmt.Errorf("receive a pod: %w", err)
	}

	switch {
	case offer.Version != move.Version:
		err = fmt.Errorf("%w: it speaks version %d, and this node %d", ErrInvalid, offer.Version, move.Version)
	case !isToken(offer.Token):
		err = fmt.Errorf("%w: an offer without a token", ErrInvalid)
	case offer.Settle:
		return m.answerSettle(ctx, peer, offer.Token)
	default:
		err = m.receive(ctx, peer, offer)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("receive a pod: %w", err)
	if errors.Is(err, errNotGone) {
		return err
	}
	if serr := peer.Send(move.Message{Type: move.Failed, Reason: err.Error()}); serr != nil {
		klog.V(2).InfoS("Could not tell a node why its pod is refused", "err", serr)
	}
	return err
}

// hearOffer waits a little for what the other node wants.
func hearOffer(ctx context.Context, peer *move.Conn) (move.Message, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, offerTime, fmt.Errorf("%w after %v", ErrTimeout, offerTime))
	defer cancel()
	defer peer.While(ctx)()
	offer, err := peer.Receive(move.Offer)
	return offer, timedOut(ctx, err)
}

// isToken reports whether a text has the form that newID gives tokens.
func isToken(text string) bool {
	for _, r := range text {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return false
		}
	}
	return len(text) == len(newID())
}

// receive takes a pod.
func (m *Manager) receive(ctx context.Context, peer *move.Conn, offer move.Message) (err error) {
	arrived, err := m.expect(offer.Token, peer)
	if err != nil {
		return err
	}
	defer arrived()
	dump, r, err := m.requestOf(ctx, offer)
	if err != nil {
		return err
	}
	_, own, err := m.restoreFrom()
	if err != nil {
		return err
	}

	if err := m.receiveImages(ctx, peer, offer.Images); err != nil {
		return err
	}
	memory, count, err := m.receiveAhead(ctx, peer)
	if err != nil {
		return err
	}
	origins, err := m.receiveContainers(ctx, peer, dump, move.Blocks{ReaderAt: memory, Count: count})
	memory.Close()
	defer func() { err = errors.Join(err, dropAll(ctx, origins)) }()
	if err != nil {
		return err
	}
	begun := false
	r.arrival = &arrival{token: offer.Token, addresses: offer.Addresses, origins: origins, prepared: func(ctx context.Context) error {
		defer peer.While(ctx)()
		if err := peer.Send(move.Message{Type: move.Prepared, Node: own.String()}); err != nil {
			return err
		}
		_, err := peer.Receive(move.Go)
		begun = err == nil
		return err
	}}

	// It is not left to itself, whatever becomes of the conversation: an answer to another one
	// depends on its end.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*operationTimeout)
	defer cancel()
	id, _, err := m.RestorePod(work, r)
	if err != nil && begun && m.arrival(offer.Token) != nil {
		m.wg.Go(func() { m.removeRestored(m.arrivalID(offer.Token)) })
		return fmt.Errorf("%w: %w", errNotGone, err)
	}
	if err != nil {
		return err
	}
	if err := peer.Send(move.Message{Type: move.Runs, ID: id}); err != nil {
		klog.InfoS("A pod has moved here, and the node that it comes from could not be told; it will ask", "sandbox", id, "err", err)
	}
	return nil
}

// requestOf is the request that an offer makes, in which each name is that of one container.
func (m *Manager) requestOf(ctx context.Context, offer move.Message) (dump *PodDump, r RestoreRequest, err error) {
	if dump, err = decodeDump(offer.Dump); err != nil {
		return nil, r, err
	}

	r = RestoreRequest{Config: dump.Config.Msg, Handler: dump.Handler, Start: true, Path: "/"}
	for _, c := range dump.Containers {
		if name := c.Config.Msg.GetMetadata().GetName(); name != c.Name {
			return nil, r, fmt.Errorf("%w: container %.100q is configured as %.100q", checkpoint.ErrInvalid, c.Name, name)
		}
		r.Containers = append(r.Containers, c.Config.Msg)
	}

	if len(offer.Addresses) > maxAddresses {
		return nil, r, fmt.Errorf("%w: %d addresses, and a pod may have %d", ErrInvalid, len(offer.Addresses), maxAddresses)
	}
	for _, ip := range offer.Addresses {
		if _, err := netip.ParseAddr(ip); err != nil {
			return nil, r, fmt.Errorf("%w: address: %w", ErrInvalid, err)
		}
	}
	return dump, r, m.checkRestore(ctx, r)
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
	err := peer.Streamed(func(from io.Reader) error {
		_, err := m.Images.Import(ctx, from, image.ImportOptions{})
		return err
	})
	if err != nil {
		return err
	}
	return peer.Send(move.Message{Type: move.Imported})
}

// receiveContainers unpacks the archives of the containers, by their names, which refer to
// the blocks that came before.
func (m *Manager) receiveContainers(ctx context.Context, peer *move.Conn, dump *PodDump, ahead move.Blocks) (map[string]*origin, error) {
	made := map[string]*origin{}
	for _, c := range dump.Containers {
		enter(ctx, "receive container "+c.Name, false)
		err := peer.StreamedKnown(ahead, func(from io.Reader) (err error) {
			made[c.Name], err = m.unpackContainer(ctx, from, "", c)
			return err
		})
		if err != nil {
			return made, fmt.Errorf("container %.100q: %w", c.Name, err)
		}
	}
	return made, nil
}

// answerSettle says whether the pod of an attempt is here, or was. One that is on its way is
// ended first, and what is left of one removed, so that the answer stays true. Without that
// there is none.
func (m *Manager) answerSettle(ctx context.Context, peer *move.Conn, token string) error {
	m.mu.RLock()
	coming := m.arrivals[token]
	m.mu.RUnlock()
	if coming != nil {
		_ = coming.peer.Close() // it is being read from
		select {
		case <-coming.ended:
		case <-ctx.Done():
			return fmt.Errorf("settle the move of a pod: %w", context.Cause(ctx))
		}
	}

	id, err := m.settled(ctx, token)
	if err != nil {
		return fmt.Errorf("settle the move of a pod: %w", err)
	}
	_, own, err := m.restoreFrom()
	if err != nil {
		return fmt.Errorf("settle the move of a pod: %w", err)
	}
	if err := peer.Send(move.Message{Type: move.Settled, Node: own.String(), ID: id}); err != nil {
		return fmt.Errorf("settle the move of a pod: %w", err)
	}
	return nil
}

// settled is the ID of a pod that came here, "" for one that did not and that nothing is left
// of.
func (m *Manager) settled(ctx context.Context, token string) (id string, err error) {
	if r := m.arrival(token); r != nil && !r.Restoring {
		return r.ID, nil
	} else if r != nil {
		if err := m.RemoveSandbox(ctx, r.ID); err != nil {
			return "", err
		}
	}
	text, err := os.ReadFile(filepath.Join(m.Root, goneDir, token))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

// arrival is the record of the pod that came, or was to come, by a move.
func (m *Manager) arrival(token string) *Record {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, p := range m.pods {
		if r := p.record(); r.Arrived == token {
			return r
		}
	}
	return nil
}

func (m *Manager) arrivalID(token string) string {
	if r := m.arrival(token); r != nil {
		return r.ID
	}
	return ""
}

// noteGone notes that a pod which came here is being removed: the node that it came from may
// still ask.
func (p *pod) noteGone() error {
	r := p.record()
	if r.Arrived == "" || r.Restoring {
		return nil
	}
	dir := filepath.Join(p.m.Root, goneDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("note that a moved pod was here: %w", err)
	}
	if err := durable.ReplaceFile(filepath.Join(dir, r.Arrived), []byte(r.ID), 0o600); err != nil {
		return fmt.Errorf("note that a moved pod was here: %w", err)
	}
	return nil
}

// forgetGone removes the notes that are old.
func (m *Manager) forgetGone() {
	dir := filepath.Join(m.Root, goneDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		warn(err, "look for notes of moved pods")
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > goneTime {
			warn(os.Remove(filepath.Join(dir, e.Name())), "remove an old note of a moved pod")
		}
	}
}
