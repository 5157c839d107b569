package client

import (
	"errors"
	"fmt"

	"crisp/runtime/wire"
)

// Errors of a client. A failed step is also a [*spawn.StepError].
var (
	// ErrLost is a lost connection to the keeper.
	ErrLost = errors.New("keeper connection lost")
	// ErrUnsent is also ErrLost: the keeper cannot have seen the request.
	ErrUnsent = fmt.Errorf("%w before the request was sent", ErrLost)
	// ErrReplaced is also ErrLost: nothing can be started until the next keeper
	// is connected.
	ErrReplaced = fmt.Errorf("another keeper is being started: %w", ErrLost)
	// ErrSilent is a keeper that is connected and does not answer.
	ErrSilent = errors.New("the keeper has not answered")
	// ErrKeeper is a keeper that was started and did not reply.
	ErrKeeper = errors.New("keeper does not start")
	// ErrState is a state directory that others may write to.
	ErrState = errors.New("state directory is not private")
	// ErrNoGate is a request with a Gate whose plan has no gate.
	ErrNoGate = errors.New("plan has no gate")

	// ErrExists is a start under an ID that is taken.
	ErrExists = wire.ErrExists
	// ErrNotFound is a request about an ID, or a name under it, that is not held.
	ErrNotFound = wire.ErrNotFound
	// ErrRunning is a request to forget a process that lives.
	ErrRunning = wire.ErrRunning
	// ErrNotRunning is a request that needs a living process with a log.
	ErrNotRunning = wire.ErrNotRunning
	// ErrInvalid is a request whose parts do not fit together.
	ErrInvalid = wire.ErrInvalid
	// ErrVersion is a keeper that speaks another version of the protocol.
	ErrVersion = wire.ErrVersion
)

// Refused reports whether an error is the keeper's own reply, so that the
// request was not executed.
func Refused(err error) bool {
	var f wire.Fail
	return errors.As(err, &f)
}
