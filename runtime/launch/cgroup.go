package launch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/runtime/procstat"
	"crisp/runtime/spawn"
)

// refused reports whether the kernel refused to clone into a cgroup of the
// unified hierarchy: a container that manages child groups has turned its own
// group into an inner node, which cannot contain processes.
func refused(err error) bool {
	var failed *spawn.StepError
	return errors.As(err, &failed) && failed.Index < 0 && (failed.Err == unix.EBUSY || failed.Err == unix.EOPNOTSUPP)
}

// cgroupOf opens the cgroup in the unified hierarchy that a process is in.
func cgroupOf(pidfd *os.File) (*os.File, error) {
	if pidfd == nil {
		return nil, fmt.Errorf("find cgroup of container: %w", ErrNotHeld)
	}
	pid, err := procstat.PIDOf(pidfd)
	if err != nil {
		return nil, fmt.Errorf("find cgroup of container: %w", err)
	}
	path, err := field(fmt.Sprintf("/proc/%d/cgroup", pid), "0::")
	if err != nil {
		return nil, fmt.Errorf("find cgroup of container: %w", err)
	}
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0); err != nil {
		return nil, fmt.Errorf("find cgroup of container: %w", err) // the PID may have been reused
	}
	return openFile(cgroupRoot+path, unix.O_RDONLY|unix.O_DIRECTORY)
}

// field returns the rest of the line of a small file that has a prefix.
func field(path, prefix string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 64<<10))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), prefix); ok {
			return value, nil
		}
	}
	return "", errors.Join(fmt.Errorf("%s has no line %q", path, prefix), lines.Err())
}
