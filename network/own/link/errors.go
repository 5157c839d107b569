package link

import "errors"

var (
	// ErrForeign means that an interface of the name exists and is not ours.
	ErrForeign = errors.New("interface belongs to something else")
	// ErrUnsupported means that the kernel lacks a kind of interface or queue.
	ErrUnsupported = errors.New("kernel lacks a feature")
	// ErrNoIPv6 means that IPv6 is disabled.
	ErrNoIPv6 = errors.New("IPv6 is disabled")
	// ErrBroken means that a pod's network is not as it was made.
	ErrBroken = errors.New("network of the pod was changed")
)
