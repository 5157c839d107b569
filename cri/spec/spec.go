package spec

import (
	"slices"
	"syscall"

	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rootPath is the nominal root of every spec: the caller holds the root file
// system as a detached mount under this name.
const rootPath = "rootfs"

// Input is everything that decides what a container looks like.
type Input struct {
	// Sandbox and Config are the CRI configuration of the pod and the container.
	Sandbox *runtimeapi.PodSandboxConfig
	Config  *runtimeapi.ContainerConfig
	// Image is the image's own configuration: hostile.
	Image ocispec.ImageConfig
	// User is who the container runs as, see [ResolveUser].
	User ResolvedUser
	// Hostname becomes the variable HOSTNAME, see [Hostname].
	Hostname string
	// CgroupsPath is the container's cgroup in the notation of the OCI runtime-spec.
	CgroupsPath string
	// Files are the host paths of the pod's shared files.
	Files Files
	// VolumeDir is the host directory beneath which the container's anonymous
	// volumes lie, see [Volume].
	VolumeDir string
	// Labels are the SELinux labels of the container, empty without SELinux.
	Labels Labels
	// Host, Node and Seccomp tell about the machine.
	Host    Host
	Node    Node
	Seccomp Seccomp
	// CDI adds the named devices of the Container Device Interface to a spec,
	// all or none; nil if the node has none.
	CDI func(s *specs.Spec, names []string) error
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

// Host holds facts about the machine that were found out once, at start.
type Host struct {
	// Capabilities are the names ("CAP_CHOWN") of the capabilities that can be
	// handed to a container; KnownCapabilities those that the kernel has, all
	// of which exist inside a new user namespace.
	Capabilities, KnownCapabilities []string
	// OOMScoreAdjMin is the lowest oom_score_adj that a child can be given:
	// -1000 where the daemon has CAP_SYS_RESOURCE.
	OOMScoreAdjMin int
	// StackLimit is the soft limit in bytes of the stack of a process for which
	// the configuration names none, 0 if it is not known.
	StackLimit uint64
	// CgroupV2 tells whether the unified hierarchy is the one in use.
	CgroupV2 bool
	// SwapLimit tells whether the memory controller can limit swap.
	SwapLimit bool
	// HugePageSizes are the sizes that the hugetlb controller knows ("2MB"),
	// empty without that controller.
	HugePageSizes []string
	// AppArmor, Seccomp, IDMapMounts and RecursiveReadOnly tell what the kernel supports.
	AppArmor, Seccomp, IDMapMounts, RecursiveReadOnly bool
}

// Node answers the questions about the machine that depend on the configuration.
type Node interface {
	// Resolve returns the host path with all symbolic links followed. If the
	// path is missing it makes a directory when create is set, and fails with
	// [io/fs.ErrNotExist] otherwise.
	Resolve(path string, create bool) (string, error)
	// Devices returns the device node at path, or all those beneath path if it
	// is a directory, with paths that begin with path.
	Devices(path string) ([]specs.LinuxDevice, error)
	// Mounts returns the host's mount table.
	Mounts() ([]*mountinfo.Info, error)
	// AppArmorLoaded tells whether the kernel has an AppArmor profile of this name.
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
	// Capabilities of a container that asks for none; nil means [DefaultCapabilities].
	Capabilities []string
	// PidsLimit bounds the processes of a container, 0 does not.
	PidsLimit int64
	// Rlimits are set for every container.
	Rlimits []specs.POSIXRlimit
	// AppArmorProfile is the name of the loaded profile that RuntimeDefault
	// stands for, "" if there is none.
	AppArmorProfile string
	// CreateMissingHostPaths makes a directory where the host path of a mount is
	// missing, instead of refusing the container.
	CreateMissingHostPaths bool
	// DeviceOwnership gives device nodes to the container's user and group.
	DeviceOwnership bool
	// IgnoreImageVolumes leaves out the volumes that an image declares.
	IgnoreImageVolumes bool
	// WritableCgroups mounts /sys/fs/cgroup writable in containers with their
	// own cgroup namespace on cgroup v2.
	WritableCgroups bool
}

// Result is a container's runtime-spec with what the caller must prepare for it.
type Result struct {
	Spec *specs.Spec
	// Volumes are anonymous volumes to be made before the container starts.
	Volumes []Volume
	// Images are image volumes; entry n is held by the caller as "image/n".
	Images []ImageMount
	// Nodes has the host path of each device, by its path in the container,
	// where that is not the same.
	Nodes map[string]string
	// Relabel are host paths to be given the mount label.
	Relabel []string
	// PIDTarget is the container whose PID namespace is held as "ns/pid", ""
	// if that name stands for the pod's.
	PIDTarget string
	// StopSignal ends the container.
	StopSignal syscall.Signal
	// Warnings tell what was asked for and is not to be had on this node.
	Warnings []string
}

// Volume is a directory that an image declares as a volume and that the
// configuration mounts nothing on.
type Volume struct {
	// Path is the absolute path in the image whose content is the volume's first.
	Path string
	// Source is the host directory to be made.
	Source string
	// UIDMappings and GIDMappings shift the owners in the volume when it is
	// mounted. The image's are seen shifted already.
	UIDMappings, GIDMappings []specs.LinuxIDMapping `json:",omitempty"`
}

// Owner returns whom a file of the volume is to belong to, given its owner as
// the image's root file system shows it. One that has no id in the container
// stays as it is.
func (v *Volume) Owner(uid, gid uint32) (int, int) {
	return inside(v.UIDMappings, uid), inside(v.GIDMappings, gid)
}

// inside is an id as the container sees it.
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
	// Path is where in the container.
	Path string
	// Image is the configured reference, SubPath a relative path inside the
	// image or "".
	Image   *runtimeapi.ImageSpec
	SubPath string
}

// builder carries a container's spec through its parts.
type builder struct {
	Input
	sc         *runtimeapi.LinuxContainerSecurityContext
	privileged bool
	userns     *UserNamespace
	out        *Result
}

// Container makes the runtime-spec of a container.
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
	} {
		if err := part(); err != nil {
			return nil, err
		}
	}

	return b.out, nil
}

// newSpec returns the spec with its parts that need no decision.
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

// warn notes something that was asked for and is left out.
func (b *builder) warn(text string) { b.out.Warnings = append(b.out.Warnings, text) }
