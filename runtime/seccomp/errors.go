package seccomp

import "errors"

var (
	// ErrInvalid means that a profile has a value with no meaning.
	ErrInvalid = errors.New("invalid seccomp profile")
	// ErrUnsupported means that a profile asks for what crisp cannot do.
	ErrUnsupported = errors.New("unsupported seccomp profile")
	// ErrTooLarge means that a profile makes a program longer than the
	// kernel accepts, or that a profile's file is too large to be one.
	ErrTooLarge = errors.New("seccomp profile too large")
)
