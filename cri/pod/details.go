package pod

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/network"
	"crisp/network/netns"
	"crisp/runtime/keeper/client"
)

// Healthy fails when containers cannot be started: the keeper is being replaced, or has
// not answered for some time ([client.ErrSilent]).
func (m *Manager) Healthy() error {
	select {
	case <-m.Keeper.Client().Done():
		return client.ErrReplaced
	default:
	}
	if since := m.silence.since.Load(); since != nil && time.Since(*since) > silencePatience {
		return m.silent()
	}
	return nil
}

// Keeping is what is wrong with the keeper, nil for nothing. Other than [Manager.Healthy]
// it has no patience.
func (m *Manager) Keeping() error { return cmp.Or(m.Healthy(), m.silent()) }

// HasHandler reports whether a runtime handler of that name exists.
func (m *Manager) HasHandler(name string) bool {
	return name == "" || slices.Contains(m.Handlers(), name)
}

// ReadySandbox returns a sandbox's record, or ErrState if it is not ready.
func (m *Manager) ReadySandbox(id string) (*Record, error) {
	r, err := m.Sandbox(id)
	if err != nil {
		return nil, err
	}
	if !r.Ready() {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", r.ID, ErrState)
	}
	return r, nil
}

// OpenNetwork opens a ready pod's network namespace, the host's for a pod that
// has no own one.
func (m *Manager) OpenNetwork(id string) (*os.File, error) {
	r, err := m.ReadySandbox(id)
	if err != nil {
		return nil, err
	}
	return r.openNetwork()
}

func (r *Record) openNetwork() (*os.File, error) {
	if r.NetNS == "" {
		return os.Open("/proc/self/ns/net")
	}
	return netns.Open(r.NetNS)
}

// SandboxDetails are the verbose part of a sandbox's status, under the keys
// that tools expect: the process and the specification, through which its
// namespaces are found, and the result of the network plugins.
func (m *Manager) SandboxDetails(r *Record) map[string]any {
	info := map[string]any{
		"phase": r.Phase, "reason": r.Reason, "netns": r.NetNS, "pause": r.Pause, "bootID": r.BootID,
		"config": r.Config, "overhead": r.Overhead, "resources": r.Resources,
		"netNamespaceClosed": r.NetNS == "" && !onNode(r), "runtimeHandler": r.Handler,
		"runtimeSpec": specs.Spec{
			Version: specs.Version, Hostname: r.Config.Msg.GetHostname(),
			Linux: &specs.Linux{
				CgroupsPath: r.Config.Msg.GetLinux().GetCgroupParent(),
				Namespaces:  []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: r.NetNS}},
			},
		},
		"cniResult": cniResult(r),
	}

	// Without a process of the pod's own, any in its namespaces will do.
	if r.Pause != nil {
		info["pid"] = r.Pause.Pid
	}

	for _, c := range r.Containers {
		if info["pid"] == nil && c.Process != nil && c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			info["pid"] = c.Process.Pid
		}
	}

	return map[string]any{"info": info}
}

func onNode(r *Record) bool {
	return r.Config.Msg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// cniResult returns a pod's addresses in the form that tools expect.
func cniResult(r *Record) any {
	type address struct{ IP, Gateway string }
	type iface struct {
		IPConfigs []address
		Mac       string
		Sandbox   string
	}

	if len(r.IPs) == 0 || onNode(r) {
		return nil
	}
	own := iface{Sandbox: r.NetNS}
	for _, ip := range r.IPs {
		own.IPConfigs = append(own.IPConfigs, address{IP: ip})
	}

	return map[string]any{"Interfaces": map[string]iface{network.DefaultIfName: own}}
}

// ContainerDetails are the verbose part of a container's status. The
// specification is the current one, with updated resources and the paths of the
// namespaces.
func (m *Manager) ContainerDetails(r *Record, c *Container) map[string]any {
	info := map[string]any{
		"sandboxID": r.ID, "config": c.Config, "cgroup": c.CgroupPath, "imageID": c.ImageID,
		"runtimeType": "crisp", "removing": false, "plugins": c.Plugins,
	}

	if c.Process != nil {
		info["pid"] = c.Process.Pid
	}
	if p, err := m.pod(r.ID); err == nil {
		if s, err := p.loadSpec(c.ID); err == nil {
			info["runtimeSpec"] = m.specInForce(s, r, c)
		}
	}

	return map[string]any{"info": info}
}

// specInForce is a container's specification with all updates.
func (m *Manager) specInForce(made *specs.Spec, r *Record, c *Container) *specs.Spec {
	s := withScore(made, c)
	if s.Linux == nil {
		return s
	}

	linux := *s.Linux
	own := *s
	own.Linux = &linux
	linux.Namespaces = slices.Clone(linux.Namespaces)

	for i, ns := range linux.Namespaces {
		if ns.Type == specs.NetworkNamespace && r.NetNS != "" {
			linux.Namespaces[i].Path = r.NetNS
		}
	}

	if limits := c.limits(); limits != nil && linux.Resources != nil {
		if updated, err := m.limits(c, made); err == nil {
			if updated.Memory != nil {
				updated.Memory.CheckBeforeUpdate = nil
			}
			linux.Resources = updated
		}
	}

	return &own
}

// withScore returns a copy of a specification with the oom_score_adj that the
// container has got since its creation.
func withScore(made *specs.Spec, c *Container) *specs.Spec {
	score := int(c.limits().GetOomScoreAdj())
	if score == 0 || made.Process == nil {
		return made
	}
	s, process := *made, *made.Process
	s.Process, process.OOMScoreAdj = &process, &score
	return &s
}
