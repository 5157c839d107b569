package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/sealed"
	"crisp/runtime/wire"
)

const (
	// The service manager replaces its socket whenever the unit is started, so
	// a keeper started by the daemon needs another one.
	unitSocketName = "keeper.sock"
	ownSocketName  = "keeper-own.sock"

	lockName   = "keeper.lock"
	logName    = "keeper.log"
	binaryName = "crisp-keeper"
	// attempts is how often Connect tries when keepers disconnect.
	attempts = 5
)

// Connect connects to the keeper of stateDir, and starts it from binary if
// there is none; an empty binary means crisp-keeper next to the running
// executable. stateDir must exist and be private to this user.
func Connect(ctx context.Context, stateDir, binary string) (*Client, error) {
	dir, err := openState(stateDir)
	if err != nil {
		return nil, fmt.Errorf("connect to keeper: %w", err)
	}
	defer dir.Close()

	for range attempts {
		var c *Client
		c, err = connect(ctx, dir, stateDir, binary)
		if err == nil {
			return c, nil
		}
		if errors.Is(err, ErrVersion) {
			if _, uerr := upgrade(ctx, dir, binary); uerr != nil {
				return nil, fmt.Errorf("connect to keeper: %w; replace it: %w", err, uerr)
			}
			continue
		}

		// A keeper that was about to exit disconnects: retry.
		if !errors.Is(err, io.EOF) || errors.Is(err, ErrKeeper) || ctx.Err() != nil {
			break
		}
	}

	return nil, fmt.Errorf("connect to keeper: %w", err)
}

func connect(ctx context.Context, dir *os.File, stateDir, binary string) (*Client, error) {
	fd, err := dial(dir)
	if err == nil {
		return greet(ctx, fd, nil)
	}
	if !notListening(err) {
		return nil, err
	}

	lock, err := lockState(ctx, stateDir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()

	if fd, err := dial(dir); err == nil {
		return greet(ctx, fd, nil)
	}
	cmd, err := launch(dir, stateDir, binary)
	if err != nil {
		return nil, err
	}

	fd, err = dial(dir)
	if err == nil {
		var c *Client
		if c, err = greet(ctx, fd, cmd); err == nil {
			return c, nil
		}
	}

	// Errors mean that it has exited already.
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return nil, fmt.Errorf("%w: %w; see %s", ErrKeeper, err, filepath.Join(stateDir, logName))
}

// openState opens the state directory and checks that only this user can write to it.
func openState(path string) (*os.File, error) {
	dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}

	info, err := dir.Stat()
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("examine state directory: %w", err)
	}

	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		dir.Close()
		return nil, fmt.Errorf("%w: %s", ErrState, path)
	}
	return dir, nil
}

// address returns a socket address that fits sun_path however long the
// directory's path is.
func address(dir *os.File, name string) (*unix.SockaddrUnix, error) {
	n, err := wire.Number(dir)
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", n, name)}, nil
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	return fd, nil
}

// dial connects to the keeper that listens. One started by a daemon comes
// first: it may hold entries that the service manager's lacks.
func dial(dir *os.File) (int, error) {
	fd, err := dialSocket(dir, ownSocketName)
	if notListening(err) {
		return dialSocket(dir, unitSocketName)
	}
	return fd, err
}

// notListening reports whether an error means that no process listens.
func notListening(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

func dialSocket(dir *os.File, name string) (int, error) {
	addr, err := address(dir, name)
	if err != nil {
		return -1, err
	}
	fd, err := socket()
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, addr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect socket %s: %w", name, err)
	}
	return fd, nil
}

// greet does the handshake over a connected socket.
func greet(ctx context.Context, fd int, keeper *exec.Cmd) (*Client, error) {
	conn, err := wire.NewConn(fd)
	if err != nil {
		return nil, err
	}

	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = hello(conn)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}

	return newClient(conn, keeper), nil
}

func hello(conn *wire.Conn) error {
	if err := conn.CheckPeer(); err != nil {
		return err
	}
	if err := conn.Identify(true); err != nil {
		return err
	}
	if err := conn.Send(0, wire.Hello{Version: wire.Version}, nil); err != nil {
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return io.EOF
		}
		return err
	}

	p, err := conn.Recv()
	if err != nil {
		return err
	}

	p.Files.Close()
	switch m := p.Msg.(type) {
	case wire.Hello:
		if m.Version != wire.Version {
			return fmt.Errorf("%w: keeper has %d, this is %d", ErrVersion, m.Version, wire.Version)
		}
		return conn.Identify(false)
	case wire.Fail:
		return m
	}

	return fmt.Errorf("%w: unexpected %T", wire.ErrProtocol, p.Msg)
}

// lockState takes the lock that a start of a keeper needs.
func lockState(ctx context.Context, stateDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(stateDir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}

	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("take lock: %w", err)
		}

		select {
		case <-tick.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("take lock: %w", ctx.Err())
		}
	}
}

// launch starts a keeper that listens on a fresh socket; the caller holds the
// lock. Connections made from now on wait for the keeper.
func launch(dir *os.File, stateDir, binary string) (*exec.Cmd, error) {
	image, err := sealedBinary(binary)
	if err != nil {
		return nil, err
	}
	defer image.Close()

	listener, err := listen(dir, stateDir, ownSocketName)
	if err != nil {
		return nil, err
	}
	defer listener.Close()

	log, err := os.OpenFile(filepath.Join(stateDir, logName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open keeper log: %w", err)
	}
	defer log.Close()

	abs, err := filepath.Abs(stateDir)
	if err != nil {
		return nil, fmt.Errorf("resolve state directory: %w", err)
	}

	cmd := &exec.Cmd{
		// Not /proc/self: the number may be another file in the child.
		Path: "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(image.Fd())),
		Args: []string{binaryName, abs},
		// Where transparent huge pages are always on, as on Debian, a small
		// heap would take up several of them.
		Env:         []string{"GODEBUG=disablethp=1"},
		Dir:         "/",
		Stderr:      log,
		ExtraFiles:  []*os.File{listener},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}

	return cmd, nil
}

// listen replaces a stale socket.
func listen(dir *os.File, stateDir, name string) (*os.File, error) {
	addr, err := address(dir, name)
	if err != nil {
		return nil, err
	}

	if err := os.Remove(filepath.Join(stateDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	fd, err := socket()
	if err != nil {
		return nil, err
	}

	f := os.NewFile(uintptr(fd), name)
	if err := unix.Fchmod(fd, 0o600); err != nil {
		f.Close()
		return nil, fmt.Errorf("protect socket: %w", err)
	}

	if err := unix.Bind(fd, addr); err != nil {
		f.Close()
		return nil, fmt.Errorf("bind socket: %w", err)
	}

	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		f.Close()
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	return f, nil
}

// sealedBinary is a sealed copy of the keeper's program.
func sealedBinary(path string) (*os.File, error) {
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find keeper binary: %w", err)
		}
		path = filepath.Join(filepath.Dir(self), binaryName)
	}
	image, err := sealed.Program(binaryName, path)
	if err != nil {
		return nil, fmt.Errorf("seal the keeper's program: %w", err)
	}
	return image, nil
}
