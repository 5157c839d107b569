package launch

import "errors"

// Errors of starting a process.
var (
	// ErrNotHeld is a descriptor that a plan needs and the caller does not hold.
	ErrNotHeld = errors.New("descriptor is not held")
	// ErrNotFound is a program that is not in PATH, or not at its path.
	ErrNotFound = errors.New("executable file not found")
	// ErrNotExecutable is a program without execute permission, or a file that
	// is not a program.
	ErrNotExecutable = errors.New("file is not executable")
	// ErrNoIDMap is a file system that does not support ID-mapped mounts.
	ErrNoIDMap = errors.New("file system does not support id-mapped mounts")
	// ErrNoPIDOption is a kernel before Linux 6.18, which cannot mount a procfs
	// of another PID namespace.
	ErrNoPIDOption = errors.New("the kernel lacks the procfs mount option pidns (Linux 6.18)")
	// ErrInProcfs is a mount target in /proc to which a link of the image leads.
	ErrInProcfs = errors.New("a link of the image leads to /proc, where nothing may be mounted")
	// ErrAgent is the agent of a seccomp filter, without which the container cannot
	// start.
	ErrAgent = errors.New("seccomp agent")
	// ErrNoSource is a mount source that is missing on the host, perhaps
	// removed between the container's creation and its start.
	ErrNoSource = errors.New("mount source does not exist on the host; recreate the container once it does")
)
