package spec

import (
	"errors"
	"fmt"
)

// Errors about configurations that cannot be turned into a container.
var (
	// ErrInvalid means that a CRI configuration, or the part of the image
	// configuration it relies on, contradicts itself or the CRI.
	ErrInvalid = errors.New("invalid configuration")
	// ErrUnsupported means that a valid configuration requires something that this
	// node does not support.
	ErrUnsupported = errors.New("not supported by this node")
)

// invalid returns an error that wraps [ErrInvalid].
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

// unsupported returns an error that wraps [ErrUnsupported].
func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrUnsupported, fmt.Errorf(format, args...))
}
