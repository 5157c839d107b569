package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/image"
	"crisp/runtime/checkpoint"
)

// Commit says which image [Manager.CommitContainer] makes, and how.
type Commit struct {
	// Name is the image's, a reference without a digest, Comment what its history says.
	Name, Comment string
	// Pin keeps it from kubelet's garbage collection.
	Pin bool
	// Live leaves the container running while its files are read: each of them is then
	// as it was at some time, but not all at the same.
	Live bool
	// Limit is how long reading them may take, 0 for a minute.
	Limit time.Duration
}

// CommitContainer makes an image of a container's image and of the files that the
// container has changed, whether it was started, runs or has ended. A running one is
// frozen while these are read, and goes on before they are unpacked.
func (m *Manager) CommitContainer(ctx context.Context, id string, o Commit) (im image.Image, err error) {
	p, id, err := m.container(id)
	if err != nil {
		return im, err
	}
	if o.Limit < 0 {
		return im, fmt.Errorf("commit container %s: %w: time-out %v", id, ErrInvalid, o.Limit)
	}
	if o.Limit == 0 {
		o.Limit = checkpointTime
	}
	c := p.record().Container(id)
	if c == nil {
		return im, fmt.Errorf("container %s: %w", id, ErrNotFound)
	}

	// Its layers stay with the container, but not the blobs that an image needs.
	if _, err := m.Images.Get(c.ImageID); errors.Is(err, image.ErrNotFound) {
		return im, fmt.Errorf("commit container %s: its image %s was removed, pull it again: %w", id, c.ImageRef, ErrState)
	}

	ctx, end := m.activity.begin(ctx, p.operationOn("commit", id))
	defer func() { end(err) }()
	by := "crisp commit " + p.record().Name() + "/" + c.Config.Msg.GetMetadata().GetName()
	im, err = m.Images.Commit(ctx, c.ImageID, image.CommitOptions{Name: o.Name, Pin: o.Pin, By: by, Comment: o.Comment},
		func(ctx context.Context, to io.Writer) (bool, error) {
			changed, err := p.writeLayer(ctx, id, o, to)
			enter(ctx, "unpack the changes", false)
			return changed, err
		})
	if err != nil {
		return im, fmt.Errorf("commit container %s: %w", id, err)
	}
	return im, nil
}

// writeLayer writes what a container has changed as a layer. Other operations on the pod
// wait meanwhile; those that stop or remove the container end it.
func (p *pod) writeLayer(ctx context.Context, id string, o Commit, to io.Writer) (changed bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Limit, fmt.Errorf("%w after %v", ErrTimeout, o.Limit))
	defer cancel()
	ctx, done := p.interruptible(ctx, []string{id})
	defer done()
	release, err := p.lock(ctx)
	if err != nil {
		return false, timedOut(ctx, err)
	}
	defer release()

	f, err := p.committable(id)
	if err != nil {
		return false, err
	}
	began := false
	walk := func(f *frozen) error {
		began = true
		changed, err = p.walk(ctx, f, to)
		return err
	}

	if f.group != nil && !o.Live {
		err = p.whileFrozen(ctx, []*frozen{f}, walk, nil)
		// One that has just ended, and its cgroup with it, needs no freezing.
		if err == nil || began || p.runs(id) {
			return changed, err
		}
	}
	return changed, timedOut(ctx, walk(f))
}

// runs reports whether a container is running.
func (p *pod) runs(id string) bool {
	c := p.record().Container(id)
	return c != nil && c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING
}

// committable returns a container that has files of its own, with its cgroup if it is
// running.
func (p *pod) committable(id string) (*frozen, error) {
	c := p.record().Container(id)
	if c == nil {
		return nil, fmt.Errorf("container %s: %w", id, ErrNotFound)
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
		return nil, fmt.Errorf("container %s: it is %s: %w", id, c.StateName(), ErrState)
	}

	f := &frozen{c: c}
	var err error
	if f.spec, err = p.loadSpec(id); err != nil {
		return nil, err
	}
	if !p.runs(id) {
		return f, nil
	}
	if f.group, err = p.groupOf(c); err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	return f, nil
}

// walk writes the layer.
func (p *pod) walk(ctx context.Context, f *frozen, to io.Writer) (changed bool, err error) {
	enter(ctx, "read the changes of container "+f.c.Config.Msg.GetMetadata().GetName(), false)
	d := checkpoint.Diff{IDs: inside(f.spec)}
	if d.Upper, err = p.m.Images.Upper(f.c.ID); err != nil {
		return false, err
	}
	defer d.Upper.Close()
	if d.Lower, err = p.m.Images.Lower(ctx, f.c.ID); err != nil {
		return false, err
	}
	defer d.Lower.Close()
	return d.WriteLayer(ctx, to)
}
