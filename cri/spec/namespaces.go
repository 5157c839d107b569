package spec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Kind is a kind of namespace whose mode a pod's configuration chooses.
type Kind uint8

// The kinds of namespace.
const (
	Network Kind = iota
	PID
	IPC
)

// NamespaceMode returns the mode of a pod's namespace of the given kind.
func NamespaceMode(cfg *runtimeapi.PodSandboxConfig, kind Kind) runtimeapi.NamespaceMode {
	o := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch kind {
	case Network:
		return o.GetNetwork()
	case PID:
		return o.GetPid()
	default:
		return o.GetIpc()
	}
}

// UserNamespace is the mapping of a pod's user namespace: the pod's IDs 0 to
// Size-1 are the node's IDs from HostUID and HostGID on.
type UserNamespace struct {
	HostUID, HostGID, Size uint32
}

func (u *UserNamespace) mappings() (uids, gids []specs.LinuxIDMapping) {
	if u == nil {
		return nil, nil
	}
	return []specs.LinuxIDMapping{{HostID: u.HostUID, Size: u.Size}}, []specs.LinuxIDMapping{{HostID: u.HostGID, Size: u.Size}}
}

// PodUserNamespace returns the mapping of the pod's user namespace, or nil if
// the pod runs in the node's.
func PodUserNamespace(cfg *runtimeapi.PodSandboxConfig) (*UserNamespace, error) {
	o := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if o == nil {
		return nil, nil
	}

	switch o.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		if len(o.GetUids()) != 0 || len(o.GetGids()) != 0 {
			return nil, invalid("id mappings given for the node's user namespace")
		}
		return nil, nil
	case runtimeapi.NamespaceMode_POD:
	default:
		return nil, invalid("user namespace mode %s", o.GetMode())
	}

	uid, err := oneMapping("uid", o.GetUids())
	if err != nil {
		return nil, err
	}

	gid, err := oneMapping("gid", o.GetGids())
	if err != nil {
		return nil, err
	}

	if uid.GetLength() != gid.GetLength() {
		return nil, invalid("user namespace maps %d uids and %d gids", uid.GetLength(), gid.GetLength())
	}
	return &UserNamespace{HostUID: uid.GetHostId(), HostGID: gid.GetHostId(), Size: uid.GetLength()}, nil
}

// oneMapping returns the only mapping of a user namespace, which begins at id 0.
func oneMapping(kind string, m []*runtimeapi.IDMapping) (*runtimeapi.IDMapping, error) {
	switch {
	case len(m) != 1:
		return nil, invalid("user namespace with %d %s mappings, exactly one is required", len(m), kind)
	case m[0].GetContainerId() != 0:
		return nil, invalid("%s mapping of the user namespace begins at %d, not 0", kind, m[0].GetContainerId())
	}
	return m[0], checkMapping(kind, m[0])
}

func checkMapping(kind string, m *runtimeapi.IDMapping) error {
	const ids = 1<<32 - 1 // the last id means "unchanged" to the kernel
	switch {
	case m.GetLength() == 0:
		return invalid("%s mapping of length 0", kind)
	case uint64(m.GetHostId())+uint64(m.GetLength()) > ids, uint64(m.GetContainerId())+uint64(m.GetLength()) > ids:
		return invalid("%s mapping of length %d exceeds the range of ids", kind, m.GetLength())
	}
	return nil
}

// IDMaps returns the mappings of a pod's user namespace, nil without one.
func IDMaps(cfg *runtimeapi.PodSandboxConfig) (uids, gids []specs.LinuxIDMapping) {
	u, err := PodUserNamespace(cfg)
	if u == nil || err != nil {
		return nil, nil
	}
	return []specs.LinuxIDMapping{{HostID: u.HostUID, Size: u.Size}}, []specs.LinuxIDMapping{{HostID: u.HostGID, Size: u.Size}}
}

