package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"crisp/cri/admin"
	"crisp/cri/config"
	"crisp/cri/spec"
	"crisp/cri/spec/hooksd"
	"crisp/runtime/hook"
	"crisp/runtime/seccomp"
)

// setUpLog applies the log level and format.
func setUpLog(cfg *config.Config) error {
	level := map[string]int{"error": 0, "info": 0, "debug": 2, "trace": 5}[cfg.LogLevel]
	fs := flag.NewFlagSet("log", flag.ContinueOnError)
	klog.InitFlags(fs)
	if err := fs.Set("v", strconv.Itoa(level)); err != nil {
		return fmt.Errorf("set log level: %w", err)
	}

	least := slog.Level(-level)
	if cfg.LogLevel == "error" {
		least = slog.LevelError
	}

	options := &slog.HandlerOptions{Level: least}
	var h slog.Handler = slog.NewTextHandler(os.Stderr, options)
	if cfg.LogFormat == "json" {
		h = slog.NewJSONHandler(os.Stderr, options)
	}

	klog.SetSlogLogger(slog.New(h))
	return nil
}

// dumpOnSignal logs the daemon's state and its goroutines on each SIGUSR1.
func dumpOnSignal(ctx context.Context, s *admin.Server) {
	onSignal(ctx, unix.SIGUSR1, s.Dump)
}

// onSignal calls f on each signal, until ctx ends.
func onSignal(ctx context.Context, sig os.Signal, f func()) {
	received := make(chan os.Signal, 1)
	signal.Notify(received, sig)
	defer signal.Stop(received)

	for {
		select {
		case <-received:
			f()
		case <-ctx.Done():
			return
		}
	}
}

// defaults are the node's choices for containers.
func defaults(cfg *config.Config) spec.Defaults {
	return spec.Defaults{
		Capabilities: cfg.DefaultCapabilities, PidsLimit: cfg.PidsLimit, Rlimits: rlimits(cfg.Rlimits),
		AppArmorProfile: cfg.AppArmorProfile, CreateMissingHostPaths: cfg.CreateMissingHostPath,
		DeviceOwnership: cfg.DeviceOwnership, IgnoreImageVolumes: cfg.ImageVolumes == "ignore",
		WritableCgroups: cfg.WritableCgroups,
	}
}

// rlimits names limits as the OCI runtime-spec does.
func rlimits(list []config.Rlimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, r := range list {
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(r.Name), Soft: r.Soft, Hard: r.Hard})
	}
	return out
}

// nodeHooks adds the hooks that the node's administrator has defined, nil if
// that is not configured.
func nodeHooks(cfg *config.Config) func(*specs.Spec, hook.Sources, map[string]string) (hook.Sources, error) {
	if len(cfg.HooksDirs) == 0 {
		return nil
	}
	broken := func(err error) { klog.ErrorS(err, "Could not read a hook definition, its hook does not run") }
	return func(s *specs.Spec, sources hook.Sources, annotations map[string]string) (hook.Sources, error) {
		return hooksd.Inject(cfg.HooksDirs, broken, s, sources, annotations)
	}
}

// seccompProfiles supplies the built-in profile, or the configured one, and
// those that pods refer to.
func seccompProfiles(cfg *config.Config) spec.Seccomp {
	s := spec.Seccomp{Default: seccomp.RuntimeDefault, Load: seccomp.Load}
	if path := cfg.SeccompProfile; path != "" {
		s.Default = func(caps []string) *specs.LinuxSeccomp {
			p, err := seccomp.LoadFor(path, caps)
			if err != nil {
				// Better to refuse every system call than to confine nothing.
				klog.ErrorS(err, "Could not load the default seccomp profile, system calls are refused", "file", path)
				return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
			}
			return p
		}
	}
	return s
}
