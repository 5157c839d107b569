package spec

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/plan"
)

// SandboxOptions returns the namespaces that a pod's configuration asks for.
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
	return o, nil
}
