package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
	"crisp/runtime/cgroup"
)

// UpdateContainer merges changed limits into the current ones and applies them.
// Fields that are zero or empty keep their value.
func (m *Manager) UpdateContainer(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) error {
	p, id, err := m.container(id)
	if err != nil {
		return err
	}

	release, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer release()

	c := p.record().Container(id)
	if c == nil {
		return fmt.Errorf("container %s: %w", id, ErrNotFound)
	}

	switch c.State() {
	case runtimeapi.ContainerState_CONTAINER_CREATED, runtimeapi.ContainerState_CONTAINER_RUNNING:
	default:
		return fmt.Errorf("update container %s: it is %s: %w", id, c.StateName(), ErrState)
	}

	if err := p.updateResources(ctx, c, change); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

// updateResources asks the plugins about a change of limits and applies it.
func (p *pod) updateResources(ctx context.Context, c *Container, change *runtimeapi.LinuxContainerResources) error {
	adjusted, err := p.askUpdate(ctx, c, change)
	if err != nil {
		return err
	}
	if err := p.applyResources(ctx, c, adjusted.Limits); err != nil {
		return err
	}

	p.tellContainer(ctx, ContainerUpdated, c.ID)
	return p.applyUpdates(ctx, adjusted.Updates)
}

// Limits are a change of limits: what the CRI has fields for, and the rest.
type Limits struct {
	Resources *runtimeapi.LinuxContainerResources
	Other     *specs.LinuxResources
}

func (p *pod) applyResources(ctx context.Context, c *Container, change Limits) error {
	next := *c
	merged, other := spec.MergeResources(c.limits(), change.Resources), overlay(c.PluginLimits, change.Other)
	msg := message(merged)
	next.Resources, next.PluginLimits = &msg, other

	s, err := p.loadSpec(c.ID)
	if err != nil {
		return err
	}

	resources, err := p.m.limits(&next, s)
	if err != nil {
		return err
	}

	group, err := p.groupOf(c)
	switch {
	case errors.Is(err, cgroup.ErrNotFound) && c.StartedAt == 0:
		// The systemd driver creates it at the start, with the recorded limits.
	case err != nil:
		return err
	default:
		err := group.Set(resources)
		if err == nil && change.Resources.GetOomScoreAdj() != 0 {
			err = p.m.setScore(group, merged)
		}
		if err != nil {
			// Some limits may already be applied.
			if old, e := p.m.limits(c, s); e == nil {
				warn(group.Set(explicit(old)), "revert a refused change of limits", "container", c.ID)
			}
			return err
		}
	}

	return p.updateContainer(c.ID, func(c *Container) { c.Resources, c.PluginLimits = &msg, other })
}

// overlay returns limits with the fields that a change sets. None of the two is
// changed.
func overlay(old, change *specs.LinuxResources) *specs.LinuxResources {
	if old == nil || change == nil {
		return cmp.Or(change, old)
	}

	out := *old
	if change.Memory != nil {
		memory := specs.LinuxMemory{}
		if old.Memory != nil {
			memory = *old.Memory
		}
		out.Memory = &memory
		set(&memory.Reservation, change.Memory.Reservation)
		set(&memory.Swappiness, change.Memory.Swappiness)
		set(&memory.DisableOOMKiller, change.Memory.DisableOOMKiller)
	}
	if change.CPU != nil {
		cpu := specs.LinuxCPU{}
		if old.CPU != nil {
			cpu = *old.CPU
		}
		out.CPU = &cpu
		set(&cpu.RealtimeRuntime, change.CPU.RealtimeRuntime)
		set(&cpu.RealtimePeriod, change.CPU.RealtimePeriod)
	}
	set(&out.Pids, change.Pids)
	return &out
}

func set[T any](to **T, v *T) {
	if v != nil {
		*to = v
	}
}

// explicit fills in the limits that were never requested, which would otherwise
// not be changed.
func explicit(r *specs.LinuxResources) *specs.LinuxResources {
	const usualShares, noLimit = uint64(1024), int64(-1)
	cpu, memory := specs.LinuxCPU{}, specs.LinuxMemory{}
	if r.CPU != nil {
		cpu = *r.CPU
	}
	if r.Memory != nil {
		memory = *r.Memory
	}

	shares, none := usualShares, noLimit
	if cpu.Shares == nil {
		cpu.Shares = &shares
	}
	if cpu.Quota == nil {
		cpu.Quota = &none
	}

	if memory.Limit == nil && memory.Swap == nil {
		memory.Limit = &none
	}
	out := *r
	out.CPU, out.Memory = &cpu, &memory
	return &out
}

// setScore sets oom_score_adj of all processes of a container.
func (m *Manager) setScore(group *cgroup.Group, res *runtimeapi.LinuxContainerResources) error {
	score := strconv.Itoa(max(int(res.GetOomScoreAdj()), m.Host.OOMScoreAdjMin))
	pids, err := group.Pids()
	if errors.Is(err, cgroup.ErrNotFound) {
		return nil // it has exited
	}
	if err != nil {
		return err
	}

	files := map[int]*os.File{}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()

	for _, pid := range pids {
		if f, err := os.OpenFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), os.O_WRONLY, 0); err == nil {
			files[pid] = f
		}
	}

	// A pid may have been reused. If it is still in the cgroup the file belongs
	// to that process: writing to that of a dead one has no effect.
	if pids, err = group.Pids(); err != nil && !errors.Is(err, cgroup.ErrNotFound) {
		return err
	}

	for _, pid := range pids {
		f := files[pid]
		if f == nil {
			continue // started meanwhile, with its parent's score
		}
		if _, err := f.WriteString(score); errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set oom_score_adj of process %d to %s: the daemon may not lower it: %w", pid, score, cgroup.ErrUnsupported)
		}
	}

	return nil
}

