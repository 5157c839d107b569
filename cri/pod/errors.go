package pod

import (
	"errors"

	crierrors "k8s.io/cri-api/pkg/errors"
)

// Errors that callers distinguish. Every error of this package whose cause the
// caller can act on wraps one of them.
var (
	// ErrNotFound means that no sandbox or container has the given id.
	ErrNotFound = errors.New("not found")
	// ErrAmbiguous means that an id prefix fits several objects.
	ErrAmbiguous = errors.New("ambiguous id")
	// ErrInvalid means that a request contradicts itself or the rules of the CRI.
	ErrInvalid = errors.New("invalid argument")
	// ErrState means that the object is not in the state the operation needs.
	ErrState = errors.New("wrong state")
	// ErrExists means that another object holds the same name.
	ErrExists = errors.New("already exists")
	// ErrTimeout means that an operation's own deadline passed.
	ErrTimeout = errors.New("timed out")
	// ErrImageVolume means that an image volume cannot be mounted. Its text is
	// the token by which kubelet recognises the case.
	ErrImageVolume = crierrors.ErrImageVolumeMountFailed
	// ErrUnkillable means that a process survived SIGKILL, as one in
	// uninterruptible sleep does.
	ErrUnkillable = errors.New("process could not be killed")
	// ErrPlugin means that a change which plugins ask for cannot be made.
	ErrPlugin = errors.New("a change by plugins cannot be made")
	// ErrNoPlugin means that a required plugin is not connected, or did not answer.
	ErrNoPlugin = errors.New("a required plugin is not connected")
)
