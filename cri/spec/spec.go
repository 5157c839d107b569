package spec

import (
	"slices"
	"syscall"

	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/hook"
)

// rootPath is the nominal root of every spec: the caller holds the root file
// system as a detached mount under this name.
const rootPath = "rootfs"

// Input is everything that determines a container's spec.
type Input struct {
	// Sandbox and Config are the CRI configuration of the pod and the container.
	Sandbox *runtimeapi.PodSandboxConfig
	Config  *runtimeapi.ContainerConfig
	// Image is the image's own configuration: hostile.
	Image ocispec.ImageConfig
	// User is the user as which the container runs, see [ResolveUser].
	User ResolvedUser
	// Hostname is the value of the variable HOSTNAME, see [Hostname].
	Hostname string
	// CgroupsPath is the container's cgroup in the notation of the OCI runtime-spec.
	CgroupsPath string
	// Files are the host paths of the pod's shared files.
	Files Files
	// VolumeDir is the host directory for the container's anonymous volumes, see
	// [Volume].
	VolumeDir string
	// Labels are the container's SELinux labels, empty without SELinux.
	Labels Labels
	// Host, Node and Seccomp describe the machine.
	Host    Host
	Node    Node
	Seccomp Seccomp
	// ID and SandboxID are those of the container and its pod.
	ID, SandboxID string
	// CDI adds the named CDI devices to a spec, all or none; nil if the node has
	// none.
	CDI func(s *specs.Spec, names []string) (hook.Sources, error)
	// Hooks adds the hooks that the node's administrator has defined for a
	// container with such a spec and annotations; nil for none.
	Hooks func(s *specs.Spec, sources hook.Sources, annotations map[string]string) (hook.Sources, error)
	// Defaults are the node's choices where the CRI leaves one.
	Defaults Defaults
}

// Files are host paths of files shared by the containers of a pod. An empty
// path is not mounted.
type Files struct {
	Hosts, Hostname, ResolvConf string
}

// Labels are SELinux labels.
type Labels struct {
	Process, Mount string
}

// Host holds facts about the machine, which are determined once, when the
// daemon starts.
type Host struct {
	// Capabilities are the names ("CAP_CHOWN") of the capabilities that a
	// container can be given; KnownCapabilities are all that the kernel has, which
	// exist in a new user namespace.
	Capabilities, KnownCapabilities []string
	// OOMScoreAdjMin is the lowest oom_score_adj that a child can be given, -1000
	// if the daemon has CAP_SYS_RESOURCE.
	OOMScoreAdjMin int
	// StackLimit is the default soft limit of a process's stack in bytes, 0 if it
	// is not known.
	StackLimit uint64
	// CgroupV2 means that the unified hierarchy is in use.
	CgroupV2 bool
	// SwapLimit means that the memory controller can limit swap.
	SwapLimit bool
	// HugePageSizes are the sizes known to the hugetlb controller ("2MB"), empty
	// without that controller.
	HugePageSizes []string
	// AppArmor, Seccomp, IDMapMounts and RecursiveReadOnly are features that the
	// kernel supports.
	AppArmor, Seccomp, IDMapMounts, RecursiveReadOnly bool
}

// Node provides facts about the machine that depend on the configuration.
type Node interface {
	// Resolve returns the host path with all symbolic links followed. If the path
	// is missing, it creates a directory if create is set, and otherwise fails
	// with [io/fs.ErrNotExist].
	Resolve(path string, create bool) (string, error)
	// Devices returns the device node at path, or all those beneath path if it
	// is a directory, with paths that begin with path.
	Devices(path string) ([]specs.LinuxDevice, error)
	// Mounts returns the host's mount table.
	Mounts() ([]*mountinfo.Info, error)
	// AppArmorLoaded reports whether the kernel has an AppArmor profile of this
	// name.
	AppArmorLoaded(name string) (bool, error)
}

// Seccomp supplies profiles.
type Seccomp struct {
	// Default returns the RuntimeDefault profile for a process with these capabilities.
	Default func(capabilities []string) *specs.LinuxSeccomp
	// Load reads the profile at an absolute path.
	Load func(path string) (*specs.LinuxSeccomp, error)
}

// Defaults are the node's choices where the CRI leaves one.
type Defaults struct {
	// Capabilities are those of a container that requests none; nil means
	// [DefaultCapabilities].
	Capabilities []string
	// PidsLimit bounds the tasks of a container, 0 for no limit.
	PidsLimit int64
	// Rlimits are set for every container.
	Rlimits []specs.POSIXRlimit
	// AppArmorProfile is the name of the loaded profile that RuntimeDefault
	// stands for, "" if there is none.
	AppArmorProfile string
	// CreateMissingHostPaths creates a directory if the host path of a mount is
	// missing, instead of rejecting the container.
	CreateMissingHostPaths bool
	// DeviceOwnership makes the container's user and group the owner of device
	// nodes.
	DeviceOwnership bool
	// IgnoreImageVolumes leaves out the volumes that an image declares.
	IgnoreImageVolumes bool
	// WritableCgroups mounts /sys/fs/cgroup writable in containers with their
	// own cgroup namespace on cgroup v2.
	WritableCgroups bool
}

