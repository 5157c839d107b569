package cgroup

import (
	"errors"
	"io/fs"
)

// Errors about names and requests.
var (
	// ErrParent means that a cgroup parent does not fit the driver.
	ErrParent = errors.New("invalid cgroup parent")
	// ErrResources means that a limit is malformed or contradictory.
	ErrResources = errors.New("invalid resources")
	// ErrUnsupported means that the kernel or the cgroup version lacks what
	// a limit needs.
	ErrUnsupported = errors.New("not supported by this machine's cgroups")
)

// Errors about groups.
var (
	// ErrNotFound means that the group does not exist (any more). It is a
	// kind of [fs.ErrNotExist].
	ErrNotFound error = notFoundError{}
	// ErrInUse means that more memory is in use than a limit would allow.
	ErrInUse = errors.New("limit below current usage")
	// ErrBusy means that processes were still in the group when the context ended.
	ErrBusy = errors.New("cgroup still has processes")
	// ErrDefunct means that only processes are left in the group that have ended and that
	// their parents do not reap. The kernel lets it go when they do.
	ErrDefunct = errors.New("cgroup has processes that have ended and were not reaped")
)

type notFoundError struct{}

func (notFoundError) Error() string { return "cgroup not found" }

func (notFoundError) Is(target error) bool { return target == fs.ErrNotExist }
