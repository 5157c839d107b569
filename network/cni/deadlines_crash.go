//go:build crash

package cni

import "time"

// Deadlines that are short enough for tests.
const (
	addTimeout = 10 * time.Second
	delTimeout = 5 * time.Second
	killGrace  = time.Second
)
