package pod

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"crisp/runtime/keeper/client"
	"crisp/runtime/keeper/table"
)

// upgradeTimeout bounds an upgrade of the keeper.
const upgradeTimeout = 20 * time.Second

// upgradeKeeper upgrades the keeper to the version of the daemon. Everything
// works without that, too.
func (m *Manager) upgradeKeeper() {
	ctx, cancel := context.WithTimeout(m.ctx, upgradeTimeout)
	defer cancel()
	if err := m.Keeper.Upgrade(ctx); err != nil {
		klog.ErrorS(err, "Could not upgrade the keeper, the old one keeps running")
	}
}

// forgetDying has the keeper forget a killed process once it is dead.
func (m *Manager) forgetDying(ctx context.Context, id string, ended <-chan struct{}) error {
	err := m.Keeper.ForgetDying(ctx, id, ended)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrUnkillable, err)
	}
	return err
}

// forgetUnknown has the keeper forget the exit of a process that no caller
// waits for: a cancelled command, or a process without a record. That of a
// poststop hook is kept for the one that will wait for it, who would run it
// again.
func (m *Manager) forgetUnknown(e client.Exit) {
	if m.isPoststop(e.ID) {
		return
	}
	klog.V(2).InfoS("Process without a record exited", "id", e.ID)
	m.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), cleanTimeout)
		defer cancel()
		warn(m.Keeper.Forget(ctx, e.ID), "forget the exit of a process", "id", e.ID)
	})
}

// containerHooks are those of a container's first process.
func (p *pod) containerHooks(id string) table.Hooks {
	return table.Hooks{
		Ended: func(e client.Exit) { p.m.wg.Go(func() { p.containerExited(id, e) }) },
		Lost: func(err error) {
			klog.ErrorS(err, "Could not hand a container to the new keeper", "container", id)
		},
	}
}

// sandboxHooks are those of the pod's namespaces and its own first process.
func (p *pod) sandboxHooks() table.Hooks {
	return table.Hooks{
		Ended: func(client.Exit) { p.m.wg.Go(p.firstExited) },
		Lost: func(err error) {
			klog.ErrorS(err, "Could not hand a pod to the new keeper", "sandbox", p.record().ID)
		},
	}
}
