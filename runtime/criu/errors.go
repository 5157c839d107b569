package criu

import "errors"

var (
	// ErrMissing means that this node has no usable CRIU: none is installed, or it
	// is too old.
	ErrMissing = errors.New("checkpoints need CRIU")
	// ErrRefused means that CRIU cannot save, or not restore, what the processes use.
	ErrRefused = errors.New("CRIU refuses")
	// ErrImages means that images are malformed, too large, or of a kind that is not
	// known.
	ErrImages = errors.New("invalid images of CRIU")
	// ErrForbidden means that images have more than the container may have that is to
	// be restored from them.
	ErrForbidden = errors.New("the checkpoint has more than the container may have")
	// ErrDiffers means that images are of a container with other mounts than the one that is
	// to be restored from them.
	ErrDiffers = errors.New("the checkpoint is of a container with other mounts")
	// ErrUnsupported means that images have what crisp does not restore.
	ErrUnsupported = errors.New("crisp does not restore that")
	// ErrTimeout means that CRIU did not end in time.
	ErrTimeout = errors.New("CRIU did not end in time")
)
