package launch

import "errors"

// Errors of starting a process.
var (
	// ErrNotHeld is a descriptor that a plan needs and the caller does not hold.
	ErrNotHeld = errors.New("descriptor is not held")
	// ErrNotFound is a program that is in no directory of PATH, or not at its path.
	ErrNotFound = errors.New("executable file not found")
	// ErrNotExecutable is a program that may not be executed, or is none.
	ErrNotExecutable = errors.New("file is not executable")
	// ErrNoIDMap is a file system that cannot be mounted with mapped ids.
	ErrNoIDMap = errors.New("file system does not support id-mapped mounts")
	// ErrNoPIDOption is a kernel before Linux 6.17, which cannot make a procfs of
	// another PID namespace.
	ErrNoPIDOption = errors.New("the kernel has no mount option pidns of procfs (Linux 6.17)")
	// ErrInProcfs is a target of a mount to which a link of the image leads.
	ErrInProcfs = errors.New("a link of the image leads to /proc, where nothing may be mounted")
	// ErrNoSource is what a container is to have mounted and the host has not, as
	// if it was removed between the container's creation and its start.
	ErrNoSource = errors.New("what is to be mounted is not on the host; create the container again once it is there")
	// ErrNoDevice is a device that the host has no node of.
	ErrNoDevice = errors.New("no node of the device on the host")
)
