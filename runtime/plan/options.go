package plan

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/capability"
)

// Options are the settings of [Container] and [Exec] that the runtime-spec lacks.
type Options struct {
	// Name is the plan's name: "start container web".
	Name string
	// PodBase: the pod's base mount namespace, made by [Sandbox], is held as
	// "ns/mnt". Without it the plan makes a base of its own.
	PodBase bool
	// Gate makes the child wait before it reads its cgroup, so that the caller
	// can move it into one.
	Gate bool
	// CgroupV2: the cgroup to clone into is held as "cgroup". CgroupTasks is
	// how many v1 tasks files are held, as "cgroup/0" and so on.
	CgroupV2    bool
	CgroupTasks int
	// Hierarchies are the host's cgroup v1 hierarchies, for a mount of type
	// cgroup. Empty means that the host has the unified hierarchy.
	Hierarchies []Hierarchy
	// CgroupDir is the container's own directory below the root of each of
	// them. Without a cgroup namespace only it is shown; empty shows all.
	CgroupDir string
	// Procfs: the PID namespace to join is not the one whose procfs the pod's
	// base has. Its procfs is held as "procfs/pid", or taken from a process in
	// it, see Target.
	Procfs bool
	// Target, if not nil, is the PID namespace of the process held as "target",
	// whose /proc has the procfs for Procfs.
	Target *File
	// Seccomp is the compiled filter, nil for none.
	Seccomp *Filter
	// Terminal gives the process a terminal, whose master is passed to the keeper.
	Terminal bool
	// HasStdin, NoStdout and NoStderr select the standard streams that are
	// held; the others are the null device.
	HasStdin, NoStdout, NoStderr bool
	// Machine bounds the requested settings to what the machine supports.
	Machine Machine
	// DeviceNodes: a file system with the nodes of the spec's devices, named by
	// their index, is held as "devices". A user namespace needs it, in which
	// nodes cannot be made.
	DeviceNodes bool
	// Targets are the resolved destinations of the spec's mounts, without
	// symbolic links. Without them the destinations are used literally.
	Targets []string
	// TargetModes has the permissions of existing mount targets, by the mount's
	// index. They are the default of a tmpfs.
	TargetModes map[int]uint32
	// CopiedUp has the name of the held file system of each tmpfs that starts
	// as a copy of its target, by the mount's index.
	CopiedUp map[int]string
	// WorkingDir is the resolved working directory, likewise.
	WorkingDir string
	// BundleAt and BundleRoot are needed by hooks that run before the root is
	// entered: the directory of the host, without links, that is covered by the
	// file system held as "bundle", and the path of a directory in that one
	// where the container's root is mounted; see package hook.
	BundleAt, BundleRoot string
	// Program is the file to execute, if it is not the first argument; a
	// path.
	Program string
	// Waiting is for [Exec]: the container's first process waits for a hook. It
	// has not joined its PID namespace yet, if that is an existing one.
	Waiting bool
	// AnyOrder permits reordering the spec's mounts, so that none of them hides another.
	AnyOrder bool
}

// File is the identity of a file: st_dev and st_ino.
type File struct{ Dev, Ino uint64 }

// Filter is a seccomp filter.
type Filter struct {
	// Prog is an array of struct sock_filter in native byte order.
	Prog []byte
	// Flags are SECCOMP_FILTER_FLAG_* bits.
	Flags uint32
	// Pass is the token, in arguments 4 and 5, with which the filter allows the
	// calls that a process makes after it has loaded the filter, to join the
	// PID namespace of others: clone, setsid, the ioctl that sets a controlling
	// terminal, and prlimit64.
	Pass [2]uint64
}

// Hierarchy is a cgroup v1 hierarchy of the host.
type Hierarchy struct {
	// Dir is its directory's name below /sys/fs/cgroup: "cpu,cpuacct".
	Dir string
	// Options select it in a mount: "cpu", "cpuacct", or "none", "name=systemd".
	Options []string
}

// Machine holds the limits of the machine for a process.
type Machine struct {
	// Caps are the capabilities that can be granted to a process outside a user
	// namespace; 0 means all.
	Caps capability.Set
	// LastCap is the highest capability that the kernel knows, 0 if unknown.
	LastCap int
	// MinOOMScore is the lowest oom_score_adj that can be set; values below are
	// raised to it. Nil means no bound.
	MinOOMScore *int
	// HardLimits are the highest hard limits that can be set, by resource
	// ("RLIMIT_NOFILE"); values above are lowered. A resource that is missing
	// has no bound.
	HardLimits map[string]uint64
}

// SandboxOptions describe a pod for [Sandbox].
type SandboxOptions struct {
	// Name is the plan's name: "make namespaces of default/web".
	Name string
	// Hostname is set in a new UTS namespace.
	Hostname string
	// NewNet, NewIPC, NewUTS and NewUser select the pod's new namespaces.
	NewNet, NewIPC, NewUTS, NewUser bool
	// UIDMap and GIDMap belong to NewUser.
	UIDMap, GIDMap []specs.LinuxIDMapping
	// Sysctls are kernel settings of the new namespaces, "net.ipv4.ip_forward".
	Sysctls map[string]string
	// ShmSize is the size in bytes of the pod's /dev/shm, 0 for [DefaultShmSize].
	ShmSize int64
	// MountLabel and ProcessLabel are the SELinux labels of its files and of
	// the pod's first process; empty without SELinux.
	MountLabel, ProcessLabel string
	// PidNS creates a PID namespace whose init is the pause program.
	PidNS bool
	// User is the user of that process, by the IDs of the pod's user namespace.
	User specs.User
	// ApparmorProfile confines it; empty means the keeper's confinement.
	ApparmorProfile string
	// Gate, CgroupV2 and CgroupTasks place that process in a cgroup, see [Options].
	Gate        bool
	CgroupV2    bool
	CgroupTasks int
}

// DefaultShmSize is the default size of a pod's /dev/shm in bytes.
const DefaultShmSize = 64 << 20
