//go:build !crash

package cni

import "time"

// Deadlines of calls. The caller's own may be earlier.
const (
	// addTimeout is for a whole chain, and ends before kubelet's patience
	// with a new pod (four minutes) does.
	addTimeout = 3 * time.Minute
	// delTimeout is for each plugin: one that hangs must not take the time of
	// the others.
	delTimeout = time.Minute
	// killGrace is how long a plugin may go on when it should end.
	killGrace = 10 * time.Second
)
