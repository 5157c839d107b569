package spec

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/runtime/plan"
)

// shmSize is the size of a pod's shared memory in bytes.
const shmSize = 64 << 20

// sandboxOptions stands in until the plan package has it.
type sandboxOptions struct {
	Name, Hostname                  string
	NewNet, NewIPC, NewUTS, NewUser bool
	UIDMap, GIDMap                  []plan.IDMap
	Sysctls                         map[string]string
	ShmSize                         int64
	PidNS                           bool
}

// SandboxOptions returns the namespaces that a pod's configuration asks for.
// The caller adds a name, and the host name if the configuration has none.
func SandboxOptions(cfg *runtimeapi.PodSandboxConfig) (sandboxOptions, error) {
	var o sandboxOptions
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
	o.ShmSize = shmSize
	return o, nil
}
