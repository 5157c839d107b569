package layer

import "errors"

// Errors of unpacking.
var (
	// ErrInvalid means that a layer's archive violates the format, or does
	// something that layers must not do.
	ErrInvalid = errors.New("invalid layer")
	// ErrTooLarge means that a layer exceeds a limit.
	ErrTooLarge = errors.New("layer too large")
	// ErrNeedsMemory means that a layer needs much memory to be unpacked: see
	// [Limits.LargeMemory].
	ErrNeedsMemory = errors.New("layer needs much memory to be unpacked")
	// ErrUnsupported means that a layer's compression is not supported.
	ErrUnsupported = errors.New("unsupported layer format")
)

// ErrNotFound means that there is no such layer.
var ErrNotFound = errors.New("no such layer")
