//go:build crash

package cni

import "time"

// Deadlines that a test need not wait for long.
const (
	addTimeout = 10 * time.Second
	delTimeout = 5 * time.Second
	killGrace  = time.Second
)
