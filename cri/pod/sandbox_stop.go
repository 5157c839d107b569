package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// phaseStopping is that of a sandbox whose stop is running or has failed.
const phaseStopping = "stopping"

// firstKept is the sandbox step whose effect outlives StopPodSandbox.
const firstKept = "make files"

// StopSandbox kills the sandbox's containers and releases its network and
// namespaces. A sandbox that does not exist is a success.
func (m *Manager) StopSandbox(ctx context.Context, id string) error {
	p, err := m.pod(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	p.interruptCheckpoints("")
	_, err = m.join(ctx, "stop of sandbox "+p.record().ID, p.operation("stop"), func(ctx context.Context) (string, error) {
		release, err := p.lock(ctx)
		if err != nil {
			return "", err
		}
		defer release()
		return "", p.stop(ctx)
	})
	return err
}

// stop is called with the operation lock held.
func (p *pod) stop(ctx context.Context) error {
	r := p.record()
	if r.Phase == phaseStopped {
		return nil
	}

	wasReady := r.Ready()
	if err := p.note(phaseStopping); err != nil {
		return ignoreNotFound(err)
	}

	if err := p.killContainers(ctx); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", r.ID, err)
	}
	for _, c := range p.record().Containers {
		p.tellStopped(ctx, c.ID)
	}
	if err := unwind(ctx, after(sandboxSteps, firstKept), "", p); err != nil {
		err = fmt.Errorf("stop sandbox %s: %w", r.ID, err)
		p.noteLeft(err)
		return err
	}

	// If a power cut loses this the address is released twice.
	err := p.update(func(r *Record) {
		r.Phase, r.Reason, r.IPs, r.Pause = phaseStopped, "", nil, nil
	})

	if err == nil && wasReady {
		p.m.events.sandbox(p.record(), runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
	return err
}

// after returns the steps that follow the named one.
func after[T any](steps []step[T], name string) []step[T] {
	for i, s := range steps {
		if s.name == name {
			return steps[i+1:]
		}
	}
	return steps
}

// killContainers kills all running containers of the pod concurrently.
func (p *pod) killContainers(ctx context.Context) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)

	for _, c := range p.record().Containers {
		if c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		wg.Go(func() {
			if err := p.kill(ctx, c); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()

	return errors.Join(errs...)
}

// RemoveSandbox stops a sandbox and removes it with its containers. A sandbox
// that does not exist is a success.
func (m *Manager) RemoveSandbox(ctx context.Context, id string) error {
	p, err := m.pod(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	p.interruptCheckpoints("")
	_, err = m.join(ctx, "removal of sandbox "+p.record().ID, p.operation("remove"), func(ctx context.Context) (string, error) {
		release, err := p.lock(ctx)
		if err != nil {
			return "", err
		}
		defer release()
		return "", p.remove(ctx)
	})
	return err
}

func (p *pod) remove(ctx context.Context) error {
	if err := p.noteGone(); err != nil {
		return err
	}
	if err := p.stop(ctx); err != nil {
		return err
	}
	r := p.record()
	for _, c := range r.Containers {
		if err := p.removeContainer(ctx, c.ID); err != nil {
			return fmt.Errorf("remove sandbox %s: %w", r.ID, err)
		}
	}

	if err := unwind(ctx, sandboxSteps, firstKept, p); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", r.ID, err)
	}
	if err := p.forget(ctx); err != nil {
		return err
	}

	p.m.events.sandbox(p.record(), runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}
