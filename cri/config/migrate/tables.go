package migrate

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Reasons why a setting needs no counterpart.
const (
	own     = "crisp has a place of its own"
	inside  = "crisp runs containers itself, without another program"
	noPause = "crisp has no sandbox image"
	always  = "crisp always does so"
	kubelet = "kubelet's matter"
	pods    = "all pods may do so"
)

// containerd are the rows of containerd's configurations, versions 2 and 3.
func containerd() []row {
	const cri2, run3, img3, nri = "plugins/io.containerd.grpc.v1.cri/", "plugins/io.containerd.cri.v1.runtime/", "plugins/io.containerd.cri.v1.images/", "plugins/io.containerd.nri.v1.nri/"
	const otlp, tracing = "plugins/io.containerd.tracing.processor.v1.otlp/", "plugins/io.containerd.internal.v1.tracing/"
	rows := []row{
		{pattern: "version", why: "of the file's format"},
		{pattern: "root", why: own}, {pattern: "state", why: own}, {pattern: "temp", why: own}, {pattern: "grpc/address", why: own}, {pattern: "grpc/uid", why: own}, {pattern: "grpc/gid", why: own},
		{pattern: "imports", why: "name those files, too, after this one"},
		{pattern: "oom_score", why: "the systemd unit sets it"},
		{pattern: "debug/level", key: "log_level", convert: level}, {pattern: "debug/format", key: "log_format"},
		{pattern: "metrics/address", key: "metrics_address"},
		{pattern: otlp + "endpoint", key: "tracing_endpoint"}, {pattern: otlp + "protocol", why: "crisp speaks gRPC"}, {pattern: otlp + "insecure", why: "an endpoint of https:// has TLS"},
		{pattern: tracing + "sampling_ratio", key: "tracing_sampling_rate_per_million", convert: perMillion}, {pattern: tracing + "service_name", why: "it is crisp, unless OTEL_SERVICE_NAME is set"},
		{pattern: nri + "disable", key: "nri", convert: not}, {pattern: nri + "socket_path", why: own}, {pattern: nri + "plugin_path", key: "nri_plugin_dir"}, {pattern: nri + "plugin_config_path", key: "nri_plugin_config_dir"},
		{pattern: nri + "plugin_registration_timeout", key: "nri_registration_timeout"}, {pattern: nri + "plugin_request_timeout", key: "nri_request_timeout"}, {pattern: nri + "disable_connections", why: "who may use the socket may connect"},
	}

	for _, p := range []string{cri2, run3, img3, "plugins/io.containerd.grpc.v1.cri/containerd/"} {
		rows = append(rows, []row{
			{pattern: p + "sandbox_image", why: noPause}, {pattern: p + "sandbox", why: noPause}, {pattern: p + "pinned_images/sandbox", why: noPause},
			{pattern: p + "snapshotter", why: "crisp unpacks layers for overlayfs itself"}, {pattern: p + "disable_snapshot_annotations", why: "crisp unpacks layers for overlayfs itself"},
			{pattern: p + "discard_unpacked_layers", why: "blobs are kept, so that images can be checked"},
			{pattern: p + "stream_server_address", key: "stream_address", convert: join("stream_server_port", "0")}, {pattern: p + "stream_server_port", key: "stream_address", convert: joined("stream_server_address")},
			{pattern: p + "stream_idle_timeout", key: "stream_idle_timeout"},
			{pattern: p + "max_concurrent_downloads", key: "max_concurrent_downloads"}, {pattern: p + "image_pull_progress_timeout", key: "pull_progress_timeout"},
			{pattern: p + "max_container_log_line_size", key: "max_container_log_line_size"},
			{pattern: p + "device_ownership_from_security_context", key: "device_ownership_from_security_context"},
			{pattern: p + "enable_selinux", key: "selinux"}, {pattern: p + "cdi_spec_dirs", key: "cdi_spec_dirs"}, {pattern: p + "enable_cdi", why: always},
			{pattern: p + "ignore_image_defined_volumes", key: "image_volumes", convert: volumes},
			{pattern: p + "cni/bin_dir", key: "cni_bin_dirs", convert: list}, {pattern: p + "cni/bin_dirs", key: "cni_bin_dirs"}, {pattern: p + "cni/conf_dir", key: "cni_conf_dir"},
			{pattern: p + "cni/max_conf_num", why: "the first file of the directory applies"},
			{pattern: p + "registry/config_path", key: "registry_config_dirs", convert: paths},
			{pattern: p + "enable_unprivileged_ports", why: pods}, {pattern: p + "enable_unprivileged_icmp", why: pods},
			{pattern: p + "default_runtime_name", why: inside},
			{pattern: p + "containerd/default_runtime_name", why: inside}, {pattern: p + "containerd/snapshotter", why: "crisp unpacks layers for overlayfs itself"},
			{pattern: p + "containerd/runtimes/*/options/SystemdCgroup", key: "cgroup_driver", convert: driver},
			{pattern: p + "runtimes/*/options/SystemdCgroup", key: "cgroup_driver", convert: driver},
		}...)
		for _, runtimes := range []string{"containerd/runtimes/", "runtimes/"} {
			for _, field := range []string{"runtime_type", "runtime_path", "runtime_root", "privileged_without_host_devices", "sandbox_mode", "sandboxer", "snapshotter", "base_runtime_spec", "pod_annotations", "container_annotations", "options/*"} {
				r := row{pattern: p + runtimes + "*/" + field, why: inside}
				rows = append(rows, r)
			}
		}
	}
	return slices.Concat(handlersOf(cri2+"containerd/runtimes/*/runtime_type", "runc"), handlersOf(run3+"containerd/runtimes/*/runtime_type", "runc"), rows)
}

