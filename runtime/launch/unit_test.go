package launch

import (
	"context"
	"errors"
	"os"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/host"
	"crisp/runtime/keeper/client"
	"crisp/runtime/plan"
	"crisp/runtime/spawn"
	"crisp/test/testkit"
)

func TestHostID(t *testing.T) {
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 10}}
	for id, want := range map[uint32]uint32{0: 1000, 1: 100000, 10: 100009, 11: 11} {
		if got := plan.HostID(maps, id); got != want {
			t.Errorf("id %d is %d on the host, want %d", id, got, want)
		}
	}
	if got := plan.HostID(nil, 5); got != 5 {
		t.Errorf("id 5 without mappings is %d", got)
	}
}

func TestMachineBounds(t *testing.T) {
	free := machineOf(host.Facts{Capabilities: 7, LastCap: 40, SysResource: host.Yes, OOMScoreAdj: -5})
	if want := (plan.Machine{Caps: 7, LastCap: 40}); !reflect.DeepEqual(free, want) {
		t.Errorf("bounds %+v, want %+v", free, want)
	}
	bound := machineOf(host.Facts{SysResource: host.Unknown, OOMScoreAdj: -5})
	if bound.MinOOMScore == nil || *bound.MinOOMScore != -5 {
		t.Errorf("lowest score %v", bound.MinOOMScore)
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil || bound.HardLimits["RLIMIT_CORE"] != l.Max {
		t.Errorf("hard limit %d, want %d (%v)", bound.HardLimits["RLIMIT_CORE"], l.Max, err)
	}
}

func TestNotHeld(t *testing.T) {
	l := New(nil, host.Facts{CgroupV2: host.Yes})
	s := (&lab{}).spec("true")
	setNamespace(s, specs.NetworkNamespace, "ns/net")
	_, err := l.Container(t.Context(), Request{ID: "id", Name: "start container web", Spec: s, InPod: true})
	if !errors.Is(err, ErrNotHeld) || err.Error() != "start container web: rootfs: descriptor is not held" {
		t.Errorf("error %v", err)
	}
}

func TestExplainLeavesOtherErrors(t *testing.T) {
	p := &plan.Plan{Name: "start", Steps: []plan.Step{{Name: "chdir", Call: unix.SYS_CHDIR}}}
	for _, err := range []error{
		errors.New("keeper is gone"),
		&spawn.StepError{Plan: "start", Index: 0, Step: "chdir", Err: unix.ENOENT},
		&spawn.StepError{Plan: "start", Index: -1, Step: "clone", Err: unix.EAGAIN},
		&spawn.StepError{Plan: "start", Index: 9, Step: "of another plan", Err: unix.EAGAIN},
	} {
		if got := explain(err, p, &specs.Process{Args: []string{"x"}}, nil); got != err {
			t.Errorf("error %v became %v", err, got)
		}
	}
}

// busyKeeper refuses the first start, as the kernel does for a cgroup with child groups.
type busyKeeper struct{ requests []string }

func (k *busyKeeper) Start(_ context.Context, r client.Request) (*client.Started, error) {
	k.requests = append(k.requests, r.Files[r.Plan.Clone.Cgroup].Name())
	if len(k.requests) == 1 {
		return nil, &spawn.StepError{Plan: r.Plan.Name, Index: -1, Step: "clone", Err: unix.EBUSY}
	}
	return &client.Started{}, nil
}

func TestExecWhereContainerHasInnerGroups(t *testing.T) {
	own, err := field("/proc/self/cgroup", "0::")
	if err != nil {
		testkit.Skip(t, "cgroup2", err.Error())
	}

	if _, err := os.Stat(cgroupRoot + own); err != nil {
		testkit.Skip(t, "cgroup2", err.Error())
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}

	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	k := &busyKeeper{}
	l := New(k, host.Facts{CgroupV2: host.Yes})
	s := (&lab{}).spec("true")
	r := Request{ID: "e", Name: "exec", Spec: s, Process: s.Process, Held: Held{"pidfd": pidfd}, Group: unified{os.Stdin}}
	if _, err := l.Exec(t.Context(), r); err != nil {
		t.Fatal(err)
	}

	if want := []string{os.Stdin.Name(), cgroupRoot + own}; !reflect.DeepEqual(k.requests, want) {
		t.Errorf("started in %q, want %q", k.requests, want)
	}
}

func TestProcfsIsTriedAgain(t *testing.T) {
	testkit.Root(t)
	l := New(nil, host.Facts{})
	t.Cleanup(func() { l.Close() })
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}

	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := l.procfs()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}

	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("without descriptors the error is %v, want %v", err, unix.EMFILE)
	}
	if _, err := l.procfs(); err != nil {
		t.Errorf("with descriptors again: %v", err)
	}
}
