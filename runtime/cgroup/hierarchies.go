package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// limitedControllers are the version 1 controllers whose limits or statistics
// containers use. A group is created in the other hierarchies, too; see the
// package documentation.
var limitedControllers = [...]string{
	"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb",
}

// hierarchy is one that the kernel has in use, of either version.
type hierarchy struct {
	// controllers are those that share the hierarchy, or its name, as in
	// "name=systemd"; empty for the unified one.
	controllers []string
	dir         string
	// options are what a further mount of a version 1 hierarchy must repeat.
	options []string
	// own is a private mount of this process, for a hierarchy that is not
	// mounted at its usual place, nil for others.
	own *os.File
}

func (h *hierarchy) unified() bool { return len(h.controllers) == 0 }

// limited reports whether limits or statistics need the hierarchy.
func (h *hierarchy) limited() bool {
	return slices.ContainsFunc(h.controllers, func(c string) bool { return slices.Contains(limitedControllers[:], c) })
}

// shown reports whether containers on a version 1 machine see the hierarchy in
// /sys/fs/cgroup, as on the machine itself.
func (h *hierarchy) shown() bool { return !h.unified() && filepath.Dir(h.dir) == mountPoint }

// findHierarchies lists all hierarchies that the kernel has in use, mounted or
// not: a process that may mount can mount any of them, and sees the subtree of
// the group that it was in when its cgroup namespace was created.
func findHierarchies() ([]hierarchy, error) {
	for end := time.Now().Add(dyingTime); ; time.Sleep(maxPause) {
		data, err := ownMemberships()
		if err != nil {
			return nil, err
		}

		list, dying, err := lookForHierarchies(data, nil)
		if err != nil {
			return nil, err
		}

		if !dying || time.Now().After(end) {
			return list, nil
		}
		closeOwn(list)
	}
}

// dyingTime is how long to wait for the kernel to destroy a hierarchy.
const dyingTime = time.Second

// ownMemberships reads /proc/self/cgroup, which has a line for each hierarchy.
func ownMemberships() ([]byte, error) {
	var r reader
	data, err := r.read("/proc/self", "cgroup")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	return data, nil
}

// refresh adds hierarchies created since the node was. Known ones are kept for
// as long as the node is in use.
func (n *Node) refresh() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen == nil {
		return nil
	}

	data, err := ownMemberships()
	if err != nil || bytes.Equal(data, n.seen) {
		return err
	}

	list, dying, err := lookForHierarchies(data, n.hierarchies)
	if err != nil {
		return err
	}

	// Groups have the list as of their creation or opening.
	n.hierarchies = append(slices.Clip(n.hierarchies), list...)
	if !dying {
		n.seen = data
	}

	return nil
}

// all returns the node's hierarchies. The list must not be changed.
func (n *Node) all() []hierarchy {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hierarchies
}

// lookForHierarchies lists the unknown hierarchies of /proc/self/cgroup. It
// leaves out those being destroyed, which cannot be mounted any more; dying
// reports whether there are any.
func lookForHierarchies(data []byte, known []hierarchy) (list []hierarchy, dying bool, err error) {
	memberships, err := parseMemberships(data)
	if err != nil {
		return nil, false, fmt.Errorf("find cgroup hierarchies: %w", err)
	}

	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, false, fmt.Errorf("find cgroup mounts: %w", err)
	}

	for _, m := range memberships {
		if slices.ContainsFunc(known, func(h hierarchy) bool { return slices.Equal(h.controllers, m.controllers) }) {
			continue
		}
		h := hierarchy{controllers: m.controllers}
		if known == nil && h.findMount(mounts) {
			list = append(list, h)
			continue
		}

		switch err := h.mount(); {
		case err == nil:
			list = append(list, h)
		case errors.Is(err, unix.EBUSY):
			dying = true
		default:
			closeOwn(list)
			return nil, false, fmt.Errorf("mount cgroup hierarchy %q: %w", strings.Join(m.controllers, ","), err)
		}
	}

	return list, dying, nil
}

