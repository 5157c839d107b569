package launch

import (
	"context"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/cgroup"
	"crisp/runtime/hook"
	"crisp/runtime/keeper/client"
	"crisp/runtime/plan"
)

// Request asks for a process: a container's first, or one more in it.
type Request struct {
	// ID is what the keeper knows the process by, Name what errors begin with:
	// "start container web".
	ID, Name string
	// Spec is the container's. Process is what [Launcher.Exec] starts; a
	// container's first process is the spec's.
	Spec    *specs.Spec
	Process *specs.Process
	// Held are the caller's descriptors.
	Held Held
	// Group is the cgroup to enter, nil that of the keeper. Member is a process
	// of the container's, for [Launcher.Exec]: where that is below the group,
	// the new one goes there too.
	Group  Group
	Member int
	// Log is where a container's output goes. The keeper holds what is in Keep
	// along with the container.
	Log  *client.LogConfig
	Keep []client.Named
	// Hooks runs the hooks of a container, nil if its spec has none.
	Hooks *Hooks
	// About is what the agent of a seccomp filter is told of the container.
	About hook.Container

	// InPod says that the container is in a pod, whose base mount namespace is
	// held as "ns/mnt".
	InPod bool
	// The rest is as in [plan.Options].
	AnyOrder, Procfs bool
	Hierarchies      []plan.Hierarchy
	CgroupDir        string
	// Classed says that the container's class of Intel RDT was made, and that the
	// group is [Class.With] it.
	Classed bool
}

// SandboxRequest asks for the namespaces of a pod. In its options all that is
// about the cgroup is filled in by [Launcher.Sandbox].
type SandboxRequest struct {
	// ID is what the keeper knows the pod by.
	ID      string
	Options plan.SandboxOptions
	// Held are the caller's descriptors, Group the cgroup of the pod's first
	// process, if it is to have one.
	Held  Held
	Group Group
}

// Held are the descriptors that a caller holds, by the names that plans use:
// "rootfs", "ns/net", "image/0", "pidfd", and of "stdin", "stdout" and "stderr"
// those that the process is to have. They stay the caller's.
type Held map[string]*os.File

// Group is the cgroup of a container; [cgroup.Group] is one.
type Group interface {
	// Entry opens what a process needs to enter the group by itself, EntryOf
	// what it needs to join a process that is in there.
	Entry() (*cgroup.Entry, error)
	EntryOf(pid int) (*cgroup.Entry, error)
	// NeedsGate reports whether a container's first process cannot enter by
	// itself. Attach then moves it there, while it waits at its first gate.
	NeedsGate() bool
	Attach(ctx context.Context, pid int) error
}

// entry is how a process enters its cgroup: moved there while it waits at a
// gate, or by itself, through what is held as "cgroup" and as "cgroup/0" and so
// on. Its zero value enters none.
type entry struct {
	gate    bool
	unified bool
	tasks   int
}

// enter opens what a first process needs to enter its group, where it is not
// moved there.
func (in *inputs) enter(g Group) (entry, error) {
	if g == nil {
		return entry{}, nil
	}
	if g.NeedsGate() {
		return entry{gate: true}, nil
	}
	return in.entry(g.Entry())
}

// follow opens what a command needs to join a process that is in the group.
func (in *inputs) follow(g Group, member int) (entry, error) {
	if g == nil {
		return entry{}, nil
	}
	return in.entry(g.EntryOf(member))
}

// entry takes what was opened into the inputs.
func (in *inputs) entry(e *cgroup.Entry, err error) (entry, error) {
	if err != nil {
		return entry{}, fmt.Errorf("open cgroup: %w", err)
	}
	for name, f := range e.Files() {
		in.own(name, f)
	}
	return entry{unified: e.Unified != nil, tasks: len(e.Tasks)}, nil
}

// attach returns what moves a first process into its group while it waits at
// its first gate, nil if nothing has to.
func attach(ctx context.Context, g Group) func(pid int) error {
	if g == nil || !g.NeedsGate() {
		return nil
	}
	return func(pid int) error { return g.Attach(ctx, pid) }
}
