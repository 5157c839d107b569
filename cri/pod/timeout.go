//go:build !crash

package pod

import "time"

// killTimeout is how long a process may take to die after SIGKILL.
const killTimeout = 30 * time.Second
