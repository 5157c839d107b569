package nri

import (
	"math"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/protobuf/proto"

	"crisp/cri/spec"
	"crisp/runtime/host"
	"crisp/runtime/launch"
	"crisp/runtime/plan"
)

// adjusts returns an adjustment.
func adjusts(change func(*api.ContainerAdjustment)) *api.ContainerAdjustment {
	a := &api.ContainerAdjustment{}
	change(a)
	return a
}

// bad are adjustments that no container may have.
func bad() map[string]*api.ContainerAdjustment {
	device := func(d *api.LinuxDevice) *api.ContainerAdjustment {
		return adjusts(func(a *api.ContainerAdjustment) { a.AddDevice(d) })
	}
	mount := func(m *api.Mount) *api.ContainerAdjustment {
		return adjusts(func(a *api.ContainerAdjustment) { a.AddMount(m) })
	}
	hooks := func(h *api.Hooks) *api.ContainerAdjustment {
		return adjusts(func(a *api.ContainerAdjustment) { a.AddHooks(h) })
	}

	return map[string]*api.ContainerAdjustment{
		"cgroup above": adjusts(func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("../../..") }),
		"node's namespace": adjusts(func(a *api.ContainerAdjustment) {
			a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "pid", Path: "/proc/1/ns/pid"})
		}),
		"no namespace":        adjusts(func(a *api.ContainerAdjustment) { a.RemoveNamespace(&api.LinuxNamespace{Type: "mount"}) }),
		"NUL in argument":     adjusts(func(a *api.ContainerAdjustment) { a.SetArgs([]string{"a\x00b"}) }),
		"no program":          adjusts(func(a *api.ContainerAdjustment) { a.SetArgs([]string{""}) }),
		"NUL in variable":     adjusts(func(a *api.ContainerAdjustment) { a.AddEnv("A", "x\x00y") }),
		"nameless variable":   adjusts(func(a *api.ContainerAdjustment) { a.AddEnv("", "x") }),
		"too much":            adjusts(func(a *api.ContainerAdjustment) { a.AddEnv("A", strings.Repeat("x", 3<<20)) }),
		"mount over the root": mount(&api.Mount{Destination: "/a/../..", Source: "/tmp", Type: "bind", Options: []string{"rbind"}}),
		"relative mount":      mount(&api.Mount{Destination: "../../etc", Source: "/tmp", Type: "bind", Options: []string{"rbind"}}),
		"mount in procfs":     mount(&api.Mount{Destination: "/x/../proc/sys", Source: "/tmp", Type: "bind", Options: []string{"rbind"}}),
		"relative source":     mount(&api.Mount{Destination: "/x", Source: "../../etc", Type: "bind", Options: []string{"rbind"}}),
		"NUL in source":       mount(&api.Mount{Destination: "/x", Source: "/etc\x00/x", Type: "bind", Options: []string{"rbind"}}),
		"unknown option":      mount(&api.Mount{Destination: "/x", Source: "/etc", Type: "bind", Options: []string{"frob\x00"}}),
		"device in procfs":    device(&api.LinuxDevice{Path: "/dev/../proc/x", Type: "c", Major: 1, Minor: 3}),
		"device at /dev":      device(&api.LinuxDevice{Path: "/dev/x/..", Type: "c", Major: 1, Minor: 3}),
		"device outside":      device(&api.LinuxDevice{Path: "../x", Type: "c", Major: 1, Minor: 3}),
		"all devices":         device(&api.LinuxDevice{Path: "/dev/x", Type: "c", Major: -1, Minor: -1}),
		"huge numbers":        device(&api.LinuxDevice{Path: "/dev/x", Type: "b", Major: math.MaxInt64, Minor: math.MinInt64}),
		"no kind of device":   device(&api.LinuxDevice{Path: "/dev/x", Type: "a", Major: 1, Minor: 3}),
		"sysctl of the node":  adjusts(func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("vm.overcommit_memory", "1") }),
		"sysctl outside":      adjusts(func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("net/../kernel/panic", "1") }),
		"sysctl far outside":  adjusts(func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("../../etc/passwd", "1") }),
		"NUL in sysctl":       adjusts(func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("net.ipv4.ip_forward\x00", "1") }),
		"hook":                hooks(&api.Hooks{Prestart: []*api.Hook{{Path: "bin/true"}}}),
		"hook's timeout":      hooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/bin/true", Timeout: api.Int(-1)}}}),
		"hook's long timeout": hooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/bin/true", Timeout: api.Int(math.MaxInt64)}}}),
		"hook's variable":     hooks(&api.Hooks{CreateContainer: []*api.Hook{{Path: "/bin/true", Env: []string{"A=\x00"}}}}),
		"OOM score":           adjusts(func(a *api.ContainerAdjustment) { score := 5000; a.SetLinuxOomScoreAdj(&score) }),
		"rlimit":              adjusts(func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_NOFILE", 1, 2) }),
		"unknown rlimit":      adjusts(func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_../x", 1, 1) }),
		"seccomp operator": adjusts(func(a *api.ContainerAdjustment) {
			a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Syscalls: []*api.LinuxSyscall{
				{Names: []string{"read"}, Action: "SCMP_ACT_ERRNO", Args: []*api.LinuxSeccompArg{{Index: 99, Op: "SCMP_CMP_FROB"}}},
			}})
		}),
		"seccomp architecture": adjusts(func(a *api.ContainerAdjustment) {
			a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Architectures: []string{"PDP11"}})
		}),
		"network device": adjusts(func(a *api.ContainerAdjustment) {
			a.AddLinuxNetDevice("eth7", &api.LinuxNetDevice{Name: "../x"})
		}),
		"loopback": adjusts(func(a *api.ContainerAdjustment) { a.AddLinuxNetDevice("eth7", &api.LinuxNetDevice{Name: "lo"}) }),
		"I/O priority": adjusts(func(a *api.ContainerAdjustment) {
			a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: 3, Priority: -77})
		}),
		"I/O class":     adjusts(func(a *api.ContainerAdjustment) { a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: 99}) }),
		"memory policy": adjusts(func(a *api.ContainerAdjustment) { a.SetLinuxMemoryPolicy(99, "0") }),
		"memory policy's flag": adjusts(func(a *api.ContainerAdjustment) {
			a.SetLinuxMemoryPolicy(api.MpolMode_MPOL_BIND, "0", 99)
		}),
	}
}

