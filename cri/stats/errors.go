package stats

import "errors"

// ErrNotFound means that there is no such container or pod.
var ErrNotFound = errors.New("no statistics: not found")
