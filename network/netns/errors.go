package netns

import "errors"

// ErrNotNamespace means that a file is not a network namespace.
var ErrNotNamespace = errors.New("not a network namespace")
