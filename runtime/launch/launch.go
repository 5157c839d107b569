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

// Held are the descriptors that a caller holds, by the names that plans use.
// They stay the caller's.
type Held map[string]*os.File

// Launcher starts processes. Its methods may be used concurrently.
type Launcher struct {
	keeper  Keeper
	machine plan.Machine
	filters *seccomp.Cache

	mu      sync.Mutex
	proc    *os.File            // guarded by mu; nil before the first use
	userns  map[string]*os.File // guarded by mu; by id mappings
	unified bool
}

// New returns a launcher whose plans are run by k.
func New(k Keeper, f host.Facts) *Launcher {
	return &Launcher{
		keeper:  k,
		machine: machineOf(f),
		filters: seccomp.NewCache(),
		userns:  map[string]*os.File{},
		unified: f.CgroupV2.OK(),
	}
}

// Close releases what the launcher holds for itself.
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

// Sandbox makes a pod's namespaces. The keeper holds them under id. The gate is
// called while the pod's first process waits at its first gate, see [Launcher.Container].
func (l *Launcher) Sandbox(ctx context.Context, id string, o plan.SandboxOptions, h Held, gate func(int) error) (*client.Started, error) {
	p, err := plan.Sandbox(o)
	if err != nil {
		return nil, err
	}

	in := l.inputs(h, nil)
	defer in.close()
	if o.PidNS && h["pause"] == nil {
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
		ID: id, Kind: client.Sandbox, Plan: p, Files: in.files, Hold: true, Pause: o.PidNS, Gate: gate,
	})
}

// label gives a file an SELinux label, if there is one: what a policy lets
// containers execute is known by that.
func label(f *os.File, label string) error {
	if label == "" {
		return nil
	}
	return unix.Fsetxattr(int(f.Fd()), "security.selinux", []byte(label), 0)
}

// Container starts a container's first process in the root file system that
// is held as "rootfs". Its output goes to log; what is in keep, the keeper
// keeps under id. The gate is called while the process waits at its first gate.
func (l *Launcher) Container(ctx context.Context, id string, s *specs.Spec, o plan.Options, h Held,
	log *client.LogConfig, keep []client.Named, gate func(int) error,
) (*client.Started, error) {
	o, err := l.complete(s, s.Process, o, h)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}

	if !l.unified && len(o.Hierarchies) == 0 && showsCgroups(s) {
		return nil, fmt.Errorf("%s: a container may be shown only cgroup hierarchies that it has joined, and none is named", o.Name)
	}

	s, made, err := land(ctx, s, &o, h)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}

	in := l.inputs(h, s)
	defer in.close()
	for name, f := range made {
		in.own(name, f)
	}

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

	if err := giveStreams(h, s, s.Process); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	started, err := l.keeper.Start(ctx, client.Request{
		ID: id, Kind: client.Container, Plan: p, Files: in.files,
		Log: log, Terminal: o.Terminal, Keep: keep, Gate: gate,
	})
	if err != nil {
		return nil, explain(err, p, s.Process, h["rootfs"])
	}

	return started, nil
}

// Exec starts one more process in a container, whose first process is held as
// "pidfd". The spec is the container's.
func (l *Launcher) Exec(ctx context.Context, id string, s *specs.Spec, p *specs.Process, o plan.Options, h Held) (*client.Started, error) {
	o, err := l.complete(s, p, o, h)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}

	steps, err := plan.Exec(s, p, o)
	if err != nil {
		return nil, err
	}

	if err := giveStreams(h, s, p); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	in := l.inputs(h, s)
	defer in.close()

	if err := in.open(ctx, steps); err != nil {
		return nil, err
	}
	r := client.Request{ID: id, Kind: client.Exec, Plan: steps, Files: in.files, Terminal: o.Terminal}
	started, err := l.keeper.Start(ctx, r)
	if cgroup := steps.Clone.Cgroup; cgroup >= 0 && refused(err) {
		group, gerr := cgroupOf(h["pidfd"])
		if gerr != nil {
			return nil, errors.Join(err, gerr)
		}
		defer group.Close()
		r.Files[cgroup] = group
		started, err = l.keeper.Start(ctx, r)
	}
	if err != nil {
		return nil, explain(err, steps, p, nil)
	}

	return started, nil
}

// filter compiles a profile. Only a process that joins others has calls to make
// after it has loaded it: no other's filter has an exception for them.
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

// complete fills in what the launcher knows better than its caller.
func (l *Launcher) complete(s *specs.Spec, p *specs.Process, o plan.Options, h Held) (plan.Options, error) {
	o.Machine = l.machine
	o.HasStdin = o.HasStdin && h["stdin"] != nil
	o.NoStdout, o.NoStderr = h["stdout"] == nil, h["stderr"] == nil
	if s.Linux == nil || p == nil {
		return o, nil // the plan's builder says so
	}
	if s.Linux.Seccomp != nil && o.Seccomp == nil {
		// A command joins the container's namespaces, whoever made them.
		joins := p != s.Process || joinedPIDs(s) != ""
		var err error
		if o.Seccomp, err = l.filter(s.Linux.Seccomp, joins); err != nil {
			return o, fmt.Errorf("compile seccomp profile: %w", err)
		}
	}

	// Without a pod's base there is no procfs of its PID namespace.
	o.Procfs = o.Procfs || !o.PodBase && joinedPIDs(s) != ""
	if o.Nodes == nil {
		var err error
		if o.Nodes, err = hostNodes(s); err != nil {
			return o, err
		}
	}

	return o, nil
}

// showsCgroups says whether a container has a view of its own cgroups.
func showsCgroups(s *specs.Spec) bool {
	return slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return strings.HasPrefix(m.Type, "cgroup") }) &&
		slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
}
