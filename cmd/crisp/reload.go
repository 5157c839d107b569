package main

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crisp/cri/config"
)

// followReloads applies the configuration again on each SIGHUP, once the daemon is
// open. An invalid one changes nothing.
func (d *services) followReloads(ctx context.Context, load func() (*config.Config, error)) {
	onSignal(ctx, unix.SIGHUP, func() {
		select {
		case <-d.opened:
		case <-ctx.Done():
			return
		}
		cfg, err := load()
		if err != nil {
			klog.ErrorS(err, "Could not reload the configuration, keeping the old one")
			return
		}
		if err := d.apply(ctx, cfg); err != nil {
			klog.ErrorS(err, "Could not apply all of the configuration")
			return
		}
		klog.InfoS("Reloaded the configuration", "level", cfg.LogLevel, "format", cfg.LogFormat)
	})
}

// apply applies what can change while the daemon runs.
func (d *services) apply(ctx context.Context, cfg *config.Config) error {
	return errors.Join(setUpLog(cfg), d.traces.Set(ctx, traceOptions(cfg)), d.audit.Set(ctx, cfg.AuditLog))
}