// Result is a container's runtime-spec, with what the caller has to prepare for
// it.
type Result struct {
	Spec *specs.Spec
	// Volumes are anonymous volumes to be created before the container starts.
	Volumes []Volume
	// Images are image volumes; the caller holds number n as "image/n".
	Images []ImageMount
	// CDI are the names of the CDI devices that the spec has the edits of.
	CDI []string `json:",omitempty"`
	// HookSources are the sources of the spec's hooks, and HookWarnings what the
	// administrator should know about them.
	HookSources  hook.Sources `json:",omitempty"`
	HookWarnings []string     `json:",omitempty"`
	// Relabel are the host paths that get the mount label.
	Relabel []string
	// PIDTarget is the ID of the container whose PID namespace "ns/pid" is, "" if
	// it is the pod's.
	PIDTarget string
	// StopSignal is the signal that stops the container.
	StopSignal syscall.Signal
	// Warnings name requested settings that this node does not support.
	Warnings []string
}

// Volume is an anonymous volume: a directory that the image declares as a
// volume and which has no configured mount.
type Volume struct {
	// Path is the absolute path in the image whose content is the volume's initial
	// content.
	Path string
	// Source is the host directory to be created.
	Source string
	// UIDMappings and GIDMappings shift the owners in the volume when it is
	// mounted. In the image's root file system they appear already shifted.
	UIDMappings, GIDMappings []specs.LinuxIDMapping `json:",omitempty"`
}

// Owner returns the owner of a file in the volume, given its owner as the
// image's root file system shows it. IDs that do not exist in the container
// stay as they are.
func (v *Volume) Owner(uid, gid uint32) (int, int) {
	return inside(v.UIDMappings, uid), inside(v.GIDMappings, gid)
}

// inside returns an ID as the container sees it.
func inside(maps []specs.LinuxIDMapping, id uint32) int {
	for _, m := range maps {
		if id >= m.HostID && id-m.HostID < m.Size {
			return int(m.ContainerID + (id - m.HostID))
		}
	}
	return int(id)
}

// ImageMount is an image, or a part of it, mounted into a container.
type ImageMount struct {
	// Path is the mount point in the container.
	Path string
	// Image is the configured reference, SubPath a relative path inside the
	// image or "".
	Image   *runtimeapi.ImageSpec
	SubPath string
}

// builder holds the state while a container's spec is built.
type builder struct {
	Input
	sc         *runtimeapi.LinuxContainerSecurityContext
	privileged bool
	userns     *UserNamespace
	out        *Result
}

// Container returns the runtime-spec of a container.
func Container(in Input) (*Result, error) {
	if err := ValidateContainer(in.Config, in.Sandbox); err != nil {
		return nil, err
	}
	userns, err := PodUserNamespace(in.Sandbox)
	if err != nil {
		return nil, err
	}

	b := &builder{
		Input:  in,
		sc:     in.Config.GetLinux().GetSecurityContext(),
		userns: userns,
		out:    &Result{Spec: newSpec(in)},
	}

	b.privileged = b.sc.GetPrivileged()
	for _, part := range []func() error{
		b.namespaces, b.process, b.capabilities, b.security, b.resources, b.devices, b.mounts, b.cdi, b.stopSignal,
		b.hooks,
	} {
		if err := part(); err != nil {
			return nil, err
		}
	}

	return b.out, nil
}

// newSpec returns the spec with the parts that do not depend on a decision.
func newSpec(in Input) *specs.Spec {
	sc := in.Config.GetLinux().GetSecurityContext()
	s := &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Terminal:        in.Config.GetTty(),
			NoNewPrivileges: sc.GetNoNewPrivs(),
			Rlimits:         slices.Clone(in.Defaults.Rlimits),
			SelinuxLabel:    in.Labels.Process,
		},
		Root: &specs.Root{Path: rootPath, Readonly: sc.GetReadonlyRootfs()},
		Linux: &specs.Linux{
			CgroupsPath: in.CgroupsPath,
			MountLabel:  in.Labels.Mount,
		},
	}

	if !sc.GetPrivileged() {
		s.Linux.MaskedPaths = slices.Clone(sc.GetMaskedPaths())
		s.Linux.ReadonlyPaths = slices.Clone(sc.GetReadonlyPaths())
	}
	return s
}

// warn records a warning about a setting that is left out.
func (b *builder) warn(text string) { b.out.Warnings = append(b.out.Warnings, text) }
