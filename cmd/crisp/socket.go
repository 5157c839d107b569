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
	"crisp/cri/audit"
)

// answerTime is how long a socket's server has to accept a connection before it
// counts as alive and busy.
const answerTime = time.Second

// listen creates a socket that only root may use, and replaces one whose server
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
	return accept.Sound(accept.Patient(audit.Peers(l))), nil
}

// replaceable reports whether a dead socket is at path. Another type of file,
// or a socket with a server, is an error: crisp must not remove it.
func replaceable(path string) (bool, error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("check for an old socket: %w", err)
	}

	if st.Mode().Type() != fs.ModeSocket {
		return false, fmt.Errorf("listen on %s: the existing file is not a socket (%s); move it away, or choose another path with --listen", path, st.Mode())
	}

	conn, err := net.DialTimeout("unix", path, answerTime) // #nosec G704 -- configured by the administrator
	if err == nil {
		conn.Close()
	}

	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return true, nil
	case errors.Is(err, unix.EPROTOTYPE): // not a stream socket, so not crisp's
		return false, fmt.Errorf("listen on %s: a socket of another type exists there; choose another path with --listen", path)
	}

	return false, fmt.Errorf("listen on %s: another process already serves it; stop that, or choose another path with --listen", path)
}
