package stdio

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Pipe returns both ends of a pipe. Unlike os.Pipe it leaves them blocking:
// the end that a container gets must not surprise it with EAGAIN.
func Pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// Polled turns our end of a pipe over to the network poller, so that a wait
// for it holds no thread and ends when the file is closed.
func Polled(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate pipe: %w", err)
	}
	f.Close()
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make pipe non-blocking: %w", err)
	}
	return os.NewFile(uintptr(fd), "pipe"), nil
}
