package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// ttyGroup is the GID that owns the terminals of a container.
const ttyGroup = 5

// mounts sets the container's mounts, ordered by path so that parents come
// first; when the container starts they are ordered again by where the image's
// symbolic links lead. A configured mount replaces a default at the same path;
// a mount at /dev replaces everything below it, too.
func (b *builder) mounts() error {
	configured, err := b.configuredMounts()
	if err != nil {
		return err
	}

	taken := func(p string) bool {
		return slices.ContainsFunc(configured, func(m specs.Mount) bool {
			return m.Destination == p || m.Destination == "/dev" && strings.HasPrefix(p, "/dev/")
		})
	}

	var list []specs.Mount
	for _, m := range slices.Concat(b.defaultMounts(), b.sharedFiles()) {
		if !taken(m.Destination) {
			list = append(list, m)
		}
	}

	list = append(list, configured...)
	volumes, err := b.volumes(list)
	if err != nil {
		return err
	}

	// Configured mounts come last, so that they end up on top if a symbolic link
	// of the image makes one of its volumes land in the same place.
	list = append(volumes, list...)
	sortMounts(list)
	b.out.Spec.Mounts = list
	return nil
}

// sortMounts sorts parents before mounts below them.
func sortMounts(list []specs.Mount) {
	slices.SortStableFunc(list, func(x, y specs.Mount) int { return depth(x.Destination) - depth(y.Destination) })
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// defaultMounts are the file systems that every container has.
func (b *builder) defaultMounts() []specs.Mount {
	ro := "ro"
	if b.privileged {
		ro = "rw"
	}

	devpts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if b.userns == nil || b.userns.Size > ttyGroup {
		devpts = append(devpts, fmt.Sprintf("gid=%d", ttyGroup))
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: devpts},
		b.shm(),
		b.mqueue(),
		b.sysfs(ro),
		b.cgroup(ro),
	}
}

// shm returns the mount of the pod's shared memory, or of the node's.
func (b *builder) shm() specs.Mount {
	if NamespaceMode(b.Sandbox, IPC) == runtimeapi.NamespaceMode_NODE {
		return specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "rprivate", "rw"}}
	}
	return specs.Mount{Destination: "/dev/shm", Type: "shm", Source: "pod", Options: []string{"nosuid", "noexec", "nodev"}}
}

// mqueue is a bind mount if the container's user namespace does not own the IPC
// namespace: the kernel then refuses a new mount.
func (b *builder) mqueue() specs.Mount {
	if b.userns != nil && NamespaceMode(b.Sandbox, IPC) == runtimeapi.NamespaceMode_NODE {
		return specs.Mount{Destination: "/dev/mqueue", Type: "bind", Source: "/dev/mqueue", Options: []string{"rbind", "rprivate", "rw"}}
	}
	return specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}}
}

// sysfs is a bind mount if the container's user namespace does not own the
// network namespace. The copy shows the node's sysfs, and is recursively
// read-only.
func (b *builder) sysfs(ro string) specs.Mount {
	if b.userns != nil && NamespaceMode(b.Sandbox, Network) == runtimeapi.NamespaceMode_NODE {
		return specs.Mount{
			Destination: "/sys", Type: "bind", Source: "/sys",
			Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"},
		}
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}}
}

