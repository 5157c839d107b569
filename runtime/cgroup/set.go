package cgroup

import (
	"fmt"
	"slices"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Set changes the group's limits. r are all resources, already merged with
// those in force; unset ones are not changed. Device rules are only written
// when they differ, and replaced atomically. r without device rules leaves them
// alone.
func (g *Group) Set(r *specs.LinuxResources) error {
	want, err := g.node.convert(r)
	if err != nil {
		return fmt.Errorf("limit cgroup %s: %w", g.path, err)
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	if r == nil || len(r.Devices) == 0 || sameRules(g.rules, want.Devices) {
		want.SkipDevices = true
	}
	if g.wanted != nil {
		if want.SkipDevices {
			want.Devices, want.SkipDevices = g.wanted.Devices, false
		}
		g.wanted = want
		return nil // Attach will apply it
	}

	switch {
	case g.node.driver == Systemd:
		err = g.setSystemd(want)
	case g.node.v2:
		err = g.setV2(want)
	default:
		err = g.setV1(want)
	}
	if err != nil {
		return g.fail("limit", g.tooMuchInUse(want, refused(err)))
	}

	if !want.SkipDevices {
		g.rules = want.Devices
	}
	return nil
}

// tooMuchInUse adds [ErrInUse] to the error if a memory limit was refused
// because it is below the usage. The library has no sentinel for that.
func (g *Group) tooMuchInUse(want *cgroups.Resources, err error) error {
	if want.Memory <= 0 || isGone(err) {
		return err
	}
	stats, e := g.Usage()
	if e != nil || stats.Memory.Usage <= uint64(want.Memory) {
		return err
	}
	return fmt.Errorf("%w: a memory limit of %d bytes is below the %d in use: %w", ErrInUse, want.Memory, stats.Memory.Usage, err)
}

func (g *Group) setV1(want *cgroups.Resources) error {
	if len(g.in) == 0 {
		return nil // see [Node]
	}
	if !want.SkipDevices {
		if err := cgroups.DevicesSetV1(g.dir("devices"), want); err != nil {
			return fmt.Errorf("set device rules: %w", err)
		}
	}

	if dir := g.dir("cpuset"); dir != "" {
		if err := (&fs.CpusetGroup{}).Set(dir, want); err != nil {
			return err
		}
	}

	return g.setControllersV1(want)
}

// setControllersV1 writes the limits of all version 1 controllers except cpuset
// and devices.
func (g *Group) setControllersV1(want *cgroups.Resources) error {
	for _, c := range []struct {
		name string
		set  func(string, *cgroups.Resources) error
	}{
		{"cpu", (&fs.CpuGroup{}).Set},
		{"memory", (&fs.MemoryGroup{}).Set},
		{"pids", (&fs.PidsGroup{}).Set},
		{"blkio", (&fs.BlkioGroup{}).Set},
		{"hugetlb", (&fs.HugetlbGroup{}).Set},
	} {
		if dir := g.dir(c.name); dir != "" {
			if err := c.set(dir, want); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *Group) setV2(want *cgroups.Resources) error {
	m, err := fs2.NewManager(&cgroups.Cgroup{}, g.dirs[0])
	if err != nil {
		return err
	}
	return m.Set(want)
}

func sameRules(a, b []*devices.Rule) bool {
	return a != nil && slices.EqualFunc(a, b, func(x, y *devices.Rule) bool { return *x == *y })
}
