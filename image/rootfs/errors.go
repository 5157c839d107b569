package rootfs

import "errors"

// Errors of root file systems.
var (
	// ErrNotFound means that no root file system was prepared under an ID.
	ErrNotFound = errors.New("no such root file system")
	// ErrInvalidID means that an ID cannot be the name of a directory.
	ErrInvalidID = errors.New("invalid container ID")
	// ErrSubPath means that a path does not lead to a file or directory in an image.
	ErrSubPath = errors.New("no such path in the image")
	// ErrUnsupported means that the kernel or file system cannot do it.
	ErrUnsupported = errors.New("not supported by the kernel")
)
