package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// set sets a sysctl of the thread's namespace, unless it has the value: reading is
// cheaper, and works where /proc/sys is read-only.
func set(name, value string) error {
	path := "/proc/sys/" + name
	present, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read sysctl: %w", err)
	}
	if strings.TrimSpace(string(present)) == value {
		return nil
	}

	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	if _, err := f.WriteString(value); err != nil {
		return errors.Join(fmt.Errorf("set sysctl: %w", err), f.Close())
	}
	return f.Close()
}

// setAll sets those sysctls that exist: a kernel without IPv6 has none of its.
func setAll(values map[string]string) error {
	for name, value := range values {
		if err := set(name, value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
