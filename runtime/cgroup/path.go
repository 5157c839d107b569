package cgroup

import (
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/cgroups/systemd"
)

// Path returns the OCI cgroupsPath of a group: "/parent/id" for cgroupfs,
// "parent.slice:cri-containerd:id" for systemd. The parent is what kubelet sends as
// cgroup_parent; empty means the default parent. A parent in the form of the
// other driver is refused with [ErrParent], since kubelet and crisp would then
// limit different groups.
func (n *Node) Path(parent, id string) (string, error) {
	if id == "" || id == "." || id == ".." || strings.ContainsAny(id, "/:\x00\n") {
		return "", fmt.Errorf("name cgroup %q: not a plain name", id)
	}
	if parent == "" {
		parent = n.parent
	}

	clean, err := n.checkParent(parent)
	if err != nil {
		return "", err
	}

	if n.driver == Systemd {
		return clean + ":" + scopePrefix + ":" + id, nil
	}
	return path.Join(clean, id), nil
}

// Resolve validates a cgroupsPath from an OCI spec and returns it in the form
// for [Node.Create]. For cgroupfs that may be any path but the root; a relative
// one is below the default parent and cannot escape it. For systemd it is
// "slice:prefix:name", with system.slice for an empty slice.
func (n *Node) Resolve(cgroupsPath string) (string, error) {
	if n.driver == Systemd {
		parts := strings.Split(cgroupsPath, ":")
		if len(parts) == 3 && parts[0] == "" {
			parts[0] = "system.slice"
		}
		return strings.Join(parts, ":"), nil
	}

	if strings.ContainsAny(cgroupsPath, "\x00\n") {
		return "", fmt.Errorf("parse cgroup path %q: forbidden character", cgroupsPath)
	}
	clean := path.Join("/", cgroupsPath)
	switch {
	case clean == "/":
		return "", fmt.Errorf("parse cgroup path %q: containers cannot run in the root group", cgroupsPath)
	case !path.IsAbs(cgroupsPath):
		return path.Join(n.parent, clean), nil
	}

	return clean, nil
}

// checkParent returns the parent as the driver wants it: an absolute clean path
// or the name of a slice.
func (n *Node) checkParent(parent string) (string, error) {
	if strings.ContainsAny(parent, ":\x00\n") {
		return "", fmt.Errorf("%w %q: forbidden character", ErrParent, parent)
	}
	for part := range strings.SplitSeq(parent, "/") {
		if part == ".." {
			return "", fmt.Errorf("%w %q: leaves the hierarchy", ErrParent, parent)
		}
	}

	base := path.Base(parent)
	if n.driver == Systemd {
		// kubelet sends the whole path of the slice; its last part is sufficient.
		if _, err := systemd.ExpandSlice(base); err != nil {
			return "", fmt.Errorf("%w %q: the systemd driver wants a slice, as in \"kubepods-pod1.slice\"", ErrParent, parent)
		}
		return base, nil
	}

	if strings.HasSuffix(base, ".slice") {
		return "", fmt.Errorf("%w %q: a slice, but the cgroupfs driver wants a path, as in \"/kubepods/pod1\"", ErrParent, parent)
	}
	clean := path.Join("/", parent)
	if clean == "/" {
		return "", fmt.Errorf("%w %q: containers cannot run in the root group", ErrParent, parent)
	}

	return clean, nil
}

// location is a parsed cgroupsPath.
type location struct {
	// parent and id are its parts; parent is a slice name for systemd, where
	// prefix begins the scope's name.
	parent, prefix, id string
	// rel and parentRel are the paths of the group and of its parent in a
	// hierarchy.
	rel, parentRel string
}

// locate parses a cgroupsPath. With systemd any prefix is valid: records of
// older versions and bundles have others.
func (n *Node) locate(cgroupsPath string) (location, error) {
	if n.driver != Systemd {
		if !path.IsAbs(cgroupsPath) || path.Clean(cgroupsPath) != cgroupsPath || cgroupsPath == "/" {
			return location{}, fmt.Errorf("parse cgroup path %q: want /parent/id or /id", cgroupsPath)
		}
		parent, id := path.Split(cgroupsPath)
		parent = path.Clean(parent)
		return location{parent: parent, id: id, rel: cgroupsPath, parentRel: parent}, nil
	}

	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 || parts[1] == "" || parts[2] == "" || strings.HasSuffix(parts[2], ".slice") || strings.ContainsAny(parts[1]+parts[2], "/\x00\n") {
		return location{}, fmt.Errorf("parse cgroup path %q: want slice:prefix:id", cgroupsPath)
	}

	slice, err := systemd.ExpandSlice(parts[0])
	if err != nil {
		return location{}, fmt.Errorf("parse cgroup path %q: %w", cgroupsPath, err)
	}
	return location{
		parent: parts[0], prefix: parts[1], id: parts[2], parentRel: slice,
		rel: path.Join(slice, parts[1]+"-"+parts[2]+".scope"),
	}, nil
}
