package criu

import "errors"

var (
	// ErrMissing means that this node has no usable CRIU: none is installed, or it
	// is too old.
	ErrMissing = errors.New("checkpoints need CRIU")
	// ErrRefused means that CRIU cannot save, or not restore, what the processes use.
	ErrRefused = errors.New("CRIU refuses")
	// ErrExcess means that a checkpoint has more than the container that is made of
	// it may have.
	ErrExcess = errors.New("the checkpoint has what was not asked for")
	// ErrTimeout means that CRIU did not end in time.
	ErrTimeout = errors.New("CRIU did not end in time")
)
