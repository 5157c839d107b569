package layer

import "errors"

// Errors of unpacking.
var (
	// ErrInvalid means that a layer's archive breaks the format or tries
	// something that no layer may do.
	ErrInvalid = errors.New("invalid layer")
	// ErrTooLarge means that a layer exceeds a limit.
	ErrTooLarge = errors.New("layer too large")
	// ErrMuch means that a layer takes much memory to unpack: see [Limits].
	ErrMuch = errors.New("layer takes much memory to unpack")
	// ErrUnsupported means that a layer is packed in a way not known here.
	ErrUnsupported = errors.New("unsupported layer format")
)

// ErrNotFound means that a layer is not here.
var ErrNotFound = errors.New("no such layer")
