package config

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"crisp/cri/spec"
	"crisp/network/own"
	"crisp/runtime/checkpoint"
)

// A RuntimeClass names its handler with a DNS label (RFC 1123).
const maxLabel = 63

var labelPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// Check validates all values, and returns every error that it finds.
func (c *Config) Check() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w: %s", key, ErrInvalid, fmt.Sprintf(format, args...)))
	}

	c.checkPaths(bad)
	c.checkChoices(bad)
	c.checkNumbers(bad)
	for _, name := range c.DefaultCapabilities {
		if canonical, err := spec.CapabilityName(name); err != nil || canonical != name {
			bad("default_capabilities", "%q is not a capability", name)
		}
	}

	for i, h := range c.RuntimeHandlers {
		if h == "" || slices.Contains(c.RuntimeHandlers[:i], h) {
			bad("runtime_handlers", "%q is empty or given twice", h)
		}
		if h != "" && (len(h) > maxLabel || !labelPattern.MatchString(h)) {
			bad("runtime_handlers", "no RuntimeClass can refer to %q: it must be a DNS label of lower-case letters, digits and dashes", h)
		}
	}

	return errors.Join(errs...)
}

type complain func(key, format string, args ...any)

func (c *Config) checkPaths(bad complain) {
	for key, p := range map[string]string{
		"root": c.Root, "state": c.State, "listen": c.Socket(), "cni_conf_dir": c.CNIConfDir,
	} {
		if !filepath.IsAbs(p) {
			bad(key, "%q is not an absolute path", p)
		}
	}

	for key, p := range map[string]string{
		"cadvisor_socket": c.CAdvisorSocket, "audit_log": c.AuditLog, "image_import_dir": c.ImageImportDir, "netns_dir": c.NetNSDir, "seccomp_profile": c.SeccompProfile,
		"nri_socket": c.NRISocket, "criu_path": c.CRIUPath, "nri_plugin_dir": c.NRIPluginDir, "nri_plugin_config_dir": c.NRIPluginConfigDir,
	} {
		if p != "" && !filepath.IsAbs(p) {
			bad(key, "%q is not an absolute path", p)
		}
	}

	for key, list := range map[string][]string{
		"cni_bin_dirs": c.CNIBinDirs, "registry_config_dirs": c.RegistryConfigDirs, "cdi_spec_dirs": c.CDISpecDirs,
		"hooks_dirs": c.HooksDirs,
	} {
		for _, p := range list {
			if !filepath.IsAbs(p) {
				bad(key, "%q is not an absolute path", p)
			}
		}
	}

	if len(c.CNIBinDirs) == 0 {
		bad("cni_bin_dirs", "at least one directory is required")
	}
	if root, state := filepath.Clean(c.Root), filepath.Clean(c.State); root == state {
		bad("state", "%q is also the root directory", state)
	}
}

// Socket returns the path of the socket to listen on.
func (c *Config) Socket() string { return strings.TrimPrefix(c.Listen, "unix://") }

func (c *Config) checkChoices(bad complain) {
	for key, v := range map[string]struct {
		value   string
		allowed []string
	}{
		"log_level":     {c.LogLevel, []string{"error", "info", "debug", "trace"}},
		"log_format":    {c.LogFormat, []string{"text", "json"}},
		"cgroup_driver": {c.CgroupDriver, []string{"", "cgroupfs", "systemd"}},
		"image_volumes": {c.ImageVolumes, []string{"copy", "ignore"}},
	} {
		if !slices.Contains(v.allowed, v.value) {
			bad(key, "%q is not one of %q", v.value, v.allowed)
		}
	}

	if _, port, err := net.SplitHostPort(c.StreamAddress); err != nil {
		bad("stream_address", "%v", err)
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		bad("stream_address", "%q is not a port: it must be a number up to 65535, or 0 for any free port", port)
	}

	if c.MetricsAddress != "" {
		if _, _, err := net.SplitHostPort(c.MetricsAddress); err != nil {
			bad("metrics_address", "%v", err)
		}
	}

	if c.TracingEndpoint != "" {
		if err := checkCollector(c.TracingEndpoint); err != nil {
			bad("tracing_endpoint", "%v", err)
		}
	}

	if _, err := c.Cluster(); err != nil {
		bad("cluster_cidrs", "%v", err)
	}
	if len(c.ClusterCIDRs) > 0 && !c.DefaultNetwork {
		bad("cluster_cidrs", "they are for crisp's own network, and default_network is false")
	}
	for _, kind := range c.BuiltinPlugins {
		if served := own.ReferenceTypes(); !slices.Contains(served, kind) {
			bad("builtin_plugins", "%q is not one of %q", kind, served)
		}
	}
	if slices.Contains(c.BuiltinPlugins, own.TypePortmap) && !slices.Contains(c.BuiltinPlugins, own.TypeBridge) {
		bad("builtin_plugins", "portmap is served only together with bridge")
	}

	if _, err := checkpoint.ParsePolicy(c.RestoreFrom, checkpoint.PublicKey{}); err != nil {
		bad("restore_from", "%v", err)
	}

	if c.CgroupDriver == "systemd" && c.CgroupParent != "" && !strings.HasSuffix(c.CgroupParent, ".slice") {
		bad("cgroup_parent", "%q is not a slice, which the systemd driver requires", c.CgroupParent)
	}
	if c.CgroupDriver == "cgroupfs" && strings.HasSuffix(c.CgroupParent, ".slice") {
		bad("cgroup_parent", "%q is a slice, which the cgroupfs driver cannot use", c.CgroupParent)
	}
}

