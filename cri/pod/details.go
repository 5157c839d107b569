package pod

import (
	"fmt"
	"os"
	"slices"

	"crisp/network/netns"
	"crisp/runtime/keeper/client"
)

// errKeeperLost is why nothing can be started until another keeper is there.
var errKeeperLost = fmt.Errorf("another keeper is being started: %w", client.ErrLost)

// errExitLost is a command of which only the end is known.
var errExitLost = fmt.Errorf("the command has ended, and how is not known: its keeper had died and the kernel does not tell: %w", client.ErrLost)

// Healthy fails when containers cannot be started.
func (m *Manager) Healthy() error {
	select {
	case <-m.Keeper.Client().Done():
		return errKeeperLost
	default:
		return nil
	}
}

// HasHandler reports whether a runtime handler of that name exists.
func (m *Manager) HasHandler(name string) bool {
	return name == "" || slices.Contains(m.Handlers, name)
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
// has none of its own.
func (m *Manager) OpenNetwork(id string) (*os.File, error) {
	r, err := m.ReadySandbox(id)
	if err != nil {
		return nil, err
	}
	if r.NetNS == "" {
		return os.Open("/proc/self/ns/net")
	}
	return netns.Open(r.NetNS)
}

// Details are what a verbose status of the sandbox shows.
func (r *Record) Details() map[string]any {
	return map[string]any{"info": map[string]any{
		"phase": r.Phase, "reason": r.Reason, "netns": r.NetNS, "pause": r.Pause, "bootID": r.BootID,
		"config": r.Config, "overhead": r.Overhead, "resources": r.Resources,
	}}
}

// ContainerDetails are what a verbose status of a container shows.
func (m *Manager) ContainerDetails(r *Record, c *Container) map[string]any {
	info := map[string]any{
		"sandboxID": r.ID, "config": c.Config, "cgroup": c.CgroupPath, "imageID": c.ImageID,
	}
	if c.Process != nil {
		info["pid"] = c.Process.Pid
	}
	if p, err := m.pod(r.ID); err == nil {
		k := &making{p: p, id: c.ID}
		if s, err := k.loadSpec(); err == nil {
			info["runtimeSpec"] = s
		}
	}
	return map[string]any{"info": info}
}