// cgroup shows the container's own cgroup. The node's whole hierarchy, which
// only a privileged container sees, is a bind mount, never a new one: mounting
// cgroup2 again would change the options of the superblock that all its mounts
// share.
func (b *builder) cgroup(ro string) specs.Mount {
	const target = "/sys/fs/cgroup"
	if !b.ownCgroupNamespace() {
		return specs.Mount{Destination: target, Type: "bind", Source: target, Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", ro}}
	}
	if b.Defaults.WritableCgroups && b.Host.CgroupV2 {
		ro = "rw"
	}
	return specs.Mount{Destination: target, Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", ro}}
}

// sharedFiles mounts the files that the pod's containers share.
func (b *builder) sharedFiles() []specs.Mount {
	rw := "rw"
	if b.sc.GetReadonlyRootfs() {
		rw = "ro"
	}
	var out []specs.Mount
	for _, f := range []struct{ target, source string }{
		{"/etc/hosts", b.Files.Hosts}, {"/etc/hostname", b.Files.Hostname}, {"/etc/resolv.conf", b.Files.ResolvConf},
	} {
		if f.source != "" {
			out = append(out, specs.Mount{Destination: f.target, Type: "bind", Source: f.source, Options: []string{"bind", "rprivate", rw}})
		}
	}
	return out
}

// configuredMounts converts the mounts of the configuration.
func (b *builder) configuredMounts() ([]specs.Mount, error) {
	var out []specs.Mount
	for _, m := range b.Config.GetMounts() {
		var mount specs.Mount
		var err error
		if m.GetImage() != nil {
			mount, err = b.imageMount(m)
		} else {
			mount, err = b.bindMount(m)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.GetContainerPath(), err)
		}
		out = append(out, mount)
	}

	return out, nil
}

func (b *builder) imageMount(m *runtimeapi.Mount) (specs.Mount, error) {
	name := imageName(len(b.out.Images))
	b.out.Images = append(b.out.Images, ImageMount{
		Path: path.Clean(m.GetContainerPath()), Image: m.GetImage(), SubPath: m.GetImageSubPath(),
	})
	options, err := mountOptions(m)
	if err != nil {
		return specs.Mount{}, err
	}
	return specs.Mount{
		Destination: path.Clean(m.GetContainerPath()), Type: "image", Source: name,
		Options: append([]string{"ro", "rprivate"}, options...),
	}, nil
}

func (b *builder) bindMount(m *runtimeapi.Mount) (specs.Mount, error) {
	var none specs.Mount
	source, err := b.Node.Resolve(m.GetHostPath(), b.Defaults.CreateMissingHostPaths)
	if errors.Is(err, fs.ErrNotExist) {
		return none, invalid("host path %q: %w", m.GetHostPath(), err)
	} else if errors.Is(err, fs.ErrPermission) {
		return none, unsupported("crisp is denied access to host path %q, by SELinux or the like: %w", m.GetHostPath(), err)
	} else if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return none, unsupported("host path %q is a dangling symbolic link, or goes through something other than a directory: %w", m.GetHostPath(), err)
	} else if err != nil {
		return none, fmt.Errorf("resolve host path %q: %w", m.GetHostPath(), err)
	}

	propagation, err := b.propagation(m, source)
	if err != nil {
		return none, err
	}

	options, err := mountOptions(m)
	if err != nil {
		return none, err
	}

	ro := "rw"
	switch {
	case m.GetRecursiveReadOnly() && !b.Host.RecursiveReadOnly:
		return none, fmt.Errorf("%w: %w: the kernel does not support recursive read-only mounts", crierrors.ErrRROUnsupported, ErrUnsupported)
	case m.GetRecursiveReadOnly():
		ro = "rro"
	case m.GetReadonly():
		ro = "ro"
	}

	if m.GetSelinuxRelabel() && b.Labels.Mount != "" {
		b.out.Relabel = append(b.out.Relabel, source)
	}
	out := specs.Mount{
		Destination: path.Clean(m.GetContainerPath()), Type: "bind", Source: source,
		Options: append([]string{"rbind", propagation, ro}, options...),
	}

	if len(m.GetUidMappings()) > 0 {
		if !b.Host.IDMapMounts {
			return none, unsupported("id-mapped mounts")
		}
		out.UIDMappings, out.GIDMappings = idMappings(m.GetUidMappings()), idMappings(m.GetGidMappings())
	}

	return out, nil
}

// imageName is the name under which the caller holds image volume n.
func imageName(n int) string { return fmt.Sprintf("image/%d", n) }

func idMappings(in []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range in {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

// mountOptions checks the extra options of a mount. Only options that restrict
// it are allowed.
func mountOptions(m *runtimeapi.Mount) ([]string, error) {
	known := []string{"noexec", "nodev", "nosuid", "nosymfollow", "noatime", "nodiratime", "relatime", "strictatime"}
	var out []string
	for _, o := range m.GetMountOptions() {
		if !slices.Contains(known, o) {
			return nil, invalid("mount option %q (known options: %s)", o, strings.Join(known, ", "))
		}
		if !slices.Contains(out, o) {
			out = append(out, o)
		}
	}
	return out, nil
}
