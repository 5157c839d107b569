package migrate

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"crisp/cri/config"
)

const containerd2 = `version = 2
root = "/var/lib/containerd"
oom_score = -999
[debug]
  level = "warn"
[metrics]
  address = "127.0.0.1:1338"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  max_concurrent_downloads = 5
  stream_server_address = "127.0.0.1"
  stream_server_port = "10010"
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/other.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
    runtime_type = "io.containerd.runc.v2"
`

const containerd3 = `version = 3
[plugins.'io.containerd.cri.v1.images']
  image_pull_progress_timeout = '7m0s'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'pause'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '/etc/containerd/certs.d'
[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = false
  ignore_image_defined_volumes = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = false
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.tracing.processor.v1.otlp']
  endpoint = 'http://collector:4317'
  protocol = 'grpc'
[plugins.'io.containerd.internal.v1.tracing']
  sampling_ratio = 0.25
`

const crioConf = `[crio]
root = "/var/lib/containers/storage"
[crio.runtime]
cgroup_manager = "systemd"
default_capabilities = ["CHOWN", "NET_BIND_SERVICE"]
pids_limit = 2048
log_level = "debug"
hooks_dir = ["/etc/containers/oci/hooks.d"]
conmon = "/usr/bin/conmon"
[crio.runtime.runtimes.crun]
runtime_path = "/usr/bin/crun"
[crio.runtime.runtimes.youki]
runtime_path = "/usr/bin/youki"
[crio.image]
pause_image = "pause"
pinned_images = ["registry.example/*"]
signature_policy = "/etc/policy.json"
[crio.network]
network_dir = "/etc/cni/net.d/"
plugin_dirs = ["/opt/cni/bin/"]
[crio.metrics]
enable_metrics = true
metrics_port = 9537
[crio.tracing]
enable_tracing = true
tracing_sampling_rate_per_million = 1000
`

func TestTranslate(t *testing.T) {
	for name, c := range map[string]struct {
		from, unknown string
		change        func(*config.Config)
	}{
		"containerd, version 2": {containerd2, "netns_mounts_under_state_dir", func(c *config.Config) {
			c.LogLevel, c.MetricsAddress, c.MaxConcurrentDownloads, c.StreamAddress = "info", "127.0.0.1:1338", 5, "127.0.0.1:10010"
			c.CNIBinDirs, c.CNIConfDir, c.RegistryConfigDirs = []string{"/opt/cni/bin"}, "/etc/cni/other.d", []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}
			c.CgroupDriver, c.RuntimeHandlers = "systemd", []string{"nvidia"}
		}},
		"containerd, version 3": {containerd3, "", func(c *config.Config) {
			c.PullProgressTimeout = config.Duration(7 * 60 * 1e9)
			c.TracingEndpoint, c.TracingSamplingRate = "http://collector:4317", 250_000
			c.RegistryConfigDirs, c.SELinux, c.ImageVolumes, c.CgroupDriver, c.NRI = []string{"/etc/containerd/certs.d"}, false, "ignore", "cgroupfs", false
		}},
		"CRI-O": {crioConf, "signature_policy", func(c *config.Config) {
			c.CgroupDriver, c.DefaultCapabilities, c.PidsLimit, c.LogLevel = "systemd", []string{"CAP_CHOWN", "CAP_NET_BIND_SERVICE"}, 2048, "debug"
			c.HooksDirs, c.RuntimeHandlers, c.PinnedImages = []string{"/etc/containers/oci/hooks.d"}, []string{"youki"}, []string{"registry.example/*"}
			c.CNIConfDir, c.CNIBinDirs, c.MetricsAddress = "/etc/cni/net.d/", []string{"/opt/cni/bin/"}, "127.0.0.1:9537"
			c.TracingEndpoint, c.TracingSamplingRate = "127.0.0.1:4317", 1000
		}},
		"no limit of processes": {"[crio.runtime]\npids_limit = -1\nlog_size_max = -1", "", func(*config.Config) {}},
		"limits": {`[crio.runtime]
default_ulimits = ["nofile=1024:2048", "nproc=77", "core=0:-1"]`, "", func(c *config.Config) {
			c.Rlimits = []config.Rlimit{{Name: "nofile", Soft: 1024, Hard: 2048}, {Name: "nproc", Soft: 77, Hard: 77}, {Name: "core", Hard: ^uint64(0)}}
		}},
	} {
		text, err := Translate(File{"file.toml", []byte(c.from)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := config.Parse("translated", []byte(text))
		want := config.Default()
		c.change(want)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v\nfrom\n%s", name, err, got, want, text)
		}

		_, rest, _ := strings.Cut(text, "without a counterpart:\n")
		if strings.Count(rest, "\n") > 1 || !strings.Contains(rest, c.unknown) || c.unknown == "" && rest != "" {
			t.Errorf("%s: without a counterpart are %q, want %q", name, rest, c.unknown)
		}
	}
}

func TestTranslateRefuses(t *testing.T) {
	for text, want := range map[string]string{"a = 1": "neither", "version = ": "file.toml", "[crio.runtime]\npids_limit = -7": "pids_limit"} {
		got, err := Translate(File{"file.toml", []byte(text)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
	if _, err := Translate(File{"x", nil}); !errors.Is(err, ErrUnknown) {
		t.Errorf("an empty file: %v", err)
	}
}

// TestTranslateIsolation makes no handlers of runtimes with virtual machines: their pods
// must not run as ordinary containers.
func TestTranslateIsolation(t *testing.T) {
	for name, from := range map[string]string{
		"containerd": `version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
  runtime_type = "io.containerd.kata.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.sandbox]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.sandbox.options]
  BinaryName = "/usr/bin/runsc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
`,
		"CRI-O": `[crio.runtime.runtimes.kata]
runtime_path = "/usr/bin/containerd-shim-v2"
runtime_type = "vm"
[crio.runtime.runtimes.sandbox]
runtime_path = "/usr/bin/runsc"
[crio.runtime.runtimes.nvidia]
runtime_path = "/usr/bin/nvidia-container-runtime"
runtime_type = "oci"
`,
	} {
		text, err := Translate(File{"file.toml", []byte(from)})
		_, lacking, _ := strings.Cut(text, "without a counterpart:\n")
		if err != nil || !strings.Contains(text, "\nruntime_handlers = ['nvidia']\n") || strings.Count(lacking, "refuses pods with this RuntimeClass") != 2 {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
}

// TestTranslateSeveral translates a file with those that add to it.
func TestTranslateSeveral(t *testing.T) {
	main := File{"crio.conf", []byte("[crio.runtime]\npids_limit = 77\nlog_level = \"debug\"\n")}
	text, err := Translate(main, File{"10.conf", []byte("[crio.runtime]\npids_limit = 78\n")})
	if err != nil || !strings.Contains(text, "\npids_limit = 78\n") || !strings.Contains(text, "\nlog_level = 'debug'\n") || !strings.Contains(text, "from crio.conf, 10.conf,") {
		t.Errorf("%v\n%s", err, text)
	}
	if _, err := Translate(main, File{"config.toml", []byte("version = 3")}); err == nil || !strings.Contains(err.Error(), "one by one") {
		t.Errorf("of two runtimes: %v", err)
	}
}
