package netns

import "errors"

// ErrNotNamespace says that a file is not a network namespace.
var ErrNotNamespace = errors.New("not a network namespace")
