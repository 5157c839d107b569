package main

import (
	"context"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/cgroup"
)

// podCgroups makes the cgroups of pods, each with one of its own, as kubelet
// does before it asks for the pod. It is not in what is measured.
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