// closeOwn closes the mounts that findHierarchies made.
func closeOwn(list []hierarchy) {
	for _, h := range list {
		if h.own != nil {
			h.own.Close()
		}
	}
}

// findMount looks for a writable mount of the hierarchy at its usual place; of
// several at one place the last is on top. Elsewhere it may be unmounted at any
// time, and with its last mount a hierarchy ends.
func (h *hierarchy) findMount(mounts []*mountinfo.Info) bool {
	for _, m := range slices.Backward(mounts) {
		usual := m.Mountpoint == mountPoint || filepath.Dir(m.Mountpoint) == mountPoint
		if usual && h.is(m) && !slices.Contains(strings.Split(m.Options, ","), "ro") {
			h.dir, h.options = m.Mountpoint, selecting(m.VFSOptions)
			return true
		}
	}
	return false
}

// is reports whether a mount is of the hierarchy. No two share a controller.
func (h *hierarchy) is(m *mountinfo.Info) bool {
	if h.unified() {
		return m.FSType == "cgroup2"
	}
	return m.FSType == "cgroup" && slices.Contains(strings.Split(m.VFSOptions, ","), h.controllers[0])
}

// selecting returns the options that another mount of the hierarchy must repeat.
func selecting(options string) []string {
	return slices.DeleteFunc(strings.Split(options, ","), func(o string) bool {
		return o == "rw" || o == "ro" || strings.HasPrefix(o, "release_agent=") || strings.HasPrefix(o, "cpuset_")
	})
}

// mount mounts the hierarchy where no other process sees it.
func (h *hierarchy) mount() error {
	kind := "cgroup"
	if h.unified() {
		kind = "cgroup2"
	}

	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)

	named := slices.ContainsFunc(h.controllers, func(c string) bool { return strings.HasPrefix(c, "name=") })
	if named && len(h.controllers) == 1 {
		if err := unix.FsconfigSetFlag(fs, "none"); err != nil {
			return err
		}
	}

	for _, c := range h.controllers {
		if name, ok := strings.CutPrefix(c, "name="); ok {
			err = unix.FsconfigSetString(fs, "name", name)
		} else {
			err = unix.FsconfigSetFlag(fs, c)
		}
		if err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}

	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	h.own = os.NewFile(uintptr(fd), "cgroup "+strings.Join(h.controllers, ","))
	h.dir = "/proc/self/fd/" + strconv.Itoa(fd)
	return nil
}

// membership is a line of /proc/PID/cgroup.
type membership struct {
	// controllers are as in [hierarchy].
	controllers []string
	// path is that of the process's group below the hierarchy's root.
	path string
}

// parseMemberships parses /proc/PID/cgroup: "4:memory:/kubepods/x". The path,
// which a container may have named, may contain colons, too, but no newline.
func parseMemberships(data []byte) ([]membership, error) {
	var list []membership
	for line := range bytes.Lines(data) {
		text := string(bytes.TrimSuffix(line, []byte{'\n'}))
		id, rest, ok1 := strings.Cut(text, ":")
		controllers, path, ok2 := strings.Cut(rest, ":")
		if !ok1 || !ok2 || path == "" || (id == "0") != (controllers == "") {
			return nil, fmt.Errorf("parse cgroups of a process: malformed line %q", text)
		}

		m := membership{path: path}
		if controllers != "" {
			m.controllers = strings.Split(controllers, ",")
		}
		list = append(list, m)
	}

	return list, nil
}

// Hierarchies returns what a container started in a group of this node may see
// in /sys/fs/cgroup: the version 1 hierarchies that are mounted there. There
// are none on a cgroup v2 machine. The unified one alongside version 1 is
// joined but not shown, as with other runtimes.
func (n *Node) Hierarchies() []plan.Hierarchy {
	if n.v2 {
		return nil
	}
	var list []plan.Hierarchy
	for _, h := range n.all() {
		if h.shown() {
			list = append(list, plan.Hierarchy{Dir: filepath.Base(h.dir), Options: slices.Clone(h.options)})
		}
	}
	return list
}
