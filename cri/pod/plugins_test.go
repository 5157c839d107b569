package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
	"crisp/runtime/cgroup"
	"crisp/runtime/launch"
	"crisp/runtime/spawn"
	"crisp/test/testkit/pace"
)

// absentPlugin is a host whose required plugin is missing.
type absentPlugin struct{ Plugins }

func (absentPlugin) Hold() func() { return func() {} }
func (absentPlugin) Active() bool { return true }
func (absentPlugin) Create(context.Context, View, *spec.Result) (Adjustment, error) {
	return Adjustment{}, ErrNoPlugin
}

// TestMissingPluginLearnsOnce expects a container that waits for a required plugin
// to be unknown to one that connects: it is asked about it then.
func TestMissingPluginLearnsOnce(t *testing.T) {
	m := bareManager()
	m.Plugins = absentPlugin{}
	p := newPod(m, testRecord(t, "aa11"), nil)
	m.register(p)
	k := &creation{p: p, id: "c1"}
	if _, err := k.askOnce(t.Context(), &spec.Result{Spec: &specs.Spec{}}); !errors.Is(err, ErrNoPlugin) {
		t.Fatalf("asked: %v, want %v", err, ErrNoPlugin)
	}

	if p.known.exit("c1") != nil {
		t.Error("a plugin that connects is told of the container before it is asked about it")
	}
}

// TestUpdatesNeedWholeIDs expects an update by a plugin to mean one container.
func TestUpdatesNeedWholeIDs(t *testing.T) {
	m := bareManager()
	p := newPod(m, testRecord(t, "aa11"), nil)
	m.register(p)
	m.index("cc2233", p)

	for _, id := range []string{"", "c", "cc22", "dd"} {
		if failed := m.ApplyUpdates(t.Context(), []Update{{Container: id}}); len(failed) != 1 {
			t.Errorf("an update of container %q was made", id)
		}
	}
	if err := p.applyUpdates(t.Context(), []Update{{Container: "dd"}}); !errors.Is(err, ErrPlugin) {
		t.Errorf("an update of a missing container in an operation: %v, want %v", err, ErrPlugin)
	}
	if err := p.applyUpdates(t.Context(), []Update{{Container: "dd", IgnoreFailure: true}}); err != nil {
		t.Errorf("an update whose failure is ignored: %v", err)
	}
}

// TestUpdatesWaitTogether has a plugin ask for many updates of a pod that is busy:
// all together wait no longer than one.
func TestUpdatesWaitTogether(t *testing.T) {
	m := bareManager()
	busy, own := newPod(m, testRecord(t, "aa11"), nil), newPod(m, testRecord(t, "bb22"), nil)
	m.register(busy)
	m.index("cc33", busy)
	release, err := busy.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer release()

	updates := slices.Repeat([]Update{{Container: "cc33", IgnoreFailure: true}}, 20)
	begin := time.Now()
	if failed := m.ApplyUpdates(t.Context(), updates); len(failed) != len(updates) || failed[7] != 7 {
		t.Errorf("%v of %d updates failed", failed, len(updates))
	}
	if err := own.applyUpdates(t.Context(), updates); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took < 2*updateWait || took > pace.Scale(4*updateWait) {
		t.Errorf("two lists of updates took %v, want twice %v", took, updateWait)
	}

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	begin = time.Now()
	if failed := m.ApplyUpdates(gone, updates); len(failed) != len(updates) || time.Since(begin) > updateWait/2 {
		t.Errorf("after the plugin has gone, %v failed after %v", failed, time.Since(begin))
	}
}

// TestScoreOfZero expects a plugin to be able to set an OOM score of zero.
func TestScoreOfZero(t *testing.T) {
	res := message(&runtimeapi.LinuxContainerResources{OomScoreAdj: 900, CpuShares: 5})
	c := &Container{Resources: &res, Config: message(&runtimeapi.ContainerConfig{})}
	a := Adjustment{By: []string{"10-zero: OOM score"}, OOMScore: new(int64)}
	a.note(c)
	if got := c.limits(); got.GetOomScoreAdj() != 0 || got.GetCpuShares() != 5 {
		t.Errorf("limits are %v, want a score of zero and the shares", got)
	}
}

// TestBlamePlugins expects a refused step to name the plugins, and other errors
// not to.
func TestBlamePlugins(t *testing.T) {
	c := &Container{Plugins: []string{"10-mounts: mounts"}}
	if err := blamePlugins(c, &spawn.StepError{Plan: "start", Step: "mount /x"}); !errors.Is(err, ErrPlugin) {
		t.Errorf("a refused step: %v, want %v", err, ErrPlugin)
	}
	if err := blamePlugins(c, fmt.Errorf("start: %w", spawn.ErrDied)); !errors.Is(err, ErrPlugin) {
		t.Errorf("a process that did not live: %v, want %v", err, ErrPlugin)
	}

	for _, cause := range []error{launch.ErrNoSource, launch.ErrNotFound, cgroup.ErrResources} {
		if err := blamePlugins(c, fmt.Errorf("start: %w", cause)); !errors.Is(err, ErrPlugin) {
			t.Errorf("what a plugin may have set: %v, want %v", err, ErrPlugin)
		}
	}
	if err := blamePlugins(c, nil); err != nil {
		t.Errorf("no error: %v", err)
	}
	if err := blamePlugins(c, ErrState); errors.Is(err, ErrPlugin) {
		t.Errorf("another error: %v", err)
	}
	if err := blamePlugins(&Container{}, &spawn.StepError{}); errors.Is(err, ErrPlugin) {
		t.Errorf("without plugins: %v", err)
	}
}

// TestCheckOthers expects limits that no kernel accepts, or that it would take for
// another, to be refused.
func TestCheckOthers(t *testing.T) {
	for value, want := range map[uint64]error{0: nil, 100: nil, 101: ErrInvalid} {
		if err := checkOthers(&specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: &value}}); !errors.Is(err, want) {
			t.Errorf("swappiness %d: %v, want %v", value, err, want)
		}
	}
	for value, want := range map[int64]error{-1: nil, 7: nil, -2: ErrInvalid, -1 << 63: ErrInvalid} {
		if err := checkOthers(&specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: &value}}); !errors.Is(err, want) {
			t.Errorf("reservation of %d: %v, want %v", value, err, want)
		}
		if err := checkOthers(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &value}}); !errors.Is(err, want) {
			t.Errorf("%d processes: %v, want %v", value, err, want)
		}
	}
}
