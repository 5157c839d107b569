package launch

import (
	"errors"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/host"
	"crisp/runtime/plan"
	"crisp/runtime/seccomp"
)

// TestCheck expects a spec that no start could succeed with to be refused without
// one.
func TestCheck(t *testing.T) {
	l := New(nil, host.Facts{})
	defer l.Close()

	for _, tt := range []struct {
		name   string
		change func(*specs.Spec)
		want   error
	}{
		{"nothing", func(*specs.Spec) {}, nil},
		{"hooks", func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}} }, nil},
		{"device that the node has nowhere, with a user namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/crisp-test", Type: "c", Major: 240, Minor: 7}}
		}, nil},
		{"unknown limit", func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_FROB"}} }, plan.ErrSpec},
		{"soft limit above hard", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}}
		}, plan.ErrSpec},
		{"I/O priority", func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 1 << 13}
		}, plan.ErrSpec},
		{"unknown mount option", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/x", Source: "/y", Type: "bind", Options: []string{"frob"}}}
		}, plan.ErrSpec},
		{"relative source", func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/x", Source: "y", Type: "bind"}} }, plan.ErrSpec},
		{"mount in procfs", func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/proc/sys", Source: "/y", Type: "bind"}} }, plan.ErrSpec},
		{"unknown kind of device", func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "z"}} }, plan.ErrSpec},
		{"seccomp action", func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_FROB"} }, seccomp.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &specs.Spec{
				Process: &specs.Process{Args: []string{"true"}, Cwd: "/"}, Root: &specs.Root{Path: "rootfs"},
				Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}},
			}
			tt.change(s)

			if err := l.Check(Request{Name: "plan", Spec: s}); !errors.Is(err, tt.want) {
				t.Errorf("Check() = %v, want %v", err, tt.want)
			}
		})
	}
}
