package criu

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/capability"
	"crisp/runtime/plan"
	"crisp/runtime/seccomp"
)

// Allowed is what processes may have that are restored: no more than a fresh start of
// the container would give them, or let them get.
type Allowed struct {
	// UID, GID and Groups are whose processes they are, as the container sees it, unless
	// they may change that.
	UID, GID uint32
	Groups   []uint32
	// Bounding are the capabilities that any process may get, and Permitted those that
	// the first one has.
	Bounding, Permitted capability.Set
	// NoNewPrivileges means that no program gives its process more than that one has.
	NoNewPrivileges bool
	// Filter must have been loaded by each thread, nil for none.
	Filter *seccomp.Filter
	// Labelled means that the caller gives the processes a label of AppArmor or SELinux,
	// instead of the one in the images.
	Labelled bool
	// OOMScoreAdj is the least score.
	OOMScoreAdj int
	// Rlimits are the highest hard limits, by the number of the resource. What has no
	// limit here may have any: a caller adds those of a fresh start.
	Rlimits map[int]uint64
	// LoginUID is that of the node's services.
	LoginUID uint32
	// Terminal means that the container has one, at /dev/console.
	Terminal bool
	// Scheduled means that the container asks for a scheduling policy.
	Scheduled bool
	// Memory and Pids are the limits of the container's cgroup, 0 for none.
	Memory, Pids int64

	// Namespaces are those that the container does not share with the node, by the types
	// of the OCI runtime-spec.
	Namespaces map[specs.LinuxNamespaceType]bool
	// UIDs and GIDs are the mappings of its user namespace.
	UIDs, GIDs []specs.LinuxIDMapping
	// FirstPort is the first port that needs no capability.
	FirstPort uint32

	// RootReadonly, Mounts by their resolved path, Masked and Readonly paths are what the
	// container's mounts must be. The paths are those that exist.
	RootReadonly     bool
	Mounts           map[string]AllowedMount
	Masked, Readonly []string
	// Devices are the nodes that may be open or in a tmpfs.
	Devices []AllowedDevice

	// Trusted means that a CRIU has written the images on a node that is trusted, so that
	// what they say of descriptors of volumes, of watches and of connections is what the
	// processes had. Otherwise these are refused where the kernel would have checked them.
	Trusted bool
}

// AllowedMount is a mount of a container.
type AllowedMount struct {
	// Type is that of a file system of the container alone, "" for a mount that the
	// caller gives.
	Type string
	// Flags are the MS_* flags for less rights that it must have, Below those of what is
	// mounted below it.
	Flags, Below uint32
	// Size bounds a tmpfs, in bytes, 0 for no bound.
	Size int64
	// Recursive means that what is below it comes with it.
	Recursive bool
	// Propagates means that mounts may be shared with the node.
	Propagates bool
}

// AllowedDevice is a device node.
type AllowedDevice struct {
	Path         string
	Type         rune // 'c' or 'b'
	Major, Minor int64
}

// AllowedBy is what a container's OCI runtime-spec allows. The spec is that of the
// container that is to be restored, never one from a checkpoint. resolve returns where
// a mount for a path is in the container, whose links may lead elsewhere.
func AllowedBy(s *specs.Spec, resolve func(path string) (string, error)) (Allowed, error) {
	if s.Process == nil || s.Linux == nil || s.Root == nil {
		return Allowed{}, fmt.Errorf("the container's spec has no process, no root or nothing of Linux")
	}
	a := Allowed{
		UID: s.Process.User.UID, GID: s.Process.User.GID, Groups: s.Process.User.AdditionalGids,
		NoNewPrivileges: s.Process.NoNewPrivileges, Scheduled: s.Process.Scheduler != nil, Terminal: s.Process.Terminal,
		Labelled:     s.Process.ApparmorProfile != "" || s.Process.SelinuxLabel != "",
		RootReadonly: s.Root.Readonly, UIDs: s.Linux.UIDMappings, GIDs: s.Linux.GIDMappings,
		Namespaces: map[specs.LinuxNamespaceType]bool{}, Mounts: map[string]AllowedMount{}, Rlimits: map[int]uint64{},
		FirstPort: 1024, LoginUID: loginUID(),
	}

	if c := s.Process.Capabilities; c != nil {
		a.Bounding, _ = capability.Parse(c.Bounding...)
		a.Permitted, _ = capability.Parse(slices.Concat(c.Permitted, c.Ambient)...)
	}
	if s.Process.OOMScoreAdj != nil {
		a.OOMScoreAdj = *s.Process.OOMScoreAdj
	}
	for _, l := range s.Process.Rlimits {
		if n, ok := plan.RlimitNumber(l.Type); ok {
			a.Rlimits[n] = l.Hard
		}
	}
	if s.Linux.Seccomp != nil {
		f, err := seccomp.Compile(s.Linux.Seccomp)
		if err != nil {
			return Allowed{}, err
		}
		a.Filter = &f
	}
	for _, n := range s.Linux.Namespaces {
		a.Namespaces[n.Type] = true
	}
	if port, err := strconv.ParseUint(s.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"], 10, 16); err == nil {
		a.FirstPort = uint32(port)
	}
	a.resources(s)
	return a, a.files(s, resolve)
}

