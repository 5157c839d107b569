package spec

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/plan"
)

// SandboxOptions returns the namespaces that a pod's configuration requests.
// The caller adds a name, and the host name if the configuration has none.
func SandboxOptions(cfg *runtimeapi.PodSandboxConfig) (plan.SandboxOptions, error) {
	var o plan.SandboxOptions
	if err := ValidateSandbox(cfg); err != nil {
		return o, err
	}

	userns, err := PodUserNamespace(cfg)
	if err != nil {
		return o, err
	}

	if o.Sysctls, err = podSysctls(cfg, userns); err != nil {
		return o, err
	}
	if userns != nil {
		o.NewUser = true
		o.UIDMap, o.GIDMap = IDMaps(cfg)
	}

	o.NewNet = NamespaceMode(cfg, Network) != runtimeapi.NamespaceMode_NODE
	o.NewUTS = o.NewNet
	o.NewIPC = NamespaceMode(cfg, IPC) != runtimeapi.NamespaceMode_NODE
	o.PidNS = NamespaceMode(cfg, PID) == runtimeapi.NamespaceMode_POD
	o.Hostname = cfg.GetHostname()
	if o.ShmSize, err = shmSize(cfg); err != nil {
		return o, err
	}

	o.User, err = podUser(cfg, userns)
	return o, err
}

// podUser returns the user of the pod's own first process, root if none is
// requested. There is no image to look names up in.
func podUser(cfg *runtimeapi.PodSandboxConfig, userns *UserNamespace) (specs.User, error) {
	var u specs.User
	sc := cfg.GetLinux().GetSecurityContext()
	id := func(kind string, v int64) (uint32, error) {
		n, err := number(kind, v)
		if err == nil && userns != nil && n >= userns.Size {
			err = invalid("%s %d is not in the pod's user namespace", kind, n)
		}
		return n, err
	}

	var err error
	if v := sc.GetRunAsUser(); v != nil {
		if u.UID, err = id("uid", v.GetValue()); err != nil {
			return u, err
		}
	}

	if v := sc.GetRunAsGroup(); v != nil {
		if u.GID, err = id("gid", v.GetValue()); err != nil {
			return u, err
		}
	}

	for _, g := range sc.GetSupplementalGroups() {
		n, err := id("supplemental group", g)
		if err != nil {
			return u, err
		}
		if !slices.Contains(u.AdditionalGids, n) {
			u.AdditionalGids = append(u.AdditionalGids, n)
		}
	}

	return u, nil
}

// SandboxAppArmor returns the AppArmor profile that a pod requests for its own
// process, "" for none. That process has no privileges, so the default is none.
func SandboxAppArmor(cfg *runtimeapi.PodSandboxConfig, in Input) (string, error) {
	sc := cfg.GetLinux().GetSecurityContext()
	if sc.GetApparmor() == nil {
		return "", nil
	}
	b := &builder{Input: in, out: &Result{}}
	b.privileged = sc.GetPrivileged()
	b.sc = &runtimeapi.LinuxContainerSecurityContext{Apparmor: sc.GetApparmor()}
	return b.apparmor()
}
