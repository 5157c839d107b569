package seccomp

import "errors"

var (
	// ErrInvalid means that a profile has an invalid value.
	ErrInvalid = errors.New("invalid seccomp profile")
	// ErrUnsupported means that a profile uses a feature that crisp lacks.
	ErrUnsupported = errors.New("unsupported seccomp profile")
	// ErrTooLarge means that a compiled profile is longer than the kernel
	// accepts, or that the file is too large for a profile.
	ErrTooLarge = errors.New("seccomp profile too large")
)
