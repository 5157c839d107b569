package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"crisp/cri/spec"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTextHasEveryKeyDocumented(t *testing.T) {
	lines := strings.Split(Text(), "\n")
	for _, key := range Keys() {
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, key+" = ") })
		if i < 0 {
			t.Errorf("key %s is not in the text", key)
			continue
		}

		// A key that follows another one directly shares its comment.
		for i > 0 && !strings.HasPrefix(lines[i], "#") && lines[i] != "" {
			i--
		}
		if !strings.HasPrefix(lines[i], "# ") {
			t.Errorf("key %s has no comment", key)
		}
	}
}

func TestDefaultIsValid(t *testing.T) {
	c := Default()
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	if !slices.Equal(c.DefaultCapabilities, spec.DefaultCapabilities()) {
		t.Errorf("default_capabilities = %q, package spec has %q", c.DefaultCapabilities, spec.DefaultCapabilities())
	}
	if time.Duration(c.StreamIdleTimeout) != 4*time.Hour {
		t.Errorf("stream_idle_timeout = %v", time.Duration(c.StreamIdleTimeout))
	}
	if want := []Rlimit{{"nofile", 1024, 524288}}; !slices.Equal(c.Rlimits, want) {
		t.Errorf("rlimits = %v, want %v", c.Rlimits, want)
	}
}

func TestLoadAppliesDropInsInOrder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	write(t, file, "root = \"/data\"\npids_limit = 1\npinned_images = [\"a\", \"b\"]\nstate = \"/run/x\"\n")
	write(t, filepath.Join(dir, "config.d", "20.toml"), "pids_limit = 3\n")
	write(t, filepath.Join(dir, "config.d", "10.toml"), "pids_limit = 2\npinned_images = [\"c\"]\n")
	write(t, filepath.Join(dir, "config.d", "30.conf"), "pids_limit = 4\n")

	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}

	want := Default()
	want.Root, want.State, want.PidsLimit, want.PinnedImages = "/data", "/run/x", 3, []string{"c"}
	want.NetNSDir = "/run/x/netns"
	if !reflect.DeepEqual(c, want) {
		t.Errorf("Load() = %+v, want %+v", c, want)
	}
}