// RootIDs returns the node's ids of a pod's root user and group.
func RootIDs(cfg *runtimeapi.PodSandboxConfig) (uid, gid int) {
	u, err := PodUserNamespace(cfg)
	if u == nil || err != nil {
		return 0, 0
	}
	return int(u.HostUID), int(u.HostGID)
}

// NamespaceOptions returns a pod's namespace options for its status, which
// kubelet compares with its request.
func NamespaceOptions(cfg *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	if o := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return &runtimeapi.NamespaceOption{}
}

// namespaces sets the namespaces of the container. The path of one that is
// joined is the name under which the caller holds it; one that is left out is
// the node's.
func (b *builder) namespaces() error {
	join := func(t specs.LinuxNamespaceType, name string) {
		b.out.Spec.Linux.Namespaces = append(b.out.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: name})
	}
	if b.userns != nil {
		join(specs.UserNamespace, "ns/user")
		b.out.Spec.Linux.UIDMappings, b.out.Spec.Linux.GIDMappings = b.userns.mappings()
	}

	join(specs.MountNamespace, "")
	if NamespaceMode(b.Sandbox, Network) != runtimeapi.NamespaceMode_NODE {
		join(specs.NetworkNamespace, "ns/net")
		join(specs.UTSNamespace, "ns/uts")
	}
	if NamespaceMode(b.Sandbox, IPC) != runtimeapi.NamespaceMode_NODE {
		join(specs.IPCNamespace, "ns/ipc")
	}

	pid, err := PIDMode(b.Sandbox, b.Config)
	if err != nil {
		return err
	}

	switch pid {
	case runtimeapi.NamespaceMode_POD:
		join(specs.PIDNamespace, "ns/pid")
	case runtimeapi.NamespaceMode_TARGET:
		join(specs.PIDNamespace, "ns/pid")
		b.out.PIDTarget = b.sc.GetNamespaceOptions().GetTargetId()
	case runtimeapi.NamespaceMode_CONTAINER:
		join(specs.PIDNamespace, "")
	}

	if b.ownCgroupNamespace() {
		join(specs.CgroupNamespace, "")
	}
	return b.checkUserNamespace()
}

// ownCgroupNamespace reports whether the container sees its own cgroup as the
// root. A privileged one sees the node's root, as node agents expect.
func (b *builder) ownCgroupNamespace() bool { return !b.privileged || b.userns != nil }

// PIDMode returns the mode of a container's PID namespace.
func PIDMode(pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) (runtimeapi.NamespaceMode, error) {
	ofPod := NamespaceMode(pod, PID)
	o := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if o == nil {
		return ofPod, nil
	}

	switch mode := o.GetPid(); {
	case mode == runtimeapi.NamespaceMode_TARGET && o.GetTargetId() == "":
		return 0, invalid("PID namespace of a target container without a target id")
	case mode == runtimeapi.NamespaceMode_TARGET, mode == runtimeapi.NamespaceMode_CONTAINER, mode == ofPod:
		return mode, nil
	case mode == runtimeapi.NamespaceMode_POD && ofPod == runtimeapi.NamespaceMode_NODE:
		return ofPod, nil
	default:
		return 0, invalid("container requests PID namespace %s, its sandbox has %s", mode, ofPod)
	}
}

// checkUserNamespace compares the container's request with the pod's mapping.
func (b *builder) checkUserNamespace() error {
	if o := b.sc.GetNamespaceOptions().GetUsernsOptions(); o != nil {
		own, err := PodUserNamespace(&runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: b.sc.GetNamespaceOptions()},
		}})
		if err != nil {
			return err
		}

		if (own == nil) != (b.userns == nil) || own != nil && *own != *b.userns {
			return invalid("user namespace of the container differs from its sandbox's")
		}
	}

	if b.userns == nil {
		return nil
	}
	for _, id := range append([]uint32{b.User.UID, b.User.GID}, b.User.Groups...) {
		if id >= b.userns.Size {
			return invalid("id %d is outside the pod's user namespace of %d ids", id, b.userns.Size)
		}
	}

	return nil
}
