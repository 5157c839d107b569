package checkpoint

import "errors"

// Errors of reading a checkpoint.
var (
	// ErrInvalid means that a checkpoint is malformed, or has something that no
	// checkpoint has to have: a link, a device, a name that leads elsewhere.
	ErrInvalid = errors.New("invalid checkpoint")
	// ErrTooLarge means that a checkpoint exceeds a limit, or that the disk has no
	// space for it.
	ErrTooLarge = errors.New("checkpoint too large")
	// ErrUntrusted means that nobody whose checkpoints are restored has signed it.
	ErrUntrusted = errors.New("checkpoint of nobody who is trusted")
)
