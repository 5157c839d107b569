// Package node looks up what a container's configuration refers to on the host:
// paths, mounts, devices and AppArmor profiles. It implements the Node
// interface of package spec.
package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Node is the machine that the daemon runs on.
type Node struct{}

// Resolve returns the host path with all symbolic links resolved; see
// spec.Node.
func (Node) Resolve(path string, create bool) (string, error) {
	_, err := os.Stat(path)
	if create && errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(path, 0o755); err != nil {
			return "", fmt.Errorf("create missing host path: %w", err)
		}
	}
	if err != nil {
		return "", err // unwrapped, so that the caller can tell the kernel's errors apart
	}
	return filepath.EvalSymlinks(path)
}

// Mounts returns the host's mount table.
func (Node) Mounts() ([]*mountinfo.Info, error) { return mountinfo.GetMounts(nil) }

// AppArmorLoaded reports whether the kernel has a profile of this name.
func (Node) AppArmorLoaded(name string) (bool, error) {
	data, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, name+" (") {
			return true, nil
		}
	}
	return false, nil
}

// Devices returns the device node at path, or those beneath it if it is a
// directory. In a directory, what every container has anyway, such as
// terminals, is left out.
func (Node) Devices(path string) ([]specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}

	info, err := os.Stat(real)
	if err != nil {
		return nil, err
	}

	if !info.IsDir() {
		d, err := device(real)
		if err != nil {
			return nil, err
		}
		d.Path = path
		return []specs.LinuxDevice{*d}, nil
	}

	var out []specs.LinuxDevice
	err = filepath.WalkDir(real, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) && p != real {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}

		if e.IsDir() {
			switch e.Name() {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				return filepath.SkipDir
			}
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 || e.Name() == "console" {
			return nil
		}

		d, err := device(p)
		if errors.Is(err, os.ErrNotExist) {
			return nil // unplugged meanwhile
		}
		if err != nil {
			return err
		}

		d.Path = filepath.Join(path, strings.TrimPrefix(p, real))
		out = append(out, *d)
		return nil
	})

	return out, err
}

// device describes the device node at path.
func device(path string) (*specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}

	d := &specs.LinuxDevice{
		Path: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		UID: &st.Uid, GID: &st.Gid,
	}

	mode := fs.FileMode(st.Mode & 0o777)
	d.FileMode = &mode
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.Type = "b"
	case unix.S_IFCHR:
		d.Type = "c"
	default:
		return nil, fmt.Errorf("%s is not a device node", path)
	}

	return d, nil
}
