package rootfs

import "errors"

// Errors of root file systems.
var (
	// ErrNotFound means that no root file system was prepared for an ID.
	ErrNotFound = errors.New("no such root file system")
	// ErrInvalidID means that an ID is not usable as a directory name.
	ErrInvalidID = errors.New("invalid container ID")
	// ErrSubPath means that a path is not a file or directory in an image.
	ErrSubPath = errors.New("no such path in the image")
	// ErrUnsupported means that the kernel or file system lacks a feature.
	ErrUnsupported = errors.New("not supported")
)
