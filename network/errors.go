package network

import "errors"

var (
	// ErrNotReady means that pods cannot be attached at present: there is no
	// network configuration, or a plugin is missing or reports that it is not ready.
	ErrNotReady = errors.New("network not ready")
	// ErrInvalid means that a request is invalid.
	ErrInvalid = errors.New("invalid network request")
	// ErrNoAddress means that the plugins assigned no address to a pod.
	ErrNoAddress = errors.New("no address")
	// ErrClosed means that the network was closed.
	ErrClosed = errors.New("network closed")
)
