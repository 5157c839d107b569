package stream

import (
	"errors"
	"fmt"
)

var (
	// ErrInvalid means that a request contradicts itself or lacks something.
	ErrInvalid = errors.New("invalid streaming request")
	// ErrTooMany means that too many issued URLs are not used yet.
	ErrTooMany = errors.New("too many streaming requests in flight")
	// ErrStopping is the cause of the end of a session's context when the
	// server stops.
	ErrStopping = errors.New("crisp is being stopped or restarted, and its sessions end; containers run on")
)

// ExitError is returned by [Runtime.Exec] for a command that ran and exited
// with a nonzero code. The client gets the code.
type ExitError struct{ Code int }

// Error describes how the command exited.
func (e *ExitError) Error() string { return fmt.Sprintf("command ended with exit code %d", e.Code) }

// String is the same as Error.
func (e *ExitError) String() string { return e.Error() }

// Exited reports that the command ran.
func (e *ExitError) Exited() bool { return true }

// ExitStatus returns the code.
func (e *ExitError) ExitStatus() int { return e.Code }
