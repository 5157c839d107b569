package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"crisp/cri/accept"
)

// answerTime is how long a socket's server has to take a connection before it
// counts as one that is alive and busy.
const answerTime = time.Second

// listen makes a socket, which only root may use, in place of one whose server
// is dead.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	dead, err := replaceable(path)
	if err != nil {
		return nil, err
	}

	if dead {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove old socket: %w", err)
		}
	}

	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}

	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, fmt.Errorf("restrict socket: %w", err)
	}
	return accept.Sound(accept.Patient(l)), nil
}

// replaceable reports whether a dead socket is at path. What is no socket, and
// one that somebody serves, is an error: it is not ours to remove.
func replaceable(path string) (bool, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for an old socket: %w", err)
	}

	if st.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("listen on %s: there is something that is no socket (%s); move it away, or name another path with --listen", path, st.Mode())
	}

	conn, err := net.DialTimeout("unix", path, answerTime) // #nosec G704 -- the administrator names it
	if err == nil {
		conn.Close()
	}

	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return true, nil
	case errors.Is(err, unix.EPROTOTYPE): // not a stream's: none of ours
		return false, fmt.Errorf("listen on %s: a socket of another kind is there; name another path with --listen", path)
	}

	return false, fmt.Errorf("listen on %s: somebody serves it already; stop that, or name another path with --listen", path)
}