// make applies an adjustment as a creation does, except for limits.
func (l adjuster) make(a *api.ContainerAdjustment) error {
	_, out := example()
	if err := supported(a); err != nil {
		return err
	}
	if err := apply(out, a, nil); err != nil {
		return err
	}
	if err := spec.CheckAdjusted(out.Spec, spec.Host{StackLimit: 8 << 20}); err != nil {
		return err
	}
	return l.Check(launch.Request{Name: "plan", Spec: out.Spec, InPod: true, AnyOrder: true, Hierarchies: []plan.Hierarchy{}})
}

type adjuster struct{ *launch.Launcher }

func newAdjuster(t testing.TB) adjuster {
	t.Helper()
	l := launch.New(nil, host.Facts{})
	t.Cleanup(func() { l.Close() })
	return adjuster{l}
}

// TestBadAdjustments expects each to be refused before anything of the container
// exists, with an error that has a code.
func TestBadAdjustments(t *testing.T) {
	l := newAdjuster(t)
	if err := l.make(adjusts(func(a *api.ContainerAdjustment) { a.AddEnv("A", "b") })); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	for name, a := range bad() {
		if err := l.make(a); err == nil {
			t.Errorf("%s: it is accepted", name)
		}
	}
}

// FuzzAdjustment has adjustments of any form applied: they are made or refused.
func FuzzAdjustment(f *testing.F) {
	for _, a := range bad() {
		if data, err := proto.Marshal(a); err == nil && len(data) < 1<<10 {
			f.Add(data)
		}
	}
	l := newAdjuster(f)

	f.Fuzz(func(t *testing.T, data []byte) {
		a := &api.ContainerAdjustment{}
		if proto.Unmarshal(data, a) != nil {
			return
		}
		if a.GetHooks() != nil || len(a.GetCDIDevices()) > 0 {
			return // the node's files decide about these
		}
		before := proto.Clone(a)
		if err := l.make(a); err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
		summary(a)
		limits(a.GetLinux().GetResources())
		if !proto.Equal(a, before) {
			t.Error("the adjustment was changed")
		}
	})
}
