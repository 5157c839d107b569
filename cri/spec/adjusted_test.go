package spec

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestCheckAdjusted has a row for each change by a plugin that must not become a
// container.
func TestCheckAdjusted(t *testing.T) {
	mount := func(m specs.Mount) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) }
	}
	device := func(d specs.LinuxDevice) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Devices = append(s.Linux.Devices, d) }
	}
	sysctl := func(name, value string) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{name: value} }
	}
	withoutNetwork := func(s *specs.Spec) {
		s.Linux.Namespaces, s.Linux.Sysctl = []specs.LinuxNamespace{{Type: specs.MountNamespace}}, map[string]string{"net.ipv4.ip_forward": "1"}
	}

	for _, tt := range []struct {
		name   string
		change func(*specs.Spec)
		text   string
	}{
		{"nothing", func(*specs.Spec) {}, ""},
		{"useful", func(s *specs.Spec) {
			mount(specs.Mount{Destination: "/x", Source: "/y", Options: []string{"rbind"}})(s)
			device(specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: 1, Minor: 3})(s)
			sysctl("net.ipv4.ip_forward", "1")(s)
		}, ""},
		{"sysctl of the node", sysctl("kernel.panic", "1"), "is not namespaced"},
		{"sysctl of the node with slashes", sysctl("kernel/panic", "1"), "is not namespaced"},
		{"sysctl that leads elsewhere", sysctl("net/../kernel/panic", "1"), "name of sysctl"},
		{"sysctl of the node's network", withoutNetwork, "no network namespace"},
		{"sysctl with NUL", sysctl("net.ipv4.ip_forward", "1\x00"), "value of sysctl"},
		{"no name of a program", func(s *specs.Spec) { s.Process.Args = []string{"", "x"} }, "no command"},
		{"long variable", func(s *specs.Spec) { s.Process.Env = []string{"A=" + strings.Repeat("x", 1<<20)} }, "accepts at most"},
		{"variable without a name", func(s *specs.Spec) { s.Process.Env = []string{"=x"} }, "without a name"},
		{"OOM score", func(s *specs.Spec) { score := 5000; s.Process.OOMScoreAdj = &score }, "oom_score_adj"},
		{"user that is none", func(s *specs.Spec) { s.Process.User.UID = 1<<32 - 1 }, "user 4294967295"},
		{"group that is none", func(s *specs.Spec) { s.Process.User.GID = 1<<32 - 1 }, "group 4294967295"},
		{"additional group that is none", func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{7, 1<<32 - 1} }, "group 4294967295"},
		{"too many groups", func(s *specs.Spec) { s.Process.User.AdditionalGids = make([]uint32, 1<<16+1) }, "at most 65536"},
		{"user outside its namespace", func(s *specs.Spec) {
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Process.User.UID = 65536
		}, "user 65536 does not exist"},
		{"group outside its namespace", func(s *specs.Spec) {
			s.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Process.User.AdditionalGids = []uint32{65535, 70000}
		}, "group 70000 does not exist"},
		{"mount over the root", mount(specs.Mount{Destination: "/x/..", Source: "/y"}), "root of the container"},
		{"relative mount", mount(specs.Mount{Destination: "x", Source: "/y"}), "not absolute"},
		{"mount with NUL", mount(specs.Mount{Destination: "/x", Source: "/y\x00"}), "NUL"},
		{"relative device", device(specs.LinuxDevice{Path: "dev/x", Type: "c"}), "absolute"},
		{"device instead of /dev", device(specs.LinuxDevice{Path: "/dev/", Type: "c"}), "absolute"},
		{"device in procfs", device(specs.LinuxDevice{Path: "/dev/../proc/x", Type: "c"}), "no device can be made"},
		{"all devices", device(specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: -1, Minor: -1}), "numbers"},
		{"numbers that wrap around", device(specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: 1<<32 + 1, Minor: 3}), "numbers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := testInput()
			r, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}

			tt.change(r.Spec)
			err = CheckAdjusted(r.Spec, in.Host)
			if tt.text == "" && err != nil || tt.text != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("CheckAdjusted() = %v, want %q", err, tt.text)
			}
		})
	}
}