func (c *Config) checkNumbers(bad complain) {
	const minLogLine = 64
	if c.MaxConcurrentDownloads < 1 {
		bad("max_concurrent_downloads", "%d is less than 1", c.MaxConcurrentDownloads)
	}

	for key, d := range map[string]Duration{"pull_progress_timeout": c.PullProgressTimeout, "stream_idle_timeout": c.StreamIdleTimeout} {
		// A number without a unit would mean nanoseconds, which is never intended.
		if time.Duration(d) < time.Second {
			bad(key, "%v is less than a second; use a unit, as in \"90s\" or \"5m\"", time.Duration(d))
		}
	}

	for key, d := range map[string]Duration{"network_gc_interval": c.NetworkGCInterval, "network_check_interval": c.NetworkCheckInterval} {
		if d != 0 && time.Duration(d) < time.Second {
			bad(key, "%v is neither 0 nor at least a second; use a unit, as in \"1h\"", time.Duration(d))
		}
	}

	for key, d := range map[string]Duration{
		"nri_registration_timeout": c.NRIRegistrationTimeout, "nri_request_timeout": c.NRIRequestTimeout, "nri_required_wait": c.NRIRequiredWait,
	} {
		const least = 10 * time.Millisecond
		if time.Duration(d) < least {
			bad(key, "%v is less than %v; use a unit, as in \"2s\"", time.Duration(d), least)
		}
	}

	if n := c.TracingSamplingRate; n < 0 || n > million {
		bad("tracing_sampling_rate_per_million", "%d is not between 0 and %d", n, million)
	}

	if c.PidsLimit < 0 {
		bad("pids_limit", "%d is negative", c.PidsLimit)
	}
	if n := c.MaxContainerLogLineSize; n != -1 && n < minLogLine {
		bad("max_container_log_line_size", "%d is neither -1 nor at least %d", n, minLogLine)
	}

	for _, r := range c.Rlimits {
		if err := r.check(); err != nil {
			bad("rlimits", "%v", err)
		}
	}
}

// million is the highest of a rate per million.
const million = 1_000_000

// checkCollector checks the address of a collector of traces.
func checkCollector(endpoint string) error {
	address := endpoint
	for _, scheme := range []string{"http://", "https://"} {
		address = strings.TrimPrefix(address, scheme)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return fmt.Errorf("%q is not HOST:PORT, http://HOST:PORT or https://HOST:PORT", endpoint)
	}
	return nil
}

// Rlimit is a resource limit, written "nofile=1024:524288".
type Rlimit struct {
	Name       string
	Soft, Hard uint64
}

// unlimited is RLIM_INFINITY.
const unlimited = ^uint64(0)

// UnmarshalText parses a limit; a single number sets both the soft and the hard
// limit.
func (r *Rlimit) UnmarshalText(b []byte) error {
	name, value, ok := strings.Cut(string(b), "=")
	if !ok {
		return fmt.Errorf("rlimit %q is not of the form name=soft:hard", b)
	}
	soft, hard, two := strings.Cut(value, ":")
	if !two {
		hard = soft
	}
	var err1, err2 error
	r.Name = name
	r.Soft, err1 = limit(soft)
	r.Hard, err2 = limit(hard)
	return errors.Join(err1, err2)
}

// MarshalText is the inverse of UnmarshalText.
func (r Rlimit) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%s=%s:%s", r.Name, limitText(r.Soft), limitText(r.Hard)), nil
}

func limit(s string) (uint64, error) {
	if s == "unlimited" {
		return unlimited, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

func limitText(v uint64) string {
	if v == unlimited {
		return "unlimited"
	}
	return strconv.FormatUint(v, 10)
}

func (r Rlimit) check() error {
	known := []string{
		"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
		"rtprio", "rttime", "sigpending", "stack",
	}
	switch {
	case !slices.Contains(known, r.Name):
		return fmt.Errorf("%q is not one of %q", r.Name, known)
	case r.Soft > r.Hard:
		return fmt.Errorf("soft limit of %q is above the hard limit", r.Name)
	}
	return nil
}
