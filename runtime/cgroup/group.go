package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"golang.org/x/sys/unix"
)

// Group is the control group of a container or pod. It holds paths, not
// descriptors, and is safe for concurrent use.
type Group struct {
	node *Node
	// path is the OCI cgroupsPath.
	path string
	at   location
	// dirs are the group's directories, as [Node.dirs] gives them, each in the
	// hierarchy of the same index.
	dirs []string
	in   []hierarchy

	// mu orders changes of limits.
	mu sync.Mutex
	// rules are the device rules in force, nil when not known.
	rules []*devices.Rule
	// killsBefore is the parent's count at the start, for [Group.OOMKills].
	killsBefore int64
	// events are of version 1, see [Group.WatchOOM], and above those of the parent; nil
	// without them.
	events, above *os.File
	// wanted are the resources from Create that Attach applies.
	wanted *cgroups.Resources
}

func (n *Node) group(path string, at location) *Group {
	in := n.all()
	return &Group{node: n, path: path, at: at, dirs: dirsIn(in, at.rel), in: in}
}

// Open returns an existing group, as after a restart.
func (n *Node) Open(path string) (*Group, error) {
	at, err := n.locate(path)
	if err != nil {
		return nil, err
	}
	g := n.group(path, at)
	if !g.Exists() {
		return nil, fmt.Errorf("open cgroup %s: %w", path, ErrNotFound)
	}
	g.noteParent()
	return g, nil
}

// Parent returns the group of a cgroup_parent, for its statistics; "" is the
// default parent. It is kubelet's: it must not be limited or removed.
func (n *Node) Parent(parent string) (*Group, error) {
	if parent == "" {
		parent = n.parent
	}
	clean, err := n.checkParent(parent)
	if err != nil {
		return nil, err
	}

	// The parent of a hypothetical group.
	path, err := n.Path(clean, "x")
	if err != nil {
		return nil, err
	}

	child, err := n.locate(path)
	if err != nil {
		return nil, err
	}

	g := n.group(clean, location{parent: clean, rel: child.parentRel, parentRel: filepath.Dir(child.parentRel)})
	if !g.Exists() {
		return nil, fmt.Errorf("open cgroup %s: %w", parent, ErrNotFound)
	}
	return g, nil
}

// Path is the OCI cgroupsPath that the group was created or opened with.
func (g *Group) Path() string { return g.path }

// Relative is the group's path below the root of a hierarchy, the third field
// of /proc/PID/cgroup.
func (g *Group) Relative() string { return g.at.rel }

// Exists reports whether the group exists in any hierarchy.
func (g *Group) Exists() bool { return slices.ContainsFunc(g.dirs, exists) }

// dir is the group's directory in the hierarchy of a controller, "" if there
// is no such hierarchy.
func (g *Group) dir(controller string) string {
	if g.node.v2 {
		return g.dirs[0] // the unified hierarchy is first
	}
	if i, ok := g.node.where[controller]; ok {
		return g.dirs[i]
	}
	return ""
}

// refused marks the kernel's errors for an invalid limit as [ErrResources].
func refused(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("%w: %w", ErrResources, err)
	}
	return err
}

// fail names the operation and turns a missing directory into [ErrNotFound].
func (g *Group) fail(verb string, err error) error {
	if isGone(err) && !g.Exists() {
		return fmt.Errorf("%s cgroup %s: %w", verb, g.path, ErrNotFound)
	}
	return fmt.Errorf("%s cgroup %s: %w", verb, g.path, err)
}

// isGone reports whether a directory or a file in it does not exist. An open
// file of a removed group returns ENODEV.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
