package main

import (
	"context"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/cgroup"
)

// podCgroups creates a cgroup for each pod, as kubelet does before it calls
// RunPodSandbox. Its time is not measured.
type podCgroups struct {
	node   *cgroup.Node
	parent string
}

func newPodCgroups(parent string) (*podCgroups, error) {
	node, err := cgroup.New(cgroup.Cgroupfs, parent)
	return &podCgroups{node, parent}, err
}

func (c *podCgroups) make(ctx context.Context, name string) (*cgroup.Group, error) {
	path, err := c.node.Path(c.parent, "pod-"+name)
	if err != nil {
		return nil, err
	}
	all := []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}} // containers limit themselves
	return c.node.Create(ctx, path, &specs.LinuxResources{Devices: all})
}

func (c *podCgroups) close() error { return c.node.Close() }
