package portforward

import "errors"

// ErrInvalidPort means that a number is not a TCP port.
var ErrInvalidPort = errors.New("not a port")
