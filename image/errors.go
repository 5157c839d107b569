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
	// ErrNotFound means that there is no such image, here or in the registry.
	ErrNotFound = registry.ErrNotFound
	// ErrAmbiguous means that several images' IDs begin like that.
	ErrAmbiguous = errors.New("ambiguous image ID")
	// ErrInvalidReference means that a string cannot name an image.
	ErrInvalidReference = registry.ErrInvalidReference
)

// Errors of pulling.
var (
	// ErrUnavailable means that no usable answer came from the registry.
	ErrUnavailable = registry.ErrUnavailable
	// ErrDenied means that the registry refuses with these credentials.
	ErrDenied = registry.ErrDenied
	// ErrProtocol means that the registry's answers make no sense.
	ErrProtocol = registry.ErrProtocol
	// ErrConfig means that a hosts.toml is wrong.
	ErrConfig = registry.ErrConfig
	// ErrUnsupported means an image in a form, or for a platform, that cannot
	// run here.
	ErrUnsupported = errors.New("unsupported image")
	// ErrInvalid means that an image breaks its format or its digests.
	ErrInvalid = errors.New("invalid image")
)

// Errors of root file systems.
var (
	// ErrNoRootFS means that nothing was prepared under a container's ID.
	ErrNoRootFS = rootfs.ErrNotFound
	// ErrSubPath means that a path leads nowhere in an image.
	ErrSubPath = rootfs.ErrSubPath
	// ErrInvalidID means that a container ID cannot name a directory.
	ErrInvalidID = rootfs.ErrInvalidID
)

// ErrLocked means that another process has the image directory open.
var ErrLocked = errors.New("image directory is in use by another process")

// ErrClosed means that the service was closed.
var ErrClosed = errors.New("image service is closed")

// classify gives errors of the packages below their class at this boundary.
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

// classed is an error under a class, without a word more.
type classed struct{ class, err error }

func (c *classed) Error() string   { return c.err.Error() }
func (c *classed) Unwrap() []error { return []error{c.class, c.err} }
