package plan

import "github.com/opencontainers/runtime-spec/specs-go"

// Options tell [Container] and [Exec] what the runtime-spec does not.
type Options struct {
	// Name is the plan's name: "start container web".
	Name string
	// PodBase says that the pod's base mount namespace, made by [Sandbox], is
	// held as "ns/mnt". Without it the plan makes a base of its own.
	PodBase bool
	// Gate makes the child wait before it looks at its cgroup, so that the
	// caller can move it into one.
	Gate bool
	// CgroupV2 says that the cgroup to be born in is held as "cgroup";
	// CgroupTasks is how many v1 tasks files are held, as "cgroup/0" and so on.
	CgroupV2    bool
	CgroupTasks int
	// Hierarchies are the host's cgroup v1 hierarchies, for a mount of type
	// cgroup. Empty means that the host has the unified hierarchy.
	Hierarchies []Hierarchy
	// CgroupDir is the container's own directory below the root of each of them. It
	// is what is shown without a cgroup namespace; empty shows all.
	CgroupDir string
	// Procfs says that the PID namespace that is joined is not the one whose
	// procfs the pod's base has. That of another is held as "procfs/pid", or
	// taken from a process in there, see Target.
	Procfs bool
	// Target, if not nil, is the PID namespace of the process that is held as
	// "target", on whose /proc is the procfs for Procfs.
	Target *File
	// Seccomp is the compiled filter, nil for none.
	Seccomp *Filter
	// Terminal gives the process a terminal, whose master goes to the keeper.
	Terminal bool
	// HasStdin, NoStdout and NoStderr say which standard streams are held;
	// the null device stands for the others.
	HasStdin, NoStdout, NoStderr bool
	// Machine bounds what is asked for to what the machine can give.
	Machine Machine
	// Nodes has the host path of each device, by its path in the container,
	// where that is not the same. It matters only in a user namespace.
	Nodes map[string]string
	// Targets say where each of the spec's mounts lands: the path of its
	// destination without symbolic links. Without them the destinations are
	// taken as they are written.
	Targets []string
	// TargetModes has the permissions of what is at a mount's target, by the
	// mount's index, where something is there that is not made for it. A tmpfs
	// that asks for none gets these.
	TargetModes map[int]uint32
	// CopiedUp has the name of what is held for a tmpfs that begins with what
	// lies at its target, by the mount's index.
	CopiedUp map[int]string
	// WorkingDir is where the working directory lands, likewise.
	WorkingDir string
	// AnyOrder says that the spec's mounts may be made in another order, so that
	// none of them hides another.
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
	// Pass is what the calls carry, in arguments 4 and 5, that a process makes
	// once it has loaded the filter to join others in their PID namespace: clone,
	// setsid, the ioctl that takes a terminal, and prlimit64. With it the filter
	// allows them.
	Pass [2]uint64
}

// Hierarchy is a cgroup v1 hierarchy of the host.
type Hierarchy struct {
	// Dir is its directory's name below /sys/fs/cgroup: "cpu,cpuacct".
	Dir string
	// Options select it in a mount: "cpu", "cpuacct", or "none", "name=systemd".
	Options []string
}

// Machine is what bounds a process beyond its configuration.
type Machine struct {
	// Caps are the capabilities that can be given to a process outside of a
	// user namespace; 0 means all.
	Caps uint64
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

// SandboxOptions tell [Sandbox] what a pod consists of.
type SandboxOptions struct {
	// Name is the plan's name: "make namespaces of default/web".
	Name string
	// Hostname is set in a new UTS namespace.
	Hostname string
	// NewNet, NewIPC, NewUTS and NewUser say which namespaces are the pod's own.
	NewNet, NewIPC, NewUTS, NewUser bool
	// UIDMap and GIDMap belong to NewUser.
	UIDMap, GIDMap []specs.LinuxIDMapping
	// Sysctls are kernel settings of the new namespaces, "net.ipv4.ip_forward".
	Sysctls map[string]string
	// ShmSize is the size in bytes of the pod's /dev/shm, 0 for [DefaultShmSize].
	ShmSize int64
	// MountLabel and ProcessLabel are the SELinux labels of what is in there
	// and of the pod's first process; empty without SELinux.
	MountLabel, ProcessLabel string
	// PidNS makes a PID namespace whose first process is the pause program.
	PidNS bool
	// User is who that process is, by the ids of the pod's user namespace.
	User specs.User
	// ApparmorProfile confines it; empty leaves it as the keeper is.
	ApparmorProfile string
	// Gate, CgroupV2 and CgroupTasks place that process in a cgroup, see [Options].
	Gate        bool
	CgroupV2    bool
	CgroupTasks int
}

// DefaultShmSize is the size of a pod's /dev/shm if nothing else is asked for.
const DefaultShmSize = 64 << 20
