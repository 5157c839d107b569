package spawn

import (
	"errors"
	"fmt"
	"syscall"
)

// Errors of starting a plan.
var (
	// ErrDied is a child that exited before execve without reporting a failed
	// step: it was killed, or the caller aborted it.
	ErrDied = errors.New("child exited before exec")
	// ErrInputs is a wrong number of descriptors for a plan's inputs, or a
	// descriptor 0, 1 or 2 among them.
	ErrInputs = errors.New("wrong input descriptors")
	// ErrReport is an invalid report from the child.
	ErrReport = errors.New("malformed report from child")
)

// StepError is a step of a plan that failed.
type StepError struct {
	// Plan is the plan's name: "start container web".
	Plan string
	// Index is the step's index, or -1 when the plan failed before its first step.
	Index int
	// Step is the step's name: "mount /proc".
	Step string
	// Err is what the system call returned.
	Err syscall.Errno
}

// Error names the plan, the step and the cause.
func (e *StepError) Error() string {
	if e.Index < 0 {
		return fmt.Sprintf("%s: %s: %v", e.Plan, e.Step, e.Err)
	}
	return fmt.Sprintf("%s: step %d %q: %v", e.Plan, e.Index, e.Step, e.Err)
}

// Unwrap returns the system call's error.
func (e *StepError) Unwrap() error { return e.Err }
