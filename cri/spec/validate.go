package spec

import (
	"fmt"
	"math"
	"path"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxHostname is the kernel's limit.
const maxHostname = 64

// ValidateSandbox checks a pod's configuration as far as that does not depend
// on the machine.
func ValidateSandbox(cfg *runtimeapi.PodSandboxConfig) error {
	md := cfg.GetMetadata()
	sc := cfg.GetLinux().GetSecurityContext()
	switch {
	case md == nil:
		return invalid("sandbox without metadata")
	case md.GetName() == "" || md.GetNamespace() == "" || md.GetUid() == "":
		return invalid("sandbox metadata without name, namespace or uid")
	case len(cfg.GetHostname()) > maxHostname:
		return invalid("hostname of %d characters, at most %d are allowed", len(cfg.GetHostname()), maxHostname)
	case strings.ContainsAny(cfg.GetHostname(), "/\x00\n \t"):
		return invalid("hostname %q", cfg.GetHostname())
	case cfg.GetLogDirectory() != "" && !path.IsAbs(cfg.GetLogDirectory()):
		return invalid("log directory %q is not absolute", cfg.GetLogDirectory())
	case len(cfg.GetLogDirectory()) > maxPath: // or its first directories would be created before it fails
		return invalid("log directory of %d bytes, at most %d are allowed", len(cfg.GetLogDirectory()), maxPath)
	case strings.ContainsRune(cfg.GetLogDirectory(), 0):
		return invalid("log directory %q: NUL byte in a path", cfg.GetLogDirectory())
	case sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil:
		return invalid("sandbox with run_as_group but without run_as_user")
	}

	for kind, allowed := range map[Kind][]runtimeapi.NamespaceMode{
		Network: {runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE},
		IPC:     {runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE},
		PID:     {runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE},
	} {
		if err := checkMode(cfg, kind, allowed...); err != nil {
			return err
		}
	}

	userns, err := PodUserNamespace(cfg)
	if err != nil {
		return err
	}

	if userns != nil && NamespaceMode(cfg, PID) == runtimeapi.NamespaceMode_NODE {
		// The kernel would not let such a container mount /proc.
		return invalid("a pod with a user namespace cannot have the node's PID namespace")
	}

	if _, err := podSysctls(cfg, userns); err != nil {
		return err
	}
	for _, m := range cfg.GetPortMappings() {
		if err := CheckPort(m.GetContainerPort()); err != nil {
			return err
		}
		if m.GetHostPort() == 0 {
			continue // not used
		}

		if err := CheckPort(m.GetHostPort()); err != nil {
			return err
		}
	}

	for what, r := range map[string]*runtimeapi.LinuxContainerResources{"overhead": cfg.GetLinux().GetOverhead(), "resources": cfg.GetLinux().GetResources()} {
		if err := CheckPodResources(r); err != nil {
			return fmt.Errorf("%s of the pod: %w", what, err)
		}
	}

	return checkDNS(cfg.GetDnsConfig())
}

// CheckPort checks a port number.
func CheckPort(n int32) error {
	if n < 1 || n > math.MaxUint16 {
		return invalid("port %d is not a number from 1 to %d", n, math.MaxUint16)
	}
	return nil
}

func checkMode(cfg *runtimeapi.PodSandboxConfig, kind Kind, allowed ...runtimeapi.NamespaceMode) error {
	mode := NamespaceMode(cfg, kind)
	for _, m := range allowed {
		if m == mode {
			return nil
		}
	}
	return invalid("%s namespace mode %s of a sandbox", kind, mode)
}

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case Network:
		return "network"
	case PID:
		return "PID"
	default:
		return "IPC"
	}
}

