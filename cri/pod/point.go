//go:build !crash

package pod

import "time"

// killTimeout is how long a process may take to die after SIGKILL.
const killTimeout = 30 * time.Second

// point is a failpoint, at which the crash tests kill the daemon or make it
// fail. Only a build with the tag "crash" has them.
func point(when, effect string) error { return nil }
