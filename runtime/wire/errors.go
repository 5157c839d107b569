package wire

import "errors"

// Errors of the protocol, and those in replies of a keeper.
var (
	// ErrProtocol is an invalid packet; the connection is unusable afterwards.
	ErrProtocol = errors.New("protocol violation")
	// ErrVersion is a peer that speaks another version.
	ErrVersion = errors.New("protocol version not supported")
	// ErrPeer is a peer that runs as another user.
	ErrPeer = errors.New("peer runs as another user")

	// ErrExists is a start under an ID that is taken.
	ErrExists = errors.New("id already exists")
	// ErrNotFound is a request about an ID, or a name under it, that is not held.
	ErrNotFound = errors.New("id not found")
	// ErrRunning is a request to forget a process that lives.
	ErrRunning = errors.New("process is running")
	// ErrNotRunning is a request that needs a living process with a log.
	ErrNotRunning = errors.New("process is not running")
	// ErrInvalid is a request whose parts do not fit together.
	ErrInvalid = errors.New("invalid request")
	// ErrCanceled is a start that was cancelled.
	ErrCanceled = errors.New("start canceled")
)
