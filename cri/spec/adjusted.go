package spec

import (
	"math"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The kernel's limits for a device's numbers.
const maxMajor, maxMinor = 1<<12 - 1, 1<<20 - 1

// CheckAdjusted checks what has been changed in a container's spec after
// [Container], which checks its own input: nothing of it may affect the node, and
// what the kernel would refuse is refused before the container exists. Limits have
// their own checks.
func CheckAdjusted(s *specs.Spec, h Host) error {
	if err := CheckArguments(s.Process, h); err != nil {
		return err
	}
	for _, kv := range s.Process.Env {
		if name, _, found := strings.Cut(kv, "="); name == "" || !found {
			return invalid("environment variable %q without a name or a value", shorten(kv))
		}
	}
	if score := s.Process.OOMScoreAdj; score != nil && (*score < -1000 || *score > 1000) {
		return invalid("oom_score_adj of %d", *score)
	}

	if err := checkEdits(s); err != nil {
		return err
	}
	return checkOwnSysctls(s)
}

// checkEdits checks the groups, mounts and devices that CDI devices or plugins may have
// added.
func checkEdits(s *specs.Spec) error {
	if err := checkIDs(s); err != nil {
		return err
	}
	for _, m := range s.Mounts {
		if err := checkAdjustedMount(m); err != nil {
			return err
		}
	}
	for _, d := range s.Linux.Devices {
		if err := checkAdjustedDevice(d); err != nil {
			return err
		}
	}
	return checkNetDevices(s)
}

// noID is -1, which the kernel takes for "do not change it".
const noID = math.MaxUint32

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// checkIDs refuses a user and groups that no process of the container can have.
func checkIDs(s *specs.Spec) error {
	u := s.Process.User
	if err := checkID("user", u.UID, s.Linux.UIDMappings); err != nil {
		return err
	}
	if n := len(u.AdditionalGids); n > maxGroups {
		return invalid("%d groups, a process can have at most %d", n, maxGroups)
	}
	for _, g := range append([]uint32{u.GID}, u.AdditionalGids...) {
		if err := checkID("group", g, s.Linux.GIDMappings); err != nil {
			return err
		}
	}
	return nil
}

func checkID(kind string, id uint32, mappings []specs.LinuxIDMapping) error {
	has := func(m specs.LinuxIDMapping) bool { return id >= m.ContainerID && id-m.ContainerID < m.Size }
	switch {
	case id == noID:
		return invalid("%s %d: no process can have it", kind, id)
	case len(mappings) > 0 && !slices.ContainsFunc(mappings, has):
		return invalid("%s %d does not exist in the pod's user namespace", kind, id)
	}
	return nil
}

func checkAdjustedMount(m specs.Mount) error {
	switch {
	case !path.IsAbs(m.Destination):
		return invalid("mount at %q: the path is not absolute", shorten(m.Destination))
	case path.Clean(m.Destination) == "/":
		return invalid("mount at the root of the container")
	case strings.ContainsRune(m.Destination+m.Source+m.Type+strings.Join(m.Options, ""), 0):
		return invalid("mount at %q: NUL byte in it", shorten(m.Destination))
	}
	return nil
}

// checkAdjustedDevice expects numbers to be those of one device: a negative one
// would mean all of them in the rules of a cgroup.
func checkAdjustedDevice(d specs.LinuxDevice) error {
	at := path.Clean(d.Path)
	switch {
	case !path.IsAbs(d.Path) || at == "/" || at == "/dev":
		return invalid("device at %q: want an absolute path of a file", shorten(d.Path))
	case within(at, "/proc") || within(at, "/sys"):
		return invalid("device at %q: no device can be made there", shorten(d.Path))
	case strings.ContainsRune(d.Path, 0):
		return invalid("device at %q: NUL byte in its path", shorten(d.Path))
	case d.Type != "p" && (d.Major < 0 || d.Major > maxMajor || d.Minor < 0 || d.Minor > maxMinor):
		return invalid("device at %q: no device has the numbers %d:%d", shorten(d.Path), d.Major, d.Minor)
	}
	return nil
}

// checkOwnSysctls expects each sysctl of a container in a pod to belong to a
// namespace that is in its spec: the node's are not.
func checkOwnSysctls(s *specs.Spec) error {
	for name, value := range s.Linux.Sysctl {
		p, err := sysctlPath(name)
		if err != nil {
			return err
		}
		if err := checkSysctlValue(name, value); err != nil {
			return err
		}

		kind := namespaceOf(p)
		if kind == "" {
			return invalid("sysctl %s is not namespaced: it would change the node", p)
		}
		if !slices.ContainsFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind }) {
			return invalid("sysctl %s would change the node: the pod has no %s namespace of its own", p, kind)
		}
	}
	return nil
}
