package stream

import (
	"errors"
	"fmt"
)

var (
	// ErrInvalid says that a request contradicts itself or lacks something.
	ErrInvalid = errors.New("invalid streaming request")
	// ErrTooMany says that too many URLs were given out and not used yet.
	ErrTooMany = errors.New("too many streaming requests in flight")
	// ErrStopping is why the context of a session ends when the server stops.
	ErrStopping = errors.New("crisp is being stopped or restarted, and its sessions end; containers run on")
)

// ExitError is returned by [Runtime.Exec] for a command that ran and ended
// with a code that is not zero. The client gets the code.
type ExitError struct{ Code int }

// Error says how the command ended.
func (e *ExitError) Error() string { return fmt.Sprintf("command ended with exit code %d", e.Code) }

// String is the same as Error.
func (e *ExitError) String() string { return e.Error() }

// Exited tells that the command ran.
func (e *ExitError) Exited() bool { return true }

// ExitStatus returns the code.
func (e *ExitError) ExitStatus() int { return e.Code }
