package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"crisp/test/node/cluster"
	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// machine is the suite's simulated machine: an address, directories at
// kubelet's paths, cgroups mounted over all others, and programs that stand in
// for those of systemd.
type machine struct {
	cluster.StandIns
	dir   string
	group string              // the cgroup that is the root
	taken map[string]*os.File // the true root of the hierarchy mounted there
}

func newMachine() (_ *machine, err error) {
	m := &machine{group: fmt.Sprintf("crisp_suite_%d", os.Getpid()), taken: map[string]*os.File{}}
	if m.dir, err = os.MkdirTemp("", "crisp-suite-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.leave())
		}
	}()

	if err := cluster.AddAddress(); err != nil {
		return nil, err
	}
	for name, place := range map[string]string{"lib": "/var/lib", "log": "/var/log"} {
		if err := os.MkdirAll(m.path(name+"/kubelet"), 0o755); err != nil {
			return nil, err
		}
		if err := mount(m.path(name), place); err != nil {
			return nil, err
		}
	}

	if err := mount("/var/lib/kubelet", "/var/lib/kubelet"); err != nil {
		return nil, err
	}
	if err := m.resolve(); err != nil {
		return nil, err
	}

	if m.StandIns, err = cluster.NewStandIns(m.dir); err != nil {
		return nil, err
	}
	return m, m.takeCgroups()
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// mount bind-mounts a directory and makes it shared with copies of this mount
// namespace, and with no others.
func mount(dir, place string) error {
	if err := unix.Mount(dir, place, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", place, err)
	}
	for _, flags := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", place, "", flags, ""); err != nil {
			return fmt.Errorf("share %s: %w", place, err)
		}
	}
	return nil
}

// resolve configures a DNS server that does not exist, so that lookups fail
// immediately.
func (m *machine) resolve() error {
	resolver := m.path("resolv.conf")
	if err := os.WriteFile(resolver, []byte("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(resolver, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /etc/resolv.conf: %w", err)
	}
	return nil
}

// takeCgroups mounts a cgroup of the test over every hierarchy: specs expect
// kubelet's cgroups at the root.
func (m *machine) takeCgroups() error {
	if err := cluster.MakeGroups("/" + m.group); err != nil {
		return err
	}
	if err := os.Mkdir(m.path("cgroup"), 0o755); err != nil {
		return err
	}
	for _, root := range inventory.Hierarchies() {
		if err := m.take(root); err != nil {
			return fmt.Errorf("mount cgroup %s in place of %s: %w", m.group, root, err)
		}
	}
	return nil
}

func (m *machine) take(root string) error {
	whole, err := os.Open(root)
	if err != nil {
		return err
	}

	aside := m.path("cgroup")
	if err := unix.Mount(filepath.Join(root, m.group), aside, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(err, whole.Close())
	}

	m.taken[root] = whole
	// Not on top of the hierarchy: it would be listed twice.
	return errors.Join(
		unix.Unmount(root, unix.MNT_DETACH),
		unix.Mount(aside, root, "", unix.MS_BIND, ""),
		unix.Unmount(aside, 0))
}

// leave undoes newMachine; mounts vanish with the namespace. Cgroups that are
// still in use are in the error.
func (m *machine) leave() error {
	var errs []error
	for root, whole := range m.taken {
		errs = append(errs, lab.RemoveCgroups(root+"/"))
		if err := unix.Unlinkat(int(whole.Fd()), m.group, unix.AT_REMOVEDIR); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup %s of %s: %w", m.group, root, err))
		}
		errs = append(errs, whole.Close())
	}

	points := append(inventory.MountsBelow("/var/lib"), inventory.MountsBelow("/var/log")...)
	for _, point := range append(points, "/var/lib", "/var/log", "/etc/resolv.conf") {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}

	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}