// crio are the rows of CRI-O's configuration.
func crio() []row {
	const run, img, net, api, metrics, tracing, nri = "crio/runtime/", "crio/image/", "crio/network/", "crio/api/", "crio/metrics/", "crio/tracing/", "crio/nri/"
	rows := []row{
		{pattern: "crio/root", why: own}, {pattern: "crio/runroot", why: own}, {pattern: "crio/storage_driver", why: own}, {pattern: "crio/storage_option", why: own}, {pattern: "crio/log_dir", why: kubelet}, {pattern: "crio/version_file*", why: own}, {pattern: "crio/clean_shutdown_file", why: own}, {pattern: api + "listen", why: own},
		{pattern: api + "stream_address", key: "stream_address", convert: join("stream_port", "0")}, {pattern: api + "stream_port", key: "stream_address", convert: joined("stream_address")}, {pattern: api + "stream_idle_timeout", key: "stream_idle_timeout"},
		{pattern: run + "cgroup_manager", key: "cgroup_driver"}, {pattern: run + "log_level", key: "log_level", convert: level},
		{pattern: run + "default_capabilities", key: "default_capabilities", convert: capabilities}, {pattern: run + "pids_limit", key: "pids_limit", convert: crioPids}, {pattern: run + "default_ulimits", key: "rlimits", convert: ulimits}, {pattern: run + "log_size_max", why: kubelet},
		{pattern: run + "seccomp_profile", key: "seccomp_profile"}, {pattern: run + "apparmor_profile", why: "crisp's own profile, crisp-default, takes its place"}, {pattern: run + "selinux", key: "selinux"},
		{pattern: run + "hooks_dir", key: "hooks_dirs"}, {pattern: run + "cdi_spec_dirs", key: "cdi_spec_dirs"}, {pattern: run + "device_ownership_from_security_context", key: "device_ownership_from_security_context"},
		{pattern: run + "conmon", why: inside}, {pattern: run + "conmon_cgroup", why: inside}, {pattern: run + "conmon_env", why: inside}, {pattern: run + "default_runtime", why: inside}, {pattern: run + "pinns_path", why: inside}, {pattern: run + "namespaces_dir", why: own}, {pattern: run + "drop_infra_ctr", why: noPause}, {pattern: run + "infra_ctr_cpuset", why: noPause},
		{pattern: img + "pinned_images", key: "pinned_images"}, {pattern: img + "pause_*", why: noPause}, {pattern: img + "image_volumes", key: "image_volumes", convert: crioVolumes},
		{pattern: net + "network_dir", key: "cni_conf_dir"}, {pattern: net + "plugin_dir", key: "cni_bin_dirs", convert: list}, {pattern: net + "plugin_dirs", key: "cni_bin_dirs"},
		{pattern: metrics + "enable_metrics", key: "metrics_address", convert: crioMetrics}, {pattern: metrics + "metrics_port", why: "in metrics_address, if metrics are enabled"}, {pattern: metrics + "metrics_host", why: "in metrics_address, if metrics are enabled"},
		{pattern: tracing + "enable_tracing", key: "tracing_endpoint", convert: crioTracing}, {pattern: tracing + "tracing_endpoint", why: "in tracing_endpoint, if tracing is enabled"},
		{pattern: tracing + "tracing_sampling_rate_per_million", key: "tracing_sampling_rate_per_million"},
		{pattern: nri + "enable_nri", key: "nri"}, {pattern: nri + "nri_listen", why: own}, {pattern: nri + "nri_plugin_dir", key: "nri_plugin_dir"}, {pattern: nri + "nri_plugin_config_dir", key: "nri_plugin_config_dir"},
		{pattern: nri + "nri_plugin_registration_timeout", key: "nri_registration_timeout"}, {pattern: nri + "nri_plugin_request_timeout", key: "nri_request_timeout"},
	}
	return slices.Concat(handlersOf(run+"runtimes/*/runtime_path", "runc", "crun"), rows, []row{{pattern: run + "runtimes/*/*", why: inside}})
}

