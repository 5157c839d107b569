//go:build crash

package cni

import "time"

// Deadlines that a test need not wait for long.
const (
	addTimeout = 20 * time.Second
	delTimeout = 8 * time.Second
	killGrace  = time.Second
)
