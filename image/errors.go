package image

import (
	"errors"

	"crisp/image/layer"
	"crisp/image/registry"
	"crisp/image/rootfs"
	"crisp/image/store"
)

// Errors of looking images up.
var (
	// ErrNotFound means that there is no such image, locally or in the registry.
	ErrNotFound = registry.ErrNotFound
	// ErrAmbiguous means that several image IDs begin with the given prefix.
	ErrAmbiguous = errors.New("ambiguous image ID")
	// ErrInvalidReference means that a string cannot name an image.
	ErrInvalidReference = registry.ErrInvalidReference
)

// Errors of pulling.
var (
	// ErrUnavailable means that no usable response came from the registry.
	ErrUnavailable = registry.ErrUnavailable
	// ErrDenied means that the registry denies access with these credentials.
	ErrDenied = registry.ErrDenied
	// ErrProtocol means that the registry's response violates the protocol.
	ErrProtocol = registry.ErrProtocol
	// ErrConfig means that a hosts.toml is invalid.
	ErrConfig = registry.ErrConfig
	// ErrUnsupported means an image of a format or for a platform that this
	// node does not support.
	ErrUnsupported = errors.New("unsupported image")
	// ErrInvalid means that an image violates its format or does not match its
	// digests.
	ErrInvalid = errors.New("invalid image")
)

// Errors of root file systems.
var (
	// ErrNoRootFS means that no root file system was prepared for a container.
	ErrNoRootFS = rootfs.ErrNotFound
	// ErrSubPath means that a path does not exist in an image.
	ErrSubPath = rootfs.ErrSubPath
	// ErrInvalidID means that a container ID is not usable as a directory name.
	ErrInvalidID = rootfs.ErrInvalidID
)

// ErrLocked means that another process has the image directory open.
var ErrLocked = errors.New("image directory is in use by another process")

// ErrClosed means that the service was closed.
var ErrClosed = errors.New("image service is closed")

// classify maps errors of the packages below to the classes of this package.
func classify(err error) error {
	class := []struct{ from, to error }{
		{layer.ErrInvalid, ErrInvalid}, {layer.ErrTooLarge, ErrInvalid}, {store.ErrMismatch, ErrInvalid},
		{layer.ErrUnsupported, ErrUnsupported}, {rootfs.ErrUnsupported, ErrUnsupported},
	}
	for _, c := range class {
		if errors.Is(err, c.from) {
			return &classed{class: c.to, err: err}
		}
	}
	return err
}

// classed is an error of a class; its text does not repeat the class's.
type classed struct{ class, err error }

func (c *classed) Error() string   { return c.err.Error() }
func (c *classed) Unwrap() []error { return []error{c.class, c.err} }