// handlersOf makes a runtime handler of each runtime, by a setting that each has,
// except those that are the default.
func handlersOf(pattern string, defaults ...string) []row {
	return []row{{pattern: pattern, key: handlersKey, defaults: defaults}}
}

// level translates a log level.
func level(value any, _ settings) any {
	switch value {
	case "fatal", "panic", "error":
		return "error"
	case "debug", "trace":
		return value
	}
	return "info"
}

func not(value any, _ settings) any { b, ok := value.(bool); return ok && !b }

func list(value any, _ settings) any { return []any{value} }

func paths(value any, _ settings) any {
	text, ok := value.(string)
	if !ok || text == "" {
		return nil
	}
	return strings.Split(text, ":")
}

func volumes(value any, _ settings) any {
	if value == true {
		return "ignore"
	}
	return nil
}

func crioVolumes(value any, _ settings) any {
	if value == "ignore" {
		return value
	}
	return nil
}

func driver(value any, _ settings) any {
	if value == true {
		return "systemd"
	}
	return "cgroupfs"
}

func capabilities(value any, _ settings) any {
	all, ok := value.([]any)
	if !ok {
		return nil
	}
	var list []string
	for _, c := range all {
		name := strings.ToUpper(fmt.Sprint(c))
		list = append(list, "CAP_"+strings.TrimPrefix(name, "CAP_"))
	}
	return list
}

// crioPids translates the limit of processes, for which CRI-O writes -1 if there is none.
func crioPids(value any, _ settings) any {
	if value == int64(-1) {
		return 0
	}
	return value
}

// ulimits translates limits, "nofile=1024" or "nofile=1024:2048".
func ulimits(value any, _ settings) any {
	all, ok := value.([]any)
	if !ok || len(all) == 0 {
		return nil
	}
	var list []string
	for _, l := range all {
		name, limit, _ := strings.Cut(fmt.Sprint(l), "=")
		soft, hard, ok := strings.Cut(limit, ":")
		if !ok {
			hard = soft
		}
		list = append(list, name+"="+unlimited(soft)+":"+unlimited(hard))
	}
	return list
}

func unlimited(limit string) string {
	if limit == "-1" {
		return "unlimited"
	}
	return limit
}

// isolates reports whether a handler, of which a setting is, is no ordinary runtime but
// one of virtual machines and the like: its pods must not run without those.
func isolates(at string, set settings) bool {
	runtime := path.Dir(at)
	kind, _ := set[runtime+"/runtime_type"].(string)
	ordinary := kind == "" || kind == "oci" || strings.HasPrefix(kind, "io.containerd.runc.") || strings.HasPrefix(kind, "io.containerd.runtime.v1.")
	for _, program := range []string{"runtime_path", "options/BinaryName"} {
		text, _ := set[runtime+"/"+program].(string)
		ordinary = ordinary && !strings.Contains(text, "kata") && !strings.Contains(text, "runsc")
	}
	return !ordinary
}

// crioMetrics is the address at which CRI-O serves metrics.
func crioMetrics(value any, set settings) any {
	if value != true {
		return nil
	}
	host, port := "127.0.0.1", "9090"
	if v, ok := set["crio/metrics/metrics_host"].(string); ok && v != "" {
		host = v
	}
	if v := set["crio/metrics/metrics_port"]; v != nil {
		port = fmt.Sprint(v)
	}
	return host + ":" + port
}

func crioTracing(value any, set settings) any {
	if value != true {
		return nil
	}
	if v, ok := set["crio/tracing/tracing_endpoint"].(string); ok && v != "" {
		return v
	}
	return "127.0.0.1:4317"
}

// perMillion translates a share.
func perMillion(value any, _ settings) any {
	const million = 1_000_000
	switch share := value.(type) {
	case float64:
		return int(share * million)
	case int64:
		return int(share) * million
	}
	return nil
}

// join makes an address of a host, and the port that another setting has.
func join(port, otherwise string) func(any, settings) any {
	return func(value any, set settings) any {
		for at, v := range set {
			if strings.HasSuffix(at, "/"+port) {
				return fmt.Sprintf("%v:%v", value, v)
			}
		}
		return fmt.Sprintf("%v:%s", value, otherwise)
	}
}

// joined makes an address of a port, and the host that another setting has.
func joined(host string) func(any, settings) any {
	return func(value any, set settings) any {
		for at, v := range set {
			if strings.HasSuffix(at, "/"+host) {
				return fmt.Sprintf("%v:%v", v, value)
			}
		}
		return fmt.Sprintf("127.0.0.1:%v", value)
	}
}
