package nri

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
	"crisp/runtime/hook"
)

// TestLimitsRoundTrip translates limits to the protocol and back.
func TestLimitsRoundTrip(t *testing.T) {
	want := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: -1, CpuShares: 512, CpusetCpus: "0-1", CpusetMems: "0",
		MemoryLimitInBytes: 1 << 30, MemorySwapLimitInBytes: 2 << 30,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.high": "5"},
	}
	got := limits(fromCRI(want))
	if !proto.Equal(got.Resources, want) || got.Other != nil {
		t.Errorf("got %v and %v, want %v", got.Resources, got.Other, want)
	}
	if empty := limits(nil); empty.Resources != nil || empty.Other != nil {
		t.Errorf("no limits became %v", empty)
	}
}

// TestOtherLimits expects what the CRI has no field for to be kept apart.
func TestOtherLimits(t *testing.T) {
	r := &api.LinuxResources{
		Memory: &api.LinuxMemory{Reservation: api.Int64(int64(1 << 20)), Swappiness: api.UInt64(uint64(10))},
		Cpu:    &api.LinuxCPU{RealtimeRuntime: api.Int64(int64(1000))},
		Pids:   &api.LinuxPids{Limit: 7},
	}
	got := limits(r).Other
	reservation, swappiness, runtime, pids := int64(1<<20), uint64(10), int64(1000), int64(7)
	want := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Reservation: &reservation, Swappiness: &swappiness},
		CPU:    &specs.LinuxCPU{RealtimeRuntime: &runtime},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestRemovals expects what plugins removed to be gone, and nothing else.
func TestRemovals(t *testing.T) {
	s := &specs.Spec{
		Process: &specs.Process{Env: []string{"A=1", "B=2", "\xff=3"}},
		Linux: &specs.Linux{
			Devices: []specs.LinuxDevice{{Path: "/dev/a"}, {Path: "/dev/b"}},
			Sysctl:  map[string]string{"net.a": "1", "net.b": "2"},
		},
	}
	before := &api.Container{
		Env: []string{"A=1", "B=2"},
		Linux: &api.LinuxContainer{
			Devices: []*api.LinuxDevice{{Path: "/dev/a"}, {Path: "/dev/b"}}, Sysctl: map[string]string{"net.a": "1", "net.b": "2"},
		},
	}
	after := &api.Container{
		Env:   []string{"B=changed", "C=new"},
		Linux: &api.LinuxContainer{Devices: []*api.LinuxDevice{{Path: "/dev/b"}}, Sysctl: map[string]string{"net.b": "2"}},
	}

	remove(s, before, after)
	if !slices.Equal(s.Process.Env, []string{"B=2", "\xff=3"}) || len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/b" || len(s.Linux.Sysctl) != 1 {
		t.Errorf("left are %q, %v and %v", s.Process.Env, s.Linux.Devices, s.Linux.Sysctl)
	}
}

// TestPluginHooks expects hooks of plugins to be checked, and named as theirs after
// those of others.
func TestPluginHooks(t *testing.T) {
	out := &spec.Result{
		Spec:        &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}, Hooks: &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/true"}}}},
		HookSources: hook.Sources{hook.Poststop: {"a file"}},
	}
	a := &api.ContainerAdjustment{Hooks: &api.Hooks{Poststop: []*api.Hook{{Path: "/bin/true"}}}}
	if err := apply(out, a, nil); err != nil {
		t.Fatal(err)
	}
	if got := out.HookSources[hook.Poststop]; !slices.Equal(got, []string{"a file", source}) {
		t.Errorf("the hooks are from %q", got)
	}

	a = &api.ContainerAdjustment{Hooks: &api.Hooks{CreateRuntime: []*api.Hook{{Path: "relative"}}}}
	if err := apply(out, a, nil); !errors.Is(err, hook.ErrInvalid) {
		t.Errorf("a hook with a relative path: %v, want %v", err, hook.ErrInvalid)
	}
}

// TestRejectable expects each kind of adjustment to be known to the validator, and
// others to be refused.
func TestRejectable(t *testing.T) {
	for _, what := range Rejectable() {
		if c, err := validators([]string{what}); err != nil || !c.Enable {
			t.Errorf("%s: %+v, %v", what, c, err)
		}
	}
	if _, err := validators([]string{"mounts"}); err == nil {
		t.Error("an unknown kind is accepted")
	}
}
