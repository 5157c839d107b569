package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/move"
	"crisp/runtime/checkpoint"
	"crisp/runtime/failpoint"
)

// ErrUnsettled means that a pod was handed over to another node, and that it is not known
// whether it runs there.
var ErrUnsettled = errors.New("the pod is frozen until it is known whether it runs on the other node; migrate it again to find out")

// Migration says how a pod moves to another node.
type Migration struct {
	// Node is what the user calls it.
	Node string
	// Limit is how long the pod may be frozen, 0 for a minute.
	Limit time.Duration
	// Address has the pod keep its addresses.
	Address bool
	// Settle only settles what an earlier attempt has left.
	Settle bool
}

// Migrate moves a running pod to the node at the other end of a conversation. The pod is
// removed here once it runs there; after an error other than [ErrUnsettled] it goes on here.
func (m *Manager) Migrate(ctx context.Context, id string, o Migration, peer *move.Conn) (report move.Report, err error) {
	p, err := m.pod(id)
	if err != nil {
		return report, err
	}
	r := p.record()
	ctx, end := m.activity.begin(ctx, p.operation("migrate"))
	defer func() {
		end(err)
		if err != nil {
			err = fmt.Errorf("migrate pod %s to %s: %w", r.Name(), o.Node, err)
		}
	}()
	if o.Limit < 0 {
		return report, fmt.Errorf("%w: time-out %v", ErrInvalid, o.Limit)
	}
	if o.Limit == 0 {
		o.Limit = checkpointTime
	}
	ctx, cancel := context.WithTimeoutCause(ctx, receiveTime, fmt.Errorf("%w after %v", ErrTimeout, receiveTime))
	defer cancel()
	defer peer.While(ctx)()

	known, err := move.NewKnown(move.MaxBlocks)
	if err != nil {
		return report, err
	}
	mv := &moving{p: p, o: o, peer: peer, token: newID(), known: known}
	switch {
	case r.Moving != nil:
		err = mv.settle(ctx)
	case o.Settle:
		err = fmt.Errorf("it was not handed over, and goes on here: %w", ErrState)
	default:
		err = mv.run(ctx)
	}
	report = move.Report{ID: mv.id, Ahead: int64(mv.known.Len()) * move.BlockSize, Frozen: mv.frozen.Nanoseconds()}
	if err == nil {
		err = m.RemoveSandbox(context.WithoutCancel(ctx), r.ID)
	}
	if err != nil && p.record().Moving != nil && !errors.Is(err, ErrUnsettled) {
		err = fmt.Errorf("%w: %w", ErrUnsettled, err) // whatever went wrong, it is frozen
	}
	return report, err
}

// moving is an attempt to move a pod.
type moving struct {
	p     *pod
	o     Migration
	peer  *move.Conn
	token string
	// known are the blocks of memory that were sent ahead.
	known *move.Known
	// id is that of the pod on the other node, and frozen how long it ran nowhere, once it
	// runs there.
	id     string
	frozen time.Duration
}

func (mv *moving) run(ctx context.Context) error {
	list, err := mv.check()
	if err != nil {
		return err
	}
	ids := idsOf(list)
	text, err := json.Marshal(mv.p.record().dump(list, func(int) string { return "" }))
	if err != nil {
		return fmt.Errorf("encode %s: %w", checkpoint.PodFile, err)
	}
	key, err := checkpoint.OpenKey(mv.p.m.Root)
	if err != nil {
		return err
	}

	enter(ctx, "ask "+mv.o.Node, false)
	offer := move.Message{Type: move.Offer, Version: move.Version, Token: mv.token, Dump: text, Images: imagesOf(list)}
	if mv.o.Address {
		offer.Addresses = mv.p.record().IPs
	}
	if err := mv.peer.Send(offer); err != nil {
		return err
	}
	answer, err := mv.hear(ctx, move.Answer)
	if err != nil {
		return err
	}
	if err := mv.sendImages(ctx, offer.Images, answer.Missing); err != nil {
		return err
	}

	if err := mv.sendAhead(ctx, list); err != nil {
		return err
	}

	began := time.Now()
	defer func() { mv.frozen = time.Since(began) }()
	ctx, cancel := context.WithTimeoutCause(ctx, mv.o.Limit, fmt.Errorf("%w after %v", ErrTimeout, mv.o.Limit))
	defer cancel()
	defer mv.peer.While(ctx)()
	return mv.p.capture(ctx, ids, saving{use: func(ctx context.Context, list []*frozen) error {
		defer mv.peer.While(ctx)() // a stop of the pod ends it
		if now, err := mv.check(); err != nil || !slices.Equal(idsOf(now), ids) {
			return errors.Join(err, fmt.Errorf("its containers have changed meanwhile: %w", ErrState))
		}
		if err := mv.peer.Send(move.Message{Type: move.Saved}); err != nil {
			return err
		}
		for _, f := range list {
			enter(ctx, "send container "+f.c.Config.Msg.GetMetadata().GetName()+" to "+mv.o.Node, false)
			if err := mv.peer.StreamKnown(mv.known, func(w io.Writer) error { return f.stage.Stream(ctx, w, key) }); err != nil {
				return err
			}
		}
		return mv.handOver(ctx, list)
	}})
}

// hear waits for the answer to a question, which takes the other node no time.
func (mv *moving) hear(ctx context.Context, want move.Type) (move.Message, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, mv.o.Limit, fmt.Errorf("%w after %v", ErrTimeout, mv.o.Limit))
	defer cancel()
	defer mv.peer.While(ctx)()
	answer, err := mv.peer.Receive(want)
	return answer, timedOut(ctx, err)
}