// ValidateContainer checks a container's configuration, and that it is
// consistent with its pod's, as far as that does not depend on the machine.
func ValidateContainer(cfg *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	sc := cfg.GetLinux().GetSecurityContext()
	switch {
	case cfg.GetMetadata() == nil:
		return invalid("container without metadata")
	case cfg.GetMetadata().GetName() == "":
		return invalid("container metadata without name")
	case cfg.GetImage().GetImage() == "":
		return invalid("container without image")
	case cfg.GetLogPath() != "" && !filepath.IsLocal(cfg.GetLogPath()):
		return invalid("log path %q is outside the log directory", cfg.GetLogPath())
	case strings.ContainsRune(cfg.GetLogPath(), 0):
		return invalid("log path %q: NUL byte in a path", cfg.GetLogPath())
	case sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "":
		return invalid("container with a group to run as but no user")
	case sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "":
		return invalid("container with both a uid and a user name to run as")
	case sc.GetPrivileged() && !pod.GetLinux().GetSecurityContext().GetPrivileged():
		return invalid("a privileged container needs a privileged sandbox")
	}

	if _, err := PIDMode(pod, cfg); err != nil {
		return err
	}
	for _, m := range cfg.GetMounts() {
		if err := checkMount(m); err != nil {
			return err
		}
	}

	for _, d := range cfg.GetDevices() {
		switch {
		case !path.IsAbs(d.GetContainerPath()) || !path.IsAbs(d.GetHostPath()):
			return invalid("device %q at %q: paths must be absolute", d.GetHostPath(), d.GetContainerPath())
		case strings.Trim(d.GetPermissions(), allAccess) != "":
			return invalid("device %q with permissions %q", d.GetHostPath(), d.GetPermissions())
		}
	}

	_, err := FromCRI(cfg.GetStopSignal())
	return err
}

func checkMount(m *runtimeapi.Mount) error {
	target := m.GetContainerPath()
	private := m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	switch {
	case !path.IsAbs(target):
		return invalid("mount at %q: the path is not absolute", target)
	case path.Clean(target) == "/":
		return invalid("mount at the root of the container")
	case path.Clean(target) == "/proc" && path.Clean(m.GetHostPath()) != "/proc":
		return invalid("mount at /proc of something other than the node's /proc")
	case strings.ContainsRune(target+m.GetHostPath(), 0):
		return invalid("mount at %q: NUL byte in a path", target)
	case m.GetImage() != nil && m.GetHostPath() != "":
		return invalid("mount at %q: both an image and a host path", target)
	case m.GetImage() != nil && m.GetImage().GetImage() == "":
		return invalid("mount at %q: image without a reference", target)
	case m.GetImage() != nil && !private:
		return invalid("mount at %q: image with propagation %s", target, m.GetPropagation())
	// In a pod with an image volume, kubelet sets the sub path of every volume
	// here, though it has resolved those of the others itself.
	case m.GetImage() != nil && m.GetImageSubPath() != "" && !filepath.IsLocal(m.GetImageSubPath()):
		return invalid("mount at %q: image sub path %q is outside the image", target, m.GetImageSubPath())
	case m.GetImage() == nil && !path.IsAbs(m.GetHostPath()):
		return invalid("mount at %q: host path %q is not absolute", target, m.GetHostPath())
	case runtimeapi.MountPropagation_name[int32(m.GetPropagation())] == "":
		return invalid("mount at %q: propagation %d", target, m.GetPropagation())
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return invalid("mount at %q: recursively read-only but not read-only", target)
	case m.GetRecursiveReadOnly() && !private:
		return invalid("mount at %q: recursively read-only with propagation %s", target, m.GetPropagation())
	case (len(m.GetUidMappings()) == 0) != (len(m.GetGidMappings()) == 0):
		return invalid("mount at %q: only one of uid and gid mappings", target)
	}

	if _, err := mountOptions(m); err != nil {
		return err
	}
	for _, id := range m.GetUidMappings() {
		if err := checkMapping("uid", id); err != nil {
			return err
		}
	}

	for _, id := range m.GetGidMappings() {
		if err := checkMapping("gid", id); err != nil {
			return err
		}
	}

	return nil
}
