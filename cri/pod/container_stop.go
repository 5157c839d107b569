package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/failpoint"
	"crisp/runtime/span"
)

// StopContainer sends the container's stop signal and, once timeout has
// passed, kills it. A later call with a shorter timeout shortens the wait. A
// container that is not running, or does not exist, is a success; one that is being
// started is stopped as soon as it runs.
func (m *Manager) StopContainer(ctx context.Context, id string, timeout time.Duration) (err error) {
	p, id, err := m.container(id)
	if err != nil {
		return ignoreNotFound(err)
	}

	c := p.record().Container(id)
	if c != nil && c.State() == runtimeapi.ContainerState_CONTAINER_CREATED {
		if err := m.awaitEnd(ctx, startOf(id)); err != nil {
			return err
		}
		c = p.record().Container(id)
	}
	if c == nil || c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}

	// Frozen, it could do nothing with the time that it is given.
	defer p.holdOffCheckpoints(id)()
	ctx, end := m.activity.begin(ctx, p.operationOn("stop", id))
	defer func() { end(err) }()
	if pr := p.process(id); timeout > 0 && pr != nil {
		signal := unix.SignalName(unix.Signal(c.StopSignal))
		enter(ctx, fmt.Sprintf("wait up to %s for the exit after signal %d (%s)", timeout, c.StopSignal, signal), false)
		_, waited := span.Start(ctx, "wait for exit", "signal", signal, "timeout", timeout.String())
		defer waited(nil)
		if err := pr.row.Signal(unix.Signal(c.StopSignal)); err != nil {
			return fmt.Errorf("send signal %d to container %s: %w", c.StopSignal, id, err)
		}
		timer := time.NewTimer(timeout)
		defer timer.Stop()

		select {
		case <-pr.exited:
			return nil
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for container %s to exit: %w", id, ctx.Err())
		}
	}

	return p.kill(ctx, c)
}

// helpAfter is how long a container takes to die from the SIGKILL of its first
// process unless it is frozen, throttled or in uninterruptible sleep.
const helpAfter = 100 * time.Millisecond

// kill kills all processes of a container and waits until that is recorded.
func (p *pod) kill(ctx context.Context, c *Container) (err error) {
	enter(ctx, "wait for the exit of container "+c.Config.Msg.GetMetadata().GetName()+" after SIGKILL", false)
	ctx, end := span.Start(ctx, "kill", "container", c.ID)
	defer func() { end(err) }()
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	pr := p.process(c.ID)
	if pr == nil { // it outlived its holders and could not be killed before
		if err := p.lose(ctx, c, keeperLost()); err != nil {
			return fmt.Errorf("kill container %s: %w", c.ID, err)
		}
		return nil
	}

	if err := pr.row.Signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill container %s: %w", c.ID, err)
	}
	select {
	case <-pr.exited:
		return nil
	case <-ctx.Done():
	case <-time.After(helpAfter):
		p.killGroup(ctx, c)
	}

	select {
	case <-pr.exited:
		return nil
	case err := <-pr.unrecorded:
		return fmt.Errorf("record the exit of container %s: %w", c.ID, err)
	case <-ctx.Done():
		return fmt.Errorf("kill container %s (process %d, %s): %w: %w", c.ID, pr.row.Pid(), processState(pr.row.Pid()), ErrUnkillable, ctx.Err())
	}
}

// killGroup helps to kill a container whose first process does not exit: that
// one exits after all others of its PID namespace, which may be frozen, or many
// that share little CPU time.
func (p *pod) killGroup(ctx context.Context, c *Container) {
	group, err := p.groupOf(c)
	if err != nil {
		return // without one nothing blocks it
	}
	err = p.m.killGroup(ctx, group)
	// The caller reports that it does not exit.
	if !errors.Is(err, ErrUnkillable) {
		warn(err, "kill the cgroup of a container that is being killed", "container", c.ID)
	}
}

// RemoveContainer removes a container, killing it if it runs. A container
// that does not exist is a success.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	p, id, err := m.container(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	p.interruptCheckpoints(id)
	_, err = m.join(ctx, "removal of container "+id, p.operationOn("remove", id), func(ctx context.Context) (string, error) {
		release, err := p.lock(ctx)
		if err != nil {
			return "", err
		}
		defer release()
		return "", p.removeContainer(ctx, id)
	})
	return err
}

// removeContainer is called with the operation lock held.
func (p *pod) removeContainer(ctx context.Context, id string) error {
	c := p.record().Container(id)
	if c == nil {
		return nil
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		if err := p.kill(ctx, c); err != nil {
			return err
		}
	}

	forget := func() error {
		ctx, cancel := context.WithTimeout(ctx, killTimeout)
		defer cancel()
		return p.m.forgetDying(ctx, id, nil)
	}
	if err := failpoint.Between("forget process", forget); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}

	p.tellStopped(ctx, id)
	if err := p.undoContainer(ctx, c); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	p.m.events.removed(p.record(), id)
	return nil
}

// undoContainer undoes all effects of a container on the machine, and removes
// its record.
func (p *pod) undoContainer(ctx context.Context, c *Container) error {
	if err := unwind(ctx, containerSteps, c.Phase, &creation{p: p, id: c.ID}); err != nil {
		return err
	}
	if err := p.update(func(r *Record) { r.drop(c.ID) }); err != nil {
		return err
	}
	p.m.unindex(c.ID)
	return nil
}
