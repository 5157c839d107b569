// Package config reads crisp's configuration.
//
// There is one flat list of keys; [Text] documents it and holds the defaults.
// [Load] reads /etc/crisp/config.toml and the drop-ins in config.d next to it,
// and checks the result. An unknown key is an error that suggests the right
// one: a setting that is silently ignored is worse than a daemon that does not
// start.
package config

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is the file that is read unless another one is given. It may be
// missing.
const DefaultPath = "/etc/crisp/config.toml"

//go:embed default.toml
var text string

// Text returns a configuration file with every key, its documentation and its default.
func Text() string { return text }

// Config is the configuration.
type Config struct {
	Root   string `toml:"root"`
	State  string `toml:"state"`
	Listen string `toml:"listen"`

	LogLevel  string `toml:"log_level"`
	LogFormat string `toml:"log_format"`

	CgroupDriver string `toml:"cgroup_driver"`
	CgroupParent string `toml:"cgroup_parent"`

	NetNSDir string `toml:"netns_dir"`
	// CAdvisorSocket is the socket that serves cAdvisor in place of
	// containerd, "" for none.
	CAdvisorSocket string   `toml:"cadvisor_socket"`
	CNIConfDir     string   `toml:"cni_conf_dir"`
	CNIBinDirs     []string `toml:"cni_bin_dirs"`
	DefaultNetwork bool     `toml:"default_network"`
	ClusterCIDRs   []string `toml:"cluster_cidrs"`
	BuiltinPlugins []string `toml:"builtin_plugins"`

	NetworkGCInterval    Duration `toml:"network_gc_interval"`
	NetworkCheckInterval Duration `toml:"network_check_interval"`
	NetworkSoleRuntime   bool     `toml:"network_sole_runtime"`

	RegistryConfigDirs     []string `toml:"registry_config_dirs"`
	PinnedImages           []string `toml:"pinned_images"`
	MaxConcurrentDownloads int      `toml:"max_concurrent_downloads"`
	PullProgressTimeout    Duration `toml:"pull_progress_timeout"`
	ImageVolumes           string   `toml:"image_volumes"`
	ImageImportDir         string   `toml:"image_import_dir"`

	RuntimeHandlers       []string `toml:"runtime_handlers"`
	DefaultCapabilities   []string `toml:"default_capabilities"`
	PidsLimit             int64    `toml:"pids_limit"`
	Rlimits               []Rlimit `toml:"rlimits"`
	AppArmorProfile       string   `toml:"apparmor_profile"`
	SELinux               bool     `toml:"selinux"`
	SeccompProfile        string   `toml:"seccomp_profile"`
	CreateMissingHostPath bool     `toml:"create_missing_host_paths"`
	DeviceOwnership       bool     `toml:"device_ownership_from_security_context"`
	WritableCgroups       bool     `toml:"writable_cgroups"`
	CDISpecDirs           []string `toml:"cdi_spec_dirs"`
	HooksDirs             []string `toml:"hooks_dirs"`

	NRI                    bool     `toml:"nri"`
	NRISocket              string   `toml:"nri_socket"`
	NRIPluginDir           string   `toml:"nri_plugin_dir"`
	NRIPluginConfigDir     string   `toml:"nri_plugin_config_dir"`
	NRIRegistrationTimeout Duration `toml:"nri_registration_timeout"`
	NRIRequestTimeout      Duration `toml:"nri_request_timeout"`
	NRIRequiredPlugins     []string `toml:"nri_required_plugins"`
	NRIRequiredWait        Duration `toml:"nri_required_wait"`
	NRIReject              []string `toml:"nri_reject"`

	AuditLog string `toml:"audit_log"`

	MetricsAddress      string `toml:"metrics_address"`
	TracingEndpoint     string `toml:"tracing_endpoint"`
	TracingSamplingRate int    `toml:"tracing_sampling_rate_per_million"`

	CRIUPath    string   `toml:"criu_path"`
	RestoreFrom []string `toml:"restore_from"`

	MaxContainerLogLineSize int      `toml:"max_container_log_line_size"`
	StreamAddress           string   `toml:"stream_address"`
	StreamIdleTimeout       Duration `toml:"stream_idle_timeout"`
}

// Duration is a duration in Go's notation, "4h30m".
type Duration time.Duration

// UnmarshalText parses a duration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default returns the configuration with every key at its default.
func Default() *Config {
	c := &Config{}
	if err := c.merge("default.toml", []byte(text)); err != nil {
		panic(err) // the text is compiled in, and tested
	}
	return c
}

