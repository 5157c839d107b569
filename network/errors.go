package network

import "errors"

var (
	// ErrNotReady says that pods cannot be attached now: there is no network
	// configuration, or a plugin is missing or reports that it cannot work.
	ErrNotReady = errors.New("network not ready")
	// ErrInvalid says that what was asked of the network makes no sense.
	ErrInvalid = errors.New("invalid network request")
	// ErrNoAddress says that the plugins gave a pod no address.
	ErrNoAddress = errors.New("no address")
	// ErrClosed says that the network was closed.
	ErrClosed = errors.New("network closed")
)