// check returns what moves. All containers that have not ended must be running.
func (mv *moving) check() (running []*Container, err error) {
	r := mv.p.record()
	if !r.Ready() || r.Restoring {
		return nil, fmt.Errorf("it is not ready: %w", ErrState)
	}
	if r.Moving != nil {
		return nil, r.moved()
	}

	for _, c := range r.Containers {
		switch c.State() {
		case runtimeapi.ContainerState_CONTAINER_EXITED:
		case runtimeapi.ContainerState_CONTAINER_RUNNING:
			running = append(running, c)
		default:
			return nil, fmt.Errorf("container %s is %s, and only one that runs or has ended can move: %w", c.Config.Msg.GetMetadata().GetName(), c.StateName(), ErrState)
		}
	}
	if len(running) == 0 {
		return nil, fmt.Errorf("no container of it is running: %w", ErrState)
	}
	return running, nil
}

// imagesOf are the images of containers, by ID.
func imagesOf(list []*Container) (ids []string) {
	for _, c := range list {
		if !slices.Contains(ids, c.ImageID) {
			ids = append(ids, c.ImageID)
		}
	}
	return ids
}

// sendImages sends the images that the other node asks for, if they are among the pod's.
func (mv *moving) sendImages(ctx context.Context, of, missing []string) error {
	for _, id := range missing {
		if !slices.Contains(of, id) {
			return fmt.Errorf("%w: it asks for image %.100q, which the pod does not have", move.ErrLost, id)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	enter(ctx, fmt.Sprintf("send %d images to %s", len(missing), mv.o.Node), false)
	if err := mv.peer.Stream(func(w io.Writer) error { return mv.p.m.Images.Export(ctx, missing, w) }); err != nil {
		return err
	}
	_, err := mv.peer.Receive(move.Imported) // before anything is frozen
	return err
}

// handOver lets the pod run on the other node. It is frozen, and has been sent.
func (mv *moving) handOver(ctx context.Context, list []*frozen) error {
	enter(ctx, "wait for "+mv.o.Node, false)
	prepared, err := mv.peer.Receive(move.Prepared)
	if err != nil {
		return err
	}
	if prepared.Node == "" {
		return fmt.Errorf("%w: it does not say who it is", move.ErrLost)
	}
	err = failpoint.Between("hand over the pod", func() error {
		return mv.p.update(func(r *Record) { r.Moving = &Moving{mv.token, mv.o.Node, prepared.Node} })
	})
	if err != nil {
		return errors.Join(err, mv.takeBack())
	}

	err = mv.peer.Send(move.Message{Type: move.Go})
	var answer move.Message
	if err == nil {
		answer, err = mv.peer.Receive(move.Runs)
	}
	switch {
	case errors.Is(err, move.ErrRefused):
		return errors.Join(err, mv.takeBack())
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnsettled, err)
	}
	mv.id = answer.ID
	return failpoint.Between("end the moved pod", func() error { return mv.end(ctx, list) })
}

// takeBack records that the pod stays.
func (mv *moving) takeBack() error { return mv.p.update(func(r *Record) { r.Moving = nil }) }

// end kills the frozen containers of a pod that runs elsewhere.
func (mv *moving) end(ctx context.Context, list []*frozen) (err error) {
	for _, f := range list {
		err = errors.Join(err, mv.p.m.killGroup(context.WithoutCancel(ctx), f.group))
	}
	return err
}

// settle asks the other node whether a pod that was handed over is there. If it is not, and
// never will be, it goes on here.
func (mv *moving) settle(ctx context.Context) error {
	ctx, done := mv.p.interruptible(ctx, nil)
	defer done()
	release, err := mv.p.lock(ctx)
	if err != nil {
		return timedOut(ctx, err)
	}
	defer release()
	was := mv.p.record().Moving
	if was == nil {
		return fmt.Errorf("it was settled meanwhile: %w", ErrState)
	}

	enter(ctx, "ask "+mv.o.Node+" for the pod", false)
	if err := mv.peer.Send(move.Message{Type: move.Offer, Version: move.Version, Token: was.Token, Settle: true}); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsettled, err)
	}
	answer, err := mv.hear(ctx, move.Settled)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnsettled, err)
	}
	if answer.Node != was.Key {
		return fmt.Errorf("%w: it was handed over to %s, which is another node than this one", ErrUnsettled, was.Node)
	}
	if answer.ID != "" {
		mv.id = answer.ID
		return nil
	}

	if err := failpoint.Between("take the pod back", mv.takeBack); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsettled, err)
	}
	if err := mv.p.goOn(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return fmt.Errorf("%s does not have it, and it goes on here: %w", was.Node, ErrState)
}

// goOn lets the containers of a pod go on that was frozen to be moved.
func (p *pod) goOn(ctx context.Context) error {
	errs := []error{p.releaseNetwork()}
	for _, c := range p.record().Containers {
		if !c.Frozen || !p.runs(c.ID) {
			continue
		}
		group, err := p.groupOf(c)
		if err == nil {
			err = p.thaw(ctx, &frozen{c: c, group: group})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", c.ID, err))
		}
	}
	return errors.Join(errs...)
}

// moved is why nothing is begun in a pod that was handed over.
func (r *Record) moved() error {
	return fmt.Errorf("it was handed over to %s; crisp migrate --settle finds out whether it runs there: %w", r.Moving.Node, ErrState)
}
