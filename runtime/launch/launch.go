package launch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/host"
	"crisp/runtime/keeper/client"
	"crisp/runtime/pause"
	"crisp/runtime/plan"
	"crisp/runtime/seccomp"
)

// Keeper runs plans; [client.Client] is one.
type Keeper interface {
	Start(ctx context.Context, r client.Request) (*client.Started, error)
}

// Launcher starts processes. Its methods may be used concurrently.
type Launcher struct {
	keeper  Keeper
	machine plan.Machine
	filters *seccomp.Cache
	// agentTime bounds the waiting for agents of seccomp filters.
	agentTime time.Duration

	mu      sync.Mutex
	proc    *os.File            // guarded by mu; nil before the first use
	userns  map[string]*os.File // guarded by mu; by id mappings
	unified bool
}

// New returns a launcher whose plans are run by k.
func New(k Keeper, f host.Facts) *Launcher {
	return &Launcher{
		keeper:    k,
		machine:   machineOf(f),
		filters:   seccomp.NewCache(),
		agentTime: agentTime,
		userns:    map[string]*os.File{},
		unified:   f.CgroupV2.OK(),
	}
}

// Close closes the launcher's own descriptors.
func (l *Launcher) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.userns {
		f.Close()
	}
	clear(l.userns)
	if l.proc == nil {
		return nil
	}
	return l.proc.Close()
}

// Sandbox creates a pod's namespaces, which the keeper holds.
func (l *Launcher) Sandbox(ctx context.Context, r SandboxRequest) (*client.Started, error) {
	in := l.inputs(r.Held, nil)
	defer in.close()
	entry, err := in.enter(r.Group)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Options.Name, err)
	}

	o := r.Options
	o.Gate, o.CgroupV2, o.CgroupTasks = entry.gate, entry.unified, entry.tasks
	p, err := plan.Sandbox(o)
	if err != nil {
		return nil, err
	}

	if o.PidNS && r.Held["pause"] == nil {
		image, err := pause.Open()
		if err != nil {
			return nil, fmt.Errorf("%s: open pause program: %w", o.Name, err)
		}
		in.own("pause", image)
		if err := label(image, o.MountLabel); err != nil {
			return nil, fmt.Errorf("%s: label pause program: %w", o.Name, err)
		}
	}

	if err := in.open(ctx, p); err != nil {
		return nil, err
	}
	return l.keeper.Start(ctx, client.Request{
		ID: r.ID, Kind: client.Sandbox, Plan: p, Files: in.files, Hold: true, Pause: o.PidNS, Gate: attach(ctx, r.Group),
	})
}

// label sets a file's SELinux label, if not empty: the policy decides by it
// what containers may execute.
func label(f *os.File, label string) error {
	if label == "" {
		return nil
	}
	return unix.Fsetxattr(int(f.Fd()), "security.selinux", []byte(label), 0)
}

// Container starts a container's first process in the root file system that
// is held as "rootfs".
func (l *Launcher) Container(ctx context.Context, r Request) (*client.Started, error) {
	if r.Spec.Linux != nil && len(r.Spec.Linux.NetDevices) > 0 && !r.InPod {
		return nil, fmt.Errorf("%s: %w: network devices of a container without a pod", r.Name, plan.ErrUnsupported)
	}
	if r.Spec.Linux != nil && r.Spec.Linux.IntelRdt != nil && !r.Classed {
		return nil, fmt.Errorf("%s: %w: Intel RDT without a class", r.Name, plan.ErrUnsupported)
	}
	o, err := l.options(&r, r.Spec.Process)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	return l.container(ctx, &r, o)
}

func (l *Launcher) container(ctx context.Context, r *Request, o plan.Options) (*client.Started, error) {
	if !l.unified && len(o.Hierarchies) == 0 && showsCgroups(r.Spec) {
		return nil, fmt.Errorf("%s: no cgroup hierarchies to show: a container may see only those that it has joined", o.Name)
	}

	s, made, err := land(ctx, r.Spec, &o, r.Held)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}

	in := l.inputs(r.Held, s)
	defer in.close()
	for name, f := range made {
		in.own(name, f)
	}

	if err := errors.Join(in.bundle(r.Hooks, &o), in.deviceNodes(s, &o)); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	p, err := in.plan(ctx, r, s, o)
	if err != nil {
		return nil, err
	}

	if err := giveStreams(r.Held, s, s.Process); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	agent, ctx := l.newPatience(ctx)
	defer agent.end()
	started, err := l.keeper.Start(ctx, client.Request{
		ID: r.ID, Kind: client.Container, Plan: p, Files: in.files,
		Log: r.Log, Terminal: o.Terminal, Keep: r.Keep, Gate: attach(ctx, r.Group), Ask: l.ask(r, p, s, agent),
	})
	started, err = agent.verdict(started, err)
	if err != nil {
		return nil, agent.blame(explain(err, p, s.Process, r.Held["rootfs"]))
	}

	return started, nil
}