// limits returns the cgroup limits of a container. The devices that it may use
// are the spec's and never change.
func (m *Manager) limits(c *Container, s *specs.Spec) (*specs.LinuxResources, error) {
	out, err := spec.Resources(c.limits(), m.Host, m.choices.Load().Defaults)
	if err != nil {
		return nil, err
	}

	if err := checkOthers(c.PluginLimits); err != nil {
		return nil, err
	}
	out = overlay(out, c.PluginLimits)
	out.Devices = s.Linux.Resources.Devices
	if out.Memory != nil {
		// With cgroup version 2 a limit below the usage would OOM-kill the
		// container.
		refuse := true
		out.Memory.CheckBeforeUpdate = &refuse
	}
	return out, nil
}

// UpdateSandbox records the pod-level resources that kubelet sends. Their
// cgroup is kubelet's own, so there is nothing to write.
func (m *Manager) UpdateSandbox(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	p, err := m.pod(id)
	if err != nil {
		return err
	}

	for _, res := range []*runtimeapi.LinuxContainerResources{overhead, resources} {
		if err := spec.CheckPodResources(res); err != nil {
			return fmt.Errorf("update sandbox %s: %w", id, err)
		}
	}

	// Plugins are told of a sandbox's events in their order.
	release, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer release()
	if _, err := m.pod(p.record().ID); err != nil {
		return err // it was removed meanwhile
	}

	if err := p.askSandboxUpdate(ctx, overhead, resources); err != nil {
		return fmt.Errorf("update sandbox %s: %w", id, err)
	}
	o, r := optional(overhead), optional(resources)
	err = p.update(func(rec *Record) {
		if o != nil {
			rec.Overhead = o
		}
		if r != nil {
			rec.Resources = r
		}
	})
	if err == nil {
		p.tellSandbox(ctx, SandboxUpdated)
	}
	return err
}

func optional(res *runtimeapi.LinuxContainerResources) *Message[*runtimeapi.LinuxContainerResources] {
	if res == nil {
		return nil
	}
	m := message(res)
	return &m
}
