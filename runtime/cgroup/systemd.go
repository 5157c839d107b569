package cgroup

import (
	"context"
	"fmt"
	"maps"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
)

// NeedsGate reports whether the group's first process must wait until Attach
// has put it into the group.
func (g *Group) NeedsGate() bool { return g.node.driver == Systemd }

// Attach starts the group's scope with a process in it and sets the limits
// that Create was given. Only the systemd driver needs it; elsewhere it does
// nothing.
func (g *Group) Attach(ctx context.Context, pid int) error {
	if !g.NeedsGate() {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("attach to cgroup %s: %w", g.path, err)
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wanted == nil {
		return fmt.Errorf("attach to cgroup %s: its scope was already started", g.path)
	}

	g.noteParent()
	wanted := g.stated(g.wanted)
	m, err := g.scope(wanted)
	if err != nil {
		return fmt.Errorf("attach to cgroup %s: %w", g.path, err)
	}

	if err := m.Apply(pid); err != nil {
		return fmt.Errorf("attach to cgroup %s: %w", g.path, err)
	}
	if err := g.join(pid); err != nil {
		return fmt.Errorf("attach to cgroup %s: %w", g.path, err)
	}

	if err := m.Set(wanted); err != nil {
		return fmt.Errorf("attach to cgroup %s: %w", g.path, refused(err))
	}
	g.WatchOOM()
	g.rules, g.wanted = g.wanted.Devices, nil
	return nil
}

// scope is the library's manager of the group's unit.
func (g *Group) scope(want *cgroups.Resources) (cgroups.Manager, error) {
	config := &cgroups.Cgroup{
		Name: g.at.id, ScopePrefix: g.at.prefix, Parent: g.at.parent, Systemd: true, Resources: want,
		// A scope whose process was killed fails, and would stay loaded.
		SystemdProps: []sddbus.Property{{Name: "CollectMode", Value: dbus.MakeVariant("inactive-or-failed")}},
	}
	if g.node.v2 {
		return systemd.NewUnifiedManager(config, g.dirs[0])
	}
	return systemd.NewLegacyManager(config, nil)
}

// stated spells out a swap limit of zero: the library sends no MemorySwapMax for it,
// so that systemd lifts the limit on each daemon-reload (seen with 252).
func (g *Group) stated(want *cgroups.Resources) *cgroups.Resources {
	const key = "memory.swap.max"
	_, stated := want.Unified[key]
	if stated || !g.node.v2 || want.Memory <= 0 || want.MemorySwap != want.Memory {
		return want
	}

	stating := *want
	stating.Unified = maps.Clone(want.Unified)
	if stating.Unified == nil {
		stating.Unified = map[string]string{}
	}
	stating.Unified[key] = "0"
	return &stating
}

func (g *Group) setSystemd(want *cgroups.Resources) error {
	want = g.stated(want)
	m, err := g.scope(want)
	if err != nil {
		return err
	}
	return m.Set(want)
}

// removeScope stops the unit. systemd removes a scope by itself when its last
// process has exited, so usually there is nothing to do.
func (g *Group) removeScope(ctx context.Context) error {
	if !g.Exists() {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", g.path, err)
	}

	m, err := g.scope(&cgroups.Resources{})
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", g.path, err)
	}

	if err := m.Destroy(); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", g.path, err)
	}
	return g.removeDirs(ctx) // systemd leaves the directories that it did not create
}
