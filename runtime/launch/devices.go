package launch

import (
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// deviceNodes makes the nodes of a spec's devices for a container in a user
// namespace, which cannot do so itself: they have the owner and mode of the
// spec, as without one. Those of the host would belong to nobody.
func (in *inputs) deviceNodes(s *specs.Spec, o *plan.Options) error {
	if !needsNodes(s) {
		return nil
	}
	dir, err := newTmpfs(map[string]string{"mode": "755", "source": "devices"})
	if err != nil {
		return fmt.Errorf("make file system of device nodes: %w", err)
	}

	in.own("devices", dir)
	for i, d := range s.Linux.Devices {
		if err := makeNode(dir, strconv.Itoa(i), d, s.Linux); err != nil {
			return fmt.Errorf("make node of device %s: %w", d.Path, err)
		}
	}
	o.DeviceNodes = true
	return nil
}

func needsNodes(s *specs.Spec) bool {
	return len(s.Linux.Devices) > 0 && slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
}

func makeNode(dir *os.File, name string, d specs.LinuxDevice, l *specs.Linux) error {
	kinds := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK}
	kind, ok := kinds[d.Type]
	if !ok {
		return nil // a FIFO can be made by any user, and the plan refuses others
	}

	uid, gid, mode := uint32(0), uint32(0), uint32(0o666)
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}

	fd := int(dir.Fd())
	if err := unix.Mknodat(fd, name, kind|0o600, int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))); err != nil {
		return err
	}
	if err := unix.Fchownat(fd, name, int(plan.HostID(l.UIDMappings, uid)), int(plan.HostID(l.GIDMappings, gid)), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.Fchmodat(fd, name, mode, 0) // not subject to the umask
}
