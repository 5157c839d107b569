package lease

import "errors"

var (
	// ErrExhausted means that every address of a range set is assigned.
	ErrExhausted = errors.New("no free address")
	// ErrTaken means that a requested address is assigned to another pod.
	ErrTaken = errors.New("address is in use")
	// ErrOutside means that a requested address is in no range.
	ErrOutside = errors.New("address is in no range")
	// ErrInvalidRange means that a range is malformed or overlaps another one.
	ErrInvalidRange = errors.New("invalid range")
)
