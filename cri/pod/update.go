package pod

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
)

// UpdateContainer merges changed limits into those in force and applies them.
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
	if err := p.applyResources(ctx, c, change); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	return nil
}

func (p *pod) applyResources(ctx context.Context, c *Container, change *runtimeapi.LinuxContainerResources) error {
	var old *runtimeapi.LinuxContainerResources
	if c.Resources != nil {
		old = c.Resources.Msg
	}
	merged := spec.MergeResources(old, change)
	k := &making{p: p, id: c.ID}
	s, err := k.loadSpec()
	if err != nil {
		return err
	}
	resources, err := spec.Resources(merged, p.m.Host, p.m.Defaults)
	if err != nil {
		return err
	}
	// The limits change, the devices do not.
	resources.Devices = s.Linux.Resources.Devices
	group, err := p.groupOf(c)
	if err != nil {
		return err
	}
	if err := group.Set(resources); err != nil {
		return err
	}
	msg, err := message(merged)
	if err != nil {
		return err
	}
	return p.updateContainer(c.ID, func(c *Container) { c.Resources = &msg })
}

// UpdateSandbox notes the pod-level resources that kubelet tells. Their
// cgroup is kubelet's own, so there is nothing to write.
func (m *Manager) UpdateSandbox(id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	p, err := m.pod(id)
	if err != nil {
		return err
	}
	o, err := optional(overhead)
	if err != nil {
		return err
	}
	r, err := optional(resources)
	if err != nil {
		return err
	}
	return p.update(false, func(rec *Record) {
		if o != nil {
			rec.Overhead = o
		}
		if r != nil {
			rec.Resources = r
		}
	})
}

func optional(res *runtimeapi.LinuxContainerResources) (*Message[*runtimeapi.LinuxContainerResources], error) {
	if res == nil {
		return nil, nil
	}
	m, err := message(res)
	return &m, err
}
