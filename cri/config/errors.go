package config

import "errors"

// The errors of a configuration.
var (
	// ErrInvalid means that a key has a value that is not allowed.
	ErrInvalid = errors.New("invalid value")
	// ErrUnknownKey means that there is no such key.
	ErrUnknownKey = errors.New("unknown key")
)
