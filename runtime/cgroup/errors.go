package cgroup

import "errors"

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
	// ErrNotFound means that the group does not exist (any more).
	ErrNotFound = errors.New("cgroup not found")
	// ErrBusy means that processes were still in the group when time was up.
	ErrBusy = errors.New("cgroup still has processes")
)