func TestLoadOfMissingFile(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "config.toml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load() = %v, want ErrNotExist", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, content string
		want          error
		text          string
	}{
		{"misspelt key", "# x\npid_limits = 4\n", ErrUnknownKey, `config.toml:2: unknown key "pid_limits", did you mean "pids_limit"?`},
		{"strange key", "zzzzzzzzzz = 4\n", ErrUnknownKey, `config.toml:1: unknown key "zzzzzzzzzz"`},
		{"table", "[plugins]\nx = 1\n", ErrUnknownKey, `unknown key "plugins`},
		{"syntax", "root = \"/a\"\nstate = \n", ErrInvalid, "config.toml:2: "},
		{"type", "pids_limit = \"many\"\n", ErrInvalid, "config.toml:1: "},
		{"duration", "stream_idle_timeout = \"4 hours\"\n", ErrInvalid, ""},
		{"rlimit", "rlimits = [\"nofile\"]\n", ErrInvalid, "name=soft:hard"},
		{"rlimit name", "rlimits = [\"files=1\"]\n", ErrInvalid, "files"},
		{"key", "restore_from = [\"this-node\", \"that-node\"]\n", ErrInvalid, "restore_from"},
		{"any with others", "restore_from = [\"any\", \"this-node\"]\n", ErrInvalid, "give it alone"},
		{"rlimit order", "rlimits = [\"nofile=2:1\"]\n", ErrInvalid, "soft limit"},
		{"relative path", "root = \"data\"\n", ErrInvalid, "root: "},
		{"one directory for both", "root = \"/x\"\nstate = \"/x/\"\n", ErrInvalid, "state: "},
		{"choice", "log_format = \"xml\"\n", ErrInvalid, "log_format: "},
		{"capability", "default_capabilities = [\"CAP_FLY\"]\n", ErrInvalid, "CAP_FLY"},
		{"capability short form", "default_capabilities = [\"CHOWN\"]\n", ErrInvalid, "CHOWN"},
		{"default handler", "runtime_handlers = [\"\"]\n", ErrInvalid, "runtime_handlers"},
		{"handler twice", "runtime_handlers = [\"a\", \"a\"]\n", ErrInvalid, "runtime_handlers"},
		{"cluster that is no network", "cluster_cidrs = [\"10.244.0.0\"]\n", ErrInvalid, "cluster_cidrs"},
		{"cluster with bits of a host", "cluster_cidrs = [\"10.244.1.0/16\"]\n", ErrInvalid, "10.244.0.0/16"},
		{"cluster that overlaps", "cluster_cidrs = [\"10.0.0.0/8\", \"10.244.0.0/16\"]\n", ErrInvalid, "overlaps"},
		{"cluster without the default network", "default_network = false\ncluster_cidrs = [\"10.244.0.0/16\"]\n", ErrInvalid, "default_network"},
		{"plugin that is not served", "builtin_plugins = [\"dhcp\"]\n", ErrInvalid, "dhcp"},
		{"portmap alone", "builtin_plugins = [\"portmap\"]\n", ErrInvalid, "together with bridge"},
		{"collector without port", "tracing_endpoint = \"localhost\"\n", ErrInvalid, "tracing_endpoint"},
		{"collector without host", "tracing_endpoint = \"http://:4317\"\n", ErrInvalid, "tracing_endpoint"},
		{"collector's scheme", "tracing_endpoint = \"unix://a:4317\"\n", ErrInvalid, "tracing_endpoint"},
		{"rate above a million", "tracing_sampling_rate_per_million = 1000001\n", ErrInvalid, "tracing_sampling_rate"},
		{"negative interval", "network_gc_interval = \"-1s\"\n", ErrInvalid, "network_gc_interval"},
		{"short interval", "network_check_interval = \"10ms\"\n", ErrInvalid, "at least a second"},
		{"number for a duration", "pull_progress_timeout = 300\n", ErrInvalid, "unit"},
		{"another number for a duration", "stream_idle_timeout = 3600\n", ErrInvalid, "unit"},
		{"handler no class can name", "runtime_handlers = [\"Crisp_VM\"]\n", ErrInvalid, "RuntimeClass"},
		{"port", "stream_address = \"127.0.0.1:99999\"\n", ErrInvalid, "stream_address"},
		{"address", "stream_address = \"127.0.0.1\"\n", ErrInvalid, "stream_address"},
		{"log line", "max_container_log_line_size = 0\n", ErrInvalid, "max_container_log_line_size"},
		{"slice", "cgroup_driver = \"systemd\"\ncgroup_parent = \"/pods\"\n", ErrInvalid, "cgroup_parent"},
		{"no slice", "cgroup_driver = \"cgroupfs\"\ncgroup_parent = \"a.slice\"\n", ErrInvalid, "cgroup_parent"},
		{"negative", "pids_limit = -1\nmax_concurrent_downloads = 0\n", ErrInvalid, "max_concurrent_downloads"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.toml")
			write(t, file, tt.content)

			_, err := Load(file)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Load() = %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
}

func TestSocket(t *testing.T) {
	c := Default()
	for _, listen := range []string{"/run/x.sock", "unix:///run/x.sock"} {
		c.Listen = listen
		if err := c.Check(); err != nil || c.Socket() != "/run/x.sock" {
			t.Errorf("listen = %q: socket %q, %v", listen, c.Socket(), err)
		}
	}
	c.Listen = "tcp://127.0.0.1:1"
	if err := c.Check(); !errors.Is(err, ErrInvalid) {
		t.Errorf("listen on TCP: %v", err)
	}
}

func TestCheckFindsAll(t *testing.T) {
	c := Default()
	c.Root, c.LogFormat, c.PidsLimit = "x", "y", -1
	err := c.Check()
	for _, key := range []string{"root", "log_format", "pids_limit"} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("Check() = %v, want a word on %s", err, key)
		}
	}
}

func FuzzMerge(f *testing.F) {
	f.Add(Text())
	f.Add("[a]\nb.c = 1\n")
	f.Fuzz(func(t *testing.T, content string) {
		c := Default()
		if err := c.merge("x", []byte(content)); err == nil {
			_ = c.Check()
		}
	})
}
