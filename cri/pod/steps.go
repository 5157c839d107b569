package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crisp/runtime/failpoint"
	"crisp/runtime/span"
)

// Phases that no step has.
const (
	// phaseReady follows the last step of a table: the commit point.
	phaseReady = "ready"
	// phaseStopped is that of a sandbox whose network and namespaces are
	// released.
	phaseStopped = "stopped"
)

// undoTimeout bounds a rollback, which runs even if the caller was cancelled.
const undoTimeout = 2 * time.Minute

// step is one effect on the machine. Its name is recorded before do runs.
// Undo is idempotent and tolerates that do never happened.
type step[T any] struct {
	name string
	// sync makes the record, if not its phase, survive a power cut before do
	// runs, for effects that outlive the boot, such as a leased address.
	sync bool
	// Both are method expressions, so the receiver comes first.
	do, undo func(T, context.Context) error
}

// Meter measures what happens to pods and containers. Its methods must not block.
type Meter interface {
	// Step is called after a step of a table ("sandbox", "container", "start") was
	// done, or undone.
	Step(table, step string, undo bool, took time.Duration, err error)
	// Exited is called when the exit of a container is recorded, with the CRI's
	// reason.
	Exited(reason string)
}

// measured is a target whose steps are measured.
type measured interface {
	measure(step string, undo bool, took time.Duration, err error)
}

// timed has an effect of a step, measures it and marks it in the call's trace.
func timed[T any](ctx context.Context, target T, step string, undo bool, do func(T, context.Context) error) error {
	enter(ctx, step, undo)
	effect, name := "do "+step, step
	if undo {
		effect = "undo " + step
		name = effect
	}
	ctx, end := span.Start(ctx, name)
	began := time.Now()
	err := failpoint.Between(effect, func() error { return do(target, ctx) })
	end(err)
	if m, ok := any(target).(measured); ok {
		m.measure(step, undo, time.Since(began), err)
	}
	return err
}

func (p *pod) measure(step string, undo bool, took time.Duration, err error) {
	if p.m.Meter != nil {
		p.m.Meter.Step("sandbox", step, undo, took, err)
	}
}

func (k *creation) measure(step string, undo bool, took time.Duration, err error) {
	if k.p.m.Meter != nil {
		k.p.m.Meter.Step("container", step, undo, took, err)
	}
}

// stage measures a part of a container's start.
func (p *pod) stage(ctx context.Context, name string, do func(context.Context) error) error {
	enter(ctx, name, false)
	began := time.Now()
	err := span.Do(ctx, name, do)
	if p.m.Meter != nil {
		p.m.Meter.Step("start", name, false, time.Since(began), err)
	}
	return err
}

// recorder records that a target is in a phase.
type recorder func(phase string, sync bool) error

// walk runs the steps in order and records phaseReady at the end. If one
// fails, all started ones are undone, and the error names the one that failed.
func walk[T any](ctx context.Context, steps []step[T], target T, note recorder) error {
	for _, s := range steps {
		if err := note(s.name, s.sync); err != nil {
			return undone(err, rollback(ctx, steps, s.name, target))
		}
		if err := timed(ctx, target, s.name, false, s.do); err != nil {
			return undone(&stepError{s.name, err}, rollback(ctx, steps, s.name, target))
		}
	}
	last := steps[len(steps)-1].name
	if err := note(phaseReady, false); err != nil {
		return undone(err, rollback(ctx, steps, last, target))
	}
	return nil
}

// leftError is a failure whose effects could not be undone.
type leftError struct{ cause, rollback error }

func (e *leftError) Error() string {
	return fmt.Sprintf("%v; roll back: %v", e.cause, e.rollback)
}

func (e *leftError) Unwrap() []error { return []error{e.cause, e.rollback} }

func undone(cause, rollback error) error {
	if rollback == nil {
		return cause
	}
	return &leftError{cause: cause, rollback: rollback}
}

// leftOver reports whether a failed walk left effects on the machine.
func leftOver(err error) bool {
	var l *leftError
	return errors.As(err, &l)
}

// rollback is unwind for a caller that may have been cancelled.
func rollback[T any](ctx context.Context, steps []step[T], phase string, target T) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return unwind(ctx, steps, phase, target)
}

// unwind undoes the steps from the one named phase back to the first. A phase
// that names no step means all of them. It stops at an undo that fails: what
// that step depends on must stay, so that undoing it can be retried.
func unwind[T any](ctx context.Context, steps []step[T], phase string, target T) error {
	from := len(steps) - 1
	for i, s := range steps {
		if s.name == phase {
			from = i
		}
	}
	for i := from; i >= 0; i-- {
		s := steps[i]
		if err := timed(ctx, target, s.name, true, s.undo); err != nil {
			return &stepError{"undo " + s.name, err}
		}
	}
	return nil
}
