package plan

import "errors"

// Errors of a plan's form.
var (
	// ErrInvalid is a plan that cannot be run: a register, an input or an
	// argument that does not exist.
	ErrInvalid = errors.New("invalid plan")
	// ErrTooLarge is a plan beyond the bounds.
	ErrTooLarge = errors.New("plan too large")
	// ErrVersion is an encoded plan of another version, or not a plan.
	ErrVersion = errors.New("unknown plan version")
)

// Errors of building a plan.
var (
	// ErrSpec is an invalid runtime-spec.
	ErrSpec = errors.New("invalid runtime-spec")
	// ErrUnsupported is a runtime-spec with settings that plans do not support.
	ErrUnsupported = errors.New("not supported")
)
