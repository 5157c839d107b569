package store

import "errors"

// Errors of reading and writing blobs.
var (
	// ErrNotFound means that there is no such blob.
	ErrNotFound = errors.New("no such blob")
	// ErrMismatch means that content does not match its descriptor.
	ErrMismatch = errors.New("content does not match its descriptor")
)

// ErrRecord means that the record of images cannot be read. The store is
// usable, and empty, when [Store.Images] returns it.
var ErrRecord = errors.New("unreadable record of images")
