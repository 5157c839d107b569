package pod

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// updateWait is how long the updates of one answer of a plugin wait, all together,
// for operations that run on their pods: a plugin may ask for them in the middle of
// such an operation.
const updateWait = time.Second

// patience is how long updates may still wait.
type patience struct{ left time.Duration }

// lock locks a pod's operations, and takes what that lasts from the patience.
func (w *patience) lock(ctx context.Context, p *pod) (release func(), err error) {
	const atLeast = 10 * time.Millisecond // for a lock that nobody has
	ctx, cancel := context.WithTimeout(ctx, max(w.left, atLeast))
	defer cancel()
	begin := time.Now()
	release, err = p.lock(ctx)
	w.left -= time.Since(begin)
	return release, err
}

// applyUpdates applies the changes of other containers that plugins ask for in an
// operation on this pod, whose lock is held.
func (p *pod) applyUpdates(ctx context.Context, updates []Update) error {
	wait := patience{updateWait}
	var ignored failures
	for i, u := range updates {
		err := p.m.applyUpdate(ctx, p, u, &wait)
		if err != nil && !u.IgnoreFailure {
			return fmt.Errorf("%w: %w", ErrPlugin, err)
		}
		ignored.add(i, err)
	}
	ignored.log()
	return nil
}

// ApplyUpdates applies changes of limits that plugins ask for, and returns the
// indices of those that failed.
func (m *Manager) ApplyUpdates(ctx context.Context, updates []Update) (failed []int) {
	wait := patience{updateWait}
	var all failures
	for i, u := range updates {
		err := ctx.Err()
		if err == nil {
			err = m.applyUpdate(ctx, nil, u, &wait)
		}
		all.add(i, err)
	}
	all.log()
	return all.indices
}

// failures are those of several updates. They are logged together: a plugin may ask
// for any number of them.
type failures struct {
	indices []int
	first   error
}

func (f *failures) add(i int, err error) {
	if err == nil {
		return
	}
	f.indices = append(f.indices, i)
	if f.first == nil {
		f.first = err
	}
}

func (f *failures) log() {
	if f.first != nil {
		klog.InfoS("Could not apply updates of a plugin", "failed", len(f.indices), "first", f.first)
	}
}

// applyUpdate applies one update. The lock of the pod held, if not nil, is the
// caller's.
func (m *Manager) applyUpdate(ctx context.Context, held *pod, u Update, wait *patience) error {
	p, id, err := m.container(u.Container)
	if err != nil {
		return fmt.Errorf("update by a plugin: %w", err)
	}
	if u.Refused != nil {
		return fmt.Errorf("update of container %s by a plugin: %w", id, u.Refused)
	}
	if id != u.Container { // plugins know whole IDs: a prefix is a mistake
		return fmt.Errorf("update by a plugin: container %q: %w", u.Container, ErrNotFound)
	}

	if p != held {
		release, err := wait.lock(ctx, p)
		if err != nil {
			return fmt.Errorf("update of container %s by a plugin: %w", id, err)
		}
		defer release()
	}

	c := p.record().Container(id)
	if c == nil {
		return fmt.Errorf("update by a plugin: container %s: %w", id, ErrNotFound)
	}
	switch c.State() {
	case runtimeapi.ContainerState_CONTAINER_CREATED, runtimeapi.ContainerState_CONTAINER_RUNNING:
	default:
		return fmt.Errorf("update of container %s by a plugin: it is %s: %w", id, c.StateName(), ErrState)
	}
	if err := p.applyResources(ctx, c, u.Limits); err != nil {
		return fmt.Errorf("update of container %s by a plugin: %w", id, err)
	}
	return nil
}