// loginUID is who has logged in to start this process: nobody, mostly.
func loginUID() uint32 {
	text, err := os.ReadFile("/proc/self/loginuid")
	if err != nil {
		return unsetUID
	}
	uid, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return unsetUID
	}
	return uint32(uid)
}

const unsetUID = 1<<32 - 1

func (a *Allowed) resources(s *specs.Spec) {
	r := s.Linux.Resources
	if r == nil {
		return
	}
	if r.Memory != nil && r.Memory.Limit != nil {
		a.Memory = max(0, *r.Memory.Limit)
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		a.Pids = max(0, *r.Pids.Limit)
	}
}

// standardDevices are those that every container has.
func standardDevices() []AllowedDevice {
	return []AllowedDevice{
		{"/dev/null", 'c', 1, 3}, {"/dev/zero", 'c', 1, 5}, {"/dev/full", 'c', 1, 7}, {"/dev/random", 'c', 1, 8}, {"/dev/urandom", 'c', 1, 9}, {"/dev/tty", 'c', 5, 0},
	}
}

// files adds what the container's mounts are.
func (a *Allowed) files(s *specs.Spec, resolve func(string) (string, error)) error {
	a.Devices = standardDevices()
	for _, d := range s.Linux.Devices {
		if d.Type != "p" {
			kind := 'c'
			if d.Type == "b" {
				kind = 'b'
			}
			a.Devices = append(a.Devices, AllowedDevice{path.Clean(d.Path), kind, d.Major, d.Minor})
		}
	}

	for _, m := range s.Mounts {
		at, err := resolve(m.Destination)
		if err != nil {
			return fmt.Errorf("find the place of mount %.200q: %w", m.Destination, err)
		}
		a.Mounts[at] = mountOf(m)
	}
	for _, p := range s.Linux.MaskedPaths {
		if isThere(p) {
			a.Masked = append(a.Masked, p)
		}
	}
	for _, p := range s.Linux.ReadonlyPaths {
		if isThere(p) {
			a.Readonly = append(a.Readonly, p)
		}
	}
	return nil
}

// isThere reports whether a path to hide is one of the kernel's, and exists here. What
// a container's own files have there is no matter of the node.
func isThere(p string) bool {
	if !strings.HasPrefix(p, "/proc/") && !strings.HasPrefix(p, "/sys/") {
		return false
	}
	_, err := os.Lstat(filepath.Clean(p))
	return err == nil
}

// restricting are the options that take something from whoever uses a mount.
func restricting() map[string]uint32 {
	return map[string]uint32{"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC}
}

func mountOf(m specs.Mount) AllowedMount {
	var a AllowedMount
	switch m.Type {
	case "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup":
		a.Type = m.Type
	}

	flags := restricting()
	for _, o := range m.Options {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "rbind":
			a.Recursive = true
		case "shared", "rshared", "slave", "rslave":
			a.Propagates = true
		case "rro", "rnosuid", "rnodev", "rnoexec":
			a.Flags |= flags[key[1:]]
			a.Below |= flags[key[1:]]
		case "size":
			a.Size, _ = parseSize(value)
		default:
			a.Flags |= flags[o]
		}
	}
	for key, flag := range flags {
		// The last one counts.
		positive := map[string]string{"ro": "rw", "nosuid": "suid", "nodev": "dev", "noexec": "exec"}[key]
		if slices.Contains(m.Options, positive) && lastOf(m.Options, key, "r"+key) < lastOf(m.Options, positive) {
			a.Flags &^= flag
		}
	}
	if a.Type == "cgroup" {
		a.Below = a.Flags // a hierarchy each
	}
	return a
}

// lastOf is where the last of some options is, -1 if there is none.
func lastOf(options []string, names ...string) int {
	last := -1
	for i, o := range options {
		if slices.Contains(names, o) {
			last = i
		}
	}
	return last
}

// parseSize reads a size as tmpfs does, "65536k", in bytes.
func parseSize(text string) (int64, bool) {
	shift := 0
	if text != "" {
		switch text[len(text)-1] | 0x20 {
		case 'k':
			shift = 10
		case 'm':
			shift = 20
		case 'g':
			shift = 30
		}
	}
	if shift > 0 {
		text = text[:len(text)-1]
	}

	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > 1<<62>>shift {
		return 0, false
	}
	return n << shift, true
}

// device returns whether a node may be used, by its numbers, at a path unless that is "".
func (a *Allowed) device(at string, kind rune, major, minor int64) bool {
	return slices.ContainsFunc(a.Devices, func(d AllowedDevice) bool {
		return d.Type == kind && d.Major == major && d.Minor == minor && (at == "" || at == d.Path)
	})
}

// mayGain reports whether a program may give a process capabilities that it has not.
func (a *Allowed) mayGain() capability.Set {
	if a.NoNewPrivileges {
		return a.Permitted
	}
	return a.Bounding
}

// under returns the mount that is at a path, or that brought what is below it.
func (a *Allowed) under(at string) (AllowedMount, bool) {
	if m, ok := a.Mounts[at]; ok {
		return m, true
	}
	for _, dir := range slices.Backward(slices.Sorted(maps.Keys(a.Mounts))) {
		m := a.Mounts[dir]
		if strings.HasPrefix(at, strings.TrimSuffix(dir, "/")+"/") && (m.Recursive || m.Type == "cgroup") {
			m.Flags = m.Below
			return m, true
		}
	}
	return AllowedMount{}, false
}
