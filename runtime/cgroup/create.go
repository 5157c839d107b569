package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const dirPerm = 0o755

// Create creates a group and its missing parents, and limits it. Nil resources,
// or resources without device rules, allow no device at all. An existing group
// of that name is reused. After an error nothing is left of a group that did
// not exist before.
//
// With the systemd driver only the request is prepared, since a scope starts
// with a process: see [Group.Attach].
func (n *Node) Create(ctx context.Context, path string, r *specs.LinuxResources) (*Group, error) {
	at, err := n.locate(path)
	if err != nil {
		return nil, err
	}

	want, err := n.convert(r)
	if err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", path, err)
	}

	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", path, err)
	}
	if err := n.refresh(); err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", path, err)
	}

	g := n.group(path, at)
	if n.driver == Systemd {
		g.wanted = want
		return g, nil
	}
	if n.v2 {
		err = g.createV2(want)
	} else {
		err = g.createV1(want)
	}
	if err != nil {
		g.discard()
		return nil, fmt.Errorf("create cgroup %s: %w", path, refused(err))
	}

	return g, nil
}

// Bounds on the child groups that a container may create in version 2. systemd
// in a container creates a hundred, a few levels deep; a whole node in a
// container, as with kind, some hundreds. Without bounds a container could keep
// the kernel busy with its groups, and their removal.
const (
	maxDepth       = "64"
	maxDescendants = "4096"
)

// makeDirs creates the group in every hierarchy and reports whether it is new
// in all hierarchies with limits.
func (g *Group) makeDirs() (fresh bool, err error) {
	fresh = true
	for i, dir := range g.dirs {
		h := g.in[i]
		made, err := g.node.makeDir(dir, h)
		if err != nil {
			return false, err
		}

		fresh = fresh && (made || i > 0 && !h.limited())
		if !made || !h.unified() {
			continue
		}

		for name, value := range map[string]string{"cgroup.max.depth": maxDepth, "cgroup.max.descendants": maxDescendants} {
			if err := writeFile(dir, name, value); err != nil && !errors.Is(err, fs.ErrNotExist) { // Linux 4.14
				return false, err
			}
		}
	}

	return fresh, nil
}

func (g *Group) createV1(want *cgroups.Resources) error {
	if len(g.in) == 0 {
		return nil // see [Node]
	}
	fresh, err := g.makeDirs()
	if err != nil {
		return err
	}

	// Tasks can only join a group that has CPUs and memory nodes.
	if dir := g.dir("cpuset"); dir != "" {
		if err := fillCpuset(dir, want.CpusetCpus, want.CpusetMems); err != nil {
			return err
		}
	}

	if list, ok := allowList(want.Devices); ok && fresh {
		err = writeAllowList(g.dir("devices"), list)
	} else {
		err = cgroups.DevicesSetV1(g.dir("devices"), want)
	}
	if err != nil {
		return fmt.Errorf("set device rules: %w", err)
	}

	g.rules = want.Devices
	return g.setControllersV1(want)
}

// makeDir creates a directory of a group and its missing parents. It reports
// whether the directory is new.
func (n *Node) makeDir(dir string, h hierarchy) (made bool, err error) {
	// The removal of another container may remove an empty parent in between.
	for range 100 {
		err = unix.Mkdir(dir, dirPerm)
		switch err {
		case nil:
			return true, nil
		case unix.EEXIST:
			return false, nil
		case unix.ENOENT:
			if err := n.makeParents(filepath.Dir(dir), h); err != nil {
				return false, err
			}
		default:
			return false, &os.PathError{Op: "mkdir", Path: dir, Err: err}
		}
	}
	return false, &os.PathError{Op: "mkdir", Path: dir, Err: err}
}

// makeParents creates a parent directory and those above it, up to the root of
// the hierarchy, and marks the new ones as ours.
func (n *Node) makeParents(dir string, h hierarchy) error {
	if dir == h.dir || !strings.HasPrefix(dir, h.dir) {
		return &os.PathError{Op: "mkdir", Path: dir, Err: unix.ENOENT}
	}
	err := unix.Mkdir(dir, dirPerm)
	if err == unix.ENOENT {
		if err := n.makeParents(filepath.Dir(dir), h); err != nil {
			return err
		}
		err = unix.Mkdir(dir, dirPerm)
	}

	switch err {
	case nil:
		mark(dir)
	case unix.EEXIST, unix.ENOENT: // ENOENT: its parent was removed again
		return nil
	default:
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}

	if slices.Contains(h.controllers, "cpuset") {
		// If it was removed again the caller notices and retries.
		if err := fillCpuset(dir, "", ""); err != nil && !isGone(err) {
			return err
		}
	}

	return nil
}

// fillCpuset sets the CPUs and memory nodes of a version 1 cpuset, by default
// its parent's. An empty parent is filled first.
func fillCpuset(dir, cpus, mems string) error {
	for _, f := range []struct{ name, value string }{{"cpuset.cpus", cpus}, {"cpuset.mems", mems}} {
		if f.value == "" {
			v, err := inheritedCpuset(filepath.Dir(dir), f.name, 0)
			if err != nil {
				return err
			}
			f.value = v
		}
		if err := writeFile(dir, f.name, f.value); err != nil {
			return err
		}
	}
	return nil
}

func inheritedCpuset(dir, name string, depth int) (string, error) {
	var r reader
	data, err := r.read(dir, name)
	if err != nil {
		return "", err
	}
	if v := strings.TrimSpace(string(data)); v != "" || depth > 64 {
		return v, nil
	}
	v, err := inheritedCpuset(filepath.Dir(dir), name, depth+1)
	if err != nil {
		return "", err
	}
	return v, writeFile(dir, name, v)
}

func (g *Group) createV2(want *cgroups.Resources) error {
	fresh, err := g.makeDirs()
	if err != nil {
		return err
	}

	if err := g.node.delegate(filepath.Dir(g.dirs[0])); err != nil {
		return err
	}
	if fresh {
		if err := g.node.filters.attach(g.dirs[0], want); err != nil {
			return fmt.Errorf("set device rules: %w", err)
		}
		want.SkipDevices = true
	}

	if err := g.setV2(want); err != nil {
		return err
	}
	g.rules = want.Devices
	return nil
}

// delegate enables all of the machine's controllers for the children of dir.
// Only missing ones are written: a write locks all cgroups.
func (n *Node) delegate(dir string) error {
	var r reader
	data, err := r.read(dir, "cgroup.subtree_control")
	if err != nil {
		return err
	}

	have := strings.Fields(string(data))
	data, err = r.read(n.root, "cgroup.controllers")
	if err != nil {
		return err
	}

	var missing []string
	for _, c := range strings.Fields(string(data)) {
		if !slices.Contains(have, c) {
			missing = append(missing, "+"+c)
		}
	}
	if len(missing) == 0 {
		return nil
	}

	if dir != n.root {
		if err := n.delegate(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	if writeFile(dir, "cgroup.subtree_control", strings.Join(missing, " ")) == nil {
		return nil
	}

	// A controller that cannot be enabled must not prevent the others. Its
	// absence is reported when a limit needs it.
	for _, c := range missing {
		err := writeFile(dir, "cgroup.subtree_control", c)
		if errors.Is(err, fs.ErrNotExist) && !exists(dir) {
			return err
		}
	}

	return nil
}