// Load reads the file at path and the drop-ins in config.d next to it, and
// checks the result.
func Load(path string) (*Config, error) {
	c := Default()
	files, err := sources(path)
	if err != nil {
		return nil, err
	}

	for _, f := range files {
		data, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) && f == DefaultPath {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}

		if err := c.merge(f, data); err != nil {
			return nil, err
		}
	}

	if c.NetNSDir == "" {
		c.NetNSDir = DefaultNetNSDir(c.State)
	}
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("configuration in %s: %w", path, err)
	}
	return c, nil
}

// Parse returns the configuration that a text in a file of this name makes of the
// defaults.
func Parse(name string, text []byte) (*Config, error) {
	c := Default()
	if err := c.merge(name, text); err != nil {
		return nil, err
	}
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("configuration in %s: %w", name, err)
	}
	return c, nil
}

// Cluster are the networks of the pods of all nodes.
func (c *Config) Cluster() ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range c.ClusterCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s has bits of a host: it is in %s", p, p.Masked())
		}
		if slices.ContainsFunc(list, p.Overlaps) {
			return nil, fmt.Errorf("%s overlaps another of them", p)
		}
		list = append(list, p)
	}
	return list, nil
}

// ImportDir is the directory of archives of images.
func (c *Config) ImportDir() string {
	if c.ImageImportDir != "" {
		return c.ImageImportDir
	}
	return filepath.Join(c.Root, "import")
}

// DefaultNetNSDir is where network namespaces are pinned if netns_dir is empty:
// /var/run/netns, where ip netns and the agents of CNI plugins look for them. A
// daemon with another state directory, of which there may be several, keeps
// them in there.
func DefaultNetNSDir(state string) string {
	if filepath.Clean(state) == Default().State {
		return "/var/run/netns"
	}
	return filepath.Join(state, "netns")
}

// sources lists the configuration files in the order in which they apply.
func sources(path string) ([]string, error) {
	dropIns, err := filepath.Glob(filepath.Join(filepath.Dir(path), "config.d", "*.toml"))
	if err != nil {
		return nil, fmt.Errorf("list drop-ins of the configuration: %w", err)
	}
	slices.Sort(dropIns)
	return append([]string{path}, dropIns...), nil
}

// merge applies the keys set in a file.
func (c *Config) merge(name string, data []byte) error {
	d := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	err := d.Decode(c)
	var unknown *toml.StrictMissingError
	var syntax *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		return unknownKeys(name, unknown)
	case errors.As(err, &syntax):
		line, _ := syntax.Position()
		return fmt.Errorf("%s:%d: %w: %s", name, line, ErrInvalid, strings.TrimPrefix(syntax.Error(), "toml: "))
	case err != nil:
		return fmt.Errorf("%s: %w: %w", name, ErrInvalid, err)
	}

	return nil
}

// unknownKeys returns an error that names all unknown keys.
func unknownKeys(name string, e *toml.StrictMissingError) error {
	var errs []error
	for i := range e.Errors {
		line, _ := e.Errors[i].Position()
		key := strings.Join(e.Errors[i].Key(), ".")
		hint := ""
		if s := suggest(key); s != "" {
			hint = fmt.Sprintf(", did you mean %q?", s)
		}
		errs = append(errs, fmt.Errorf("%s:%d: %w %q%s", name, line, ErrUnknownKey, key, hint))
	}
	return errors.Join(errs...)
}

// Keys returns the names of all keys.
func Keys() []string {
	var out []string
	for f := range reflect.TypeFor[Config]().Fields() {
		out = append(out, f.Tag.Get("toml"))
	}
	return out
}

// Changed lists the keys whose values differ in another configuration, in the order of
// the fields.
func (c *Config) Changed(other *Config) []string {
	a, b := reflect.ValueOf(c).Elem(), reflect.ValueOf(other).Elem()
	keys := []string{}
	for i, key := range Keys() {
		if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			keys = append(keys, key)
		}
	}
	return keys
}

// Adopt takes the values of some keys from another configuration.
func (c *Config) Adopt(other *Config, keys []string) {
	a, b := reflect.ValueOf(c).Elem(), reflect.ValueOf(other).Elem()
	for i, key := range Keys() {
		if slices.Contains(keys, key) {
			a.Field(i).Set(b.Field(i))
		}
	}
}

// suggest returns the key closest to the given one, "" if none is close.
func suggest(key string) string {
	best, distance := "", max(2, len(key)/3)+1
	for _, k := range Keys() {
		if d := editDistance(key, k); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance is the Levenshtein distance between a and b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}

	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}

	return row[len(b)]
}
