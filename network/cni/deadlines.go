//go:build !crash

package cni

import "time"

// Deadlines of calls. The caller's own deadline may be earlier.
const (
	// addTimeout is for a whole chain. It is shorter than kubelet's timeout for a
	// new pod (four minutes).
	addTimeout = 3 * time.Minute
	// delTimeout is for each plugin: one that hangs must not use up the time of
	// the others.
	delTimeout = time.Minute
	// killGrace is how long a plugin may keep running after its deadline.
	killGrace = 10 * time.Second
)
