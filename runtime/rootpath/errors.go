package rootpath

import "errors"

// Errors of [OpenRegular], [ReadFile] and [AppendFile].
var (
	// ErrNotRegular means that the path leads to something other than a regular file.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge means that the file is larger than the caller accepts.
	ErrTooLarge = errors.New("file too large")
)

// Errors of [RemoveAll].
var (
	// ErrMountPoint means that something is mounted inside the tree to remove.
	ErrMountPoint = errors.New("is a mount point")
	// ErrBusy means that files are added concurrently to the tree being removed.
	ErrBusy = errors.New("tree is being written to")
)

// ErrName means that an argument that must be one path component is not.
var ErrName = errors.New("not a single path component")

// ErrTooDeep means that [CopyTree] was given directories nested too deep.
var ErrTooDeep = errors.New("directories nested too deep")
