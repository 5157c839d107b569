package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"crisp/cri/config"
	"crisp/cri/pod"
	"crisp/image"
)

// reload is a part of the configuration that can change while the daemon runs.
type reload struct {
	keys  []string
	apply func(context.Context, *services, *config.Config) error
}

// reloads are all of them. What has no row needs a restart.
func reloads() []reload {
	return []reload{
		{[]string{"log_level", "log_format"}, func(_ context.Context, _ *services, cfg *config.Config) error { return setUpLog(cfg) }},
		{[]string{"tracing_endpoint", "tracing_sampling_rate_per_million"}, func(ctx context.Context, d *services, cfg *config.Config) error {
			return d.traces.Set(ctx, traceOptions(cfg))
		}},
		{[]string{"metrics_address"}, func(ctx context.Context, d *services, cfg *config.Config) error {
			return d.moveMetrics(ctx, cfg.MetricsAddress)
		}},
		{[]string{"audit_log"}, func(ctx context.Context, d *services, cfg *config.Config) error {
			return d.audit.Set(ctx, cfg.AuditLog)
		}},
		{[]string{"registry_config_dirs", "pinned_images", "max_concurrent_downloads", "pull_progress_timeout"}, func(_ context.Context, d *services, cfg *config.Config) error {
			d.images.Choose(imageChoices(cfg))
			return nil
		}},
		{[]string{"cni_conf_dir", "cni_bin_dirs"}, func(_ context.Context, d *services, cfg *config.Config) error {
			d.network.SetDirs(cfg.CNIConfDir, cfg.CNIBinDirs)
			return nil
		}},
		{[]string{
			"runtime_handlers", "seccomp_profile", "hooks_dirs", "default_capabilities", "pids_limit", "rlimits", "create_missing_host_paths",
			"device_ownership_from_security_context", "image_volumes", "writable_cgroups", "restore_from",
		}, func(_ context.Context, d *services, cfg *config.Config) error {
			d.pods.Choose(podChoices(cfg))
			return nil
		}},
	}
}

// errRestart means that a change needs a restart after all.
var errRestart = errors.New("this change needs a restart")

// followReloads applies the configuration again on each signal, until ctx ends. An
// invalid one changes nothing.
func (d *services) followReloads(ctx context.Context, signals <-chan os.Signal, load func() (*config.Config, error)) {
	for {
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
		cfg, err := load()
		if err == nil {
			err = examine(cfg)
		}
		if err != nil {
			klog.ErrorS(err, "Could not reload the configuration, keeping the old one")
			continue
		}
		d.reload(ctx, cfg)
	}
}

// reload applies what can change while the daemon runs, and names the rest.
func (d *services) reload(ctx context.Context, cfg *config.Config) {
	present := *d.applied.Load()
	changed := present.Changed(cfg)
	for _, r := range reloads() {
		next := present
		next.Adopt(cfg, r.keys)
		err := r.apply(ctx, d, &next) // also without a change: logs follow their files
		if err == nil {
			present = next
		} else if !errors.Is(err, errRestart) {
			klog.ErrorS(err, "Could not apply a part of the configuration, keeping the old one", "keys", r.keys)
		}
	}

	d.applied.Store(&present)
	rest := present.Changed(cfg)
	klog.InfoS("Reloaded the configuration", "changed", slices.DeleteFunc(changed, func(key string) bool { return slices.Contains(rest, key) }))
	if len(rest) > 0 {
		klog.InfoS("Changes of the configuration need a restart of the daemon (systemctl restart crisp), pods keep running", "keys", rest)
	}
}

// imageChoices are those of a configuration for pulls.
func imageChoices(cfg *config.Config) image.Choices {
	return image.Choices{
		RegistryConfigDirs: cfg.RegistryConfigDirs, Pinned: cfg.PinnedImages,
		MaxConcurrentDownloads: cfg.MaxConcurrentDownloads, ProgressTimeout: time.Duration(cfg.PullProgressTimeout),
	}
}

// podChoices are those of a configuration for pods and containers.
func podChoices(cfg *config.Config) pod.Choices {
	return pod.Choices{Seccomp: seccompProfiles(cfg), Defaults: defaults(cfg), Hooks: nodeHooks(cfg), Handlers: cfg.RuntimeHandlers, RestoreFrom: cfg.RestoreFrom}
}
