package link

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"crisp/network/netns"
)

// sysctls are the settings of a network namespace below /proc/sys/net.
//
// A directory there belongs to the namespace of the thread that opened it, and its
// files can then be used from any thread. It is opened once because the kernel compares
// a name with those of all namespaces, which takes long with a thousand pods.
type sysctls struct{ v4, v6 *os.File }

// openSysctls opens those of a namespace. Without IPv6 in the kernel there are none of
// that.
func openSysctls(ns *os.File) (s sysctls, err error) {
	err = netns.Do(ns, func() error {
		var err error
		s, err = openOwnSysctls(true)
		return err
	})
	return s, err
}

// openOwnSysctls opens those of the calling thread's namespace, of IPv4 only if asked to.
func openOwnSysctls(v4 bool) (s sysctls, err error) {
	if v4 {
		if s.v4, err = os.Open("/proc/sys/net/ipv4"); err != nil {
			return sysctls{}, fmt.Errorf("open sysctls: %w", err)
		}
	}
	s.v6, err = os.Open("/proc/sys/net/ipv6")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.close()
		return sysctls{}, fmt.Errorf("open sysctls: %w", err)
	}
	return s, nil
}

func (s sysctls) close() {
	for _, f := range []*os.File{s.v4, s.v6} {
		if f != nil {
			f.Close()
		}
	}
}

// set sets a sysctl, unless it has the value: reading works where /proc/sys is
// read-only. One that does not exist is an [fs.ErrNotExist].
func (s sysctls) set(v4 bool, name, value string) error {
	if present, err := s.get(v4, name); err != nil || present == value {
		return err
	}

	f, err := s.open(v4, name, os.O_WRONLY)
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	if _, err := f.WriteString(value); err != nil {
		return errors.Join(fmt.Errorf("set sysctl: %w", err), f.Close())
	}
	return f.Close()
}

// get reads a sysctl.
func (s sysctls) get(v4 bool, name string) (string, error) {
	f, err := s.open(v4, name, os.O_RDONLY)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// setOf sets a sysctl of an interface, if the kernel has it.
func (s sysctls) setOf(ifName string, v4 bool, name, value string) error {
	err := s.set(v4, "conf/"+ifName+"/"+name, value)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s sysctls) open(v4 bool, name string, flags int) (*os.File, error) {
	dir := s.v6
	if v4 {
		dir = s.v4
	}
	if dir == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	path := filepath.Join(dir.Name(), name)
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