// plan builds the plan of a container's start and opens its inputs.
func (in *inputs) plan(ctx context.Context, r *Request, s *specs.Spec, o plan.Options) (*plan.Plan, error) {
	entry, err := in.enter(r.Group)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	o.Gate, o.CgroupV2, o.CgroupTasks = o.Gate || entry.gate, entry.unified, entry.tasks

	if o.Procfs && joinedPIDs(s) != "" {
		if o.Target, err = in.joinedProcfs(s); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Name, err)
		}
	}

	p, err := plan.Container(s, o)
	if err != nil {
		return nil, err
	}

	if err := in.open(ctx, p); err != nil {
		return nil, err
	}
	if err := in.makeTargets(p, s, o); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	return p, nil
}

// Exec starts another process in a container, whose first process is held as "pidfd".
func (l *Launcher) Exec(ctx context.Context, r Request) (*client.Started, error) {
	o, err := l.options(&r, r.Process)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	return l.exec(ctx, &r, o)
}

func (l *Launcher) exec(ctx context.Context, r *Request, o plan.Options) (*client.Started, error) {
	in := l.inputs(r.Held, r.Spec)
	defer in.close()
	entry, err := in.follow(r.Group, r.Member)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	o.CgroupV2, o.CgroupTasks = entry.unified, entry.tasks

	p, err := plan.Exec(r.Spec, r.Process, o)
	if err != nil {
		return nil, err
	}

	if err := giveStreams(r.Held, r.Spec, r.Process); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	if err := in.open(ctx, p); err != nil {
		return nil, err
	}

	agent, ctx := l.newPatience(ctx)
	defer agent.end()
	started, err := l.join(ctx, r.Held["pidfd"], client.Request{
		ID: r.ID, Kind: client.Exec, Plan: p, Files: in.files, Terminal: o.Terminal, Ask: l.ask(r, p, r.Spec, agent),
	})
	started, err = agent.verdict(started, err)
	if err != nil {
		return nil, agent.blame(explain(err, p, r.Process, nil))
	}
	return started, nil
}

// join starts an exec process. Where the kernel refuses to clone into the
// container's own group, it is cloned into that of the container's first
// process.
func (l *Launcher) join(ctx context.Context, first *os.File, r client.Request) (*client.Started, error) {
	started, err := l.keeper.Start(ctx, r)
	at := r.Plan.Clone.Cgroup
	if at < 0 || !refused(err) {
		return started, err
	}

	group, gerr := cgroupOf(first)
	if gerr != nil {
		return nil, errors.Join(err, gerr)
	}
	defer group.Close()
	r.Files[at] = group
	return l.keeper.Start(ctx, r)
}

// filter compiles a profile. Only a process that joins others makes system
// calls after it has loaded the filter, so only its filter has an exception for
// them.
func (l *Launcher) filter(profile *specs.LinuxSeccomp, joins bool) (*plan.Filter, error) {
	f, err := l.filters.Compile(profile)
	if err != nil {
		return nil, err
	}

	if f.Joins || !joins {
		return &plan.Filter{Prog: f.Prog, Flags: f.Flags}, nil
	}

	var random [16]byte
	_, _ = rand.Read(random[:]) // it never fails
	pass := seccomp.NewPass(random)
	prog, err := f.WithPass(pass)
	if err != nil {
		return nil, err
	}

	return &plan.Filter{Prog: prog, Flags: f.Flags, Pass: pass}, nil
}

// options returns the plan's options for a process p, all but those of its cgroup.
func (l *Launcher) options(r *Request, p *specs.Process) (plan.Options, error) {
	s, h := r.Spec, r.Held
	o := plan.Options{
		Name: r.Name, PodBase: r.InPod, AnyOrder: r.AnyOrder, Procfs: r.Procfs,
		Hierarchies: r.Hierarchies, CgroupDir: r.CgroupDir, Machine: l.machine,
		HasStdin: h["stdin"] != nil, NoStdout: h["stdout"] == nil, NoStderr: h["stderr"] == nil,
	}
	if s.Linux == nil || p == nil {
		return o, nil // the plan's builder says so
	}
	o.Terminal = p.Terminal

	if s.Linux.Seccomp != nil {
		// An exec process joins all of the container's namespaces.
		joins := p != s.Process || joinedPIDs(s) != ""
		var err error
		if o.Seccomp, err = l.filter(s.Linux.Seccomp, joins); err != nil {
			return o, fmt.Errorf("compile seccomp profile: %w", err)
		}
	}

	// Without a pod's base there is no procfs of its PID namespace.
	o.Procfs = o.Procfs || !o.PodBase && joinedPIDs(s) != ""
	return o, nil
}

// showsCgroups reports whether a container has a cgroup mount.
func showsCgroups(s *specs.Spec) bool {
	return slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return strings.HasPrefix(m.Type, "cgroup") }) &&
		slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
}
