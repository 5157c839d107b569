package criu

import "errors"

var (
	// ErrMissing means that this node has no usable CRIU: none is installed, or it
	// is too old.
	ErrMissing = errors.New("checkpoints need CRIU")
	// ErrRefused means that CRIU cannot save what the processes use.
	ErrRefused = errors.New("CRIU cannot dump the processes")
	// ErrTimeout means that CRIU did not end in time.
	ErrTimeout = errors.New("CRIU did not end in time")
)
