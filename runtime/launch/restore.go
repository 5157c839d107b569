package launch

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/client"
	"crisp/runtime/plan"
	"crisp/runtime/rootpath"
)

// Restoration is the program that makes the processes of a container, and what it
// needs, see [plan.RestoreOptions]. Its files are held by the caller.
type Restoration struct {
	Args, Env []string
	Files     []string
	// Yard is an empty directory of the host, Mounts are the container's mounts that
	// the program finds in there.
	Yard   string
	Mounts []string
	// Merge has the kernel merge equal pages, see [plan.RestoreOptions].
	Merge bool
}

// RootIn is where the container's root file system is for the program.
func (x Restoration) RootIn() string { return x.Yard + "/" + plan.YardRoot }

// TreeIn is where the container's file systems are as a start of it would mount them.
func (x Restoration) TreeIn() string { return x.Yard + "/" + plan.YardTree }

// MountIn is where mount i is for the program.
func (x Restoration) MountIn(i int) string { return x.Yard + "/" + strconv.Itoa(i) }

// FileIn is the number that file i has in the program.
func (x Restoration) FileIn(i int) int { return plan.FirstFile + i }

// Filter compiles the seccomp filter of a container that is restored, nil for none.
func (l *Launcher) Filter(profile *specs.LinuxSeccomp) (*plan.Filter, error) {
	if profile == nil {
		return nil, nil
	}
	return l.filter(profile, false)
}

// Targets returns where the mounts of a container are, by their destinations: links of
// its image may lead elsewhere.
func (l *Launcher) Targets(ctx context.Context, r Request) (map[string]string, error) {
	o := plan.Options{AnyOrder: r.AnyOrder}
	s, made, err := land(ctx, r.Spec, &o, r.Held)
	for _, f := range made {
		f.Close()
	}
	if err != nil {
		return nil, err
	}
	at := map[string]string{}
	for i, m := range s.Mounts {
		at[m.Destination] = o.Targets[i]
	}
	return at, nil
}

// Restore starts the program that makes a container's processes. The keeper knows
// it by the container's ID until [client.Client.Replace] names the first of them, and
// gives it the output that the request has.
func (l *Launcher) Restore(ctx context.Context, r Request, x Restoration) (*client.Started, error) {
	o, err := l.options(&r, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
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
	yard, err := newYard(RootOwner(s))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	in.own("yard", yard)

	entry, err := in.enter(r.Group)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	o.Gate, o.CgroupV2, o.CgroupTasks = entry.gate, entry.unified, entry.tasks
	p, err := plan.Restore(s, o, plan.RestoreOptions{Args: x.Args, Env: x.Env, Files: x.Files, Yard: x.Yard, Mounts: x.Mounts, Merge: x.Merge})
	if err != nil {
		return nil, err
	}
	if err := in.open(ctx, p); err != nil {
		return nil, err
	}
	if err := in.makeTargets(p, s, o); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}

	if err := giveStreams(r.Held, s, s.Process); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	return l.keeper.Start(ctx, client.Request{
		ID: r.ID, Kind: client.Container, Plan: p, Files: in.files, Gate: attach(ctx, r.Group),
	})
}

// newYard makes the file system that covers the yard. It belongs to the container's
// root, which the program is.
func newYard(owner rootpath.Owner) (*os.File, error) {
	fs, err := newTmpfs(map[string]string{"mode": "700", "source": "yard", "uid": strconv.Itoa(owner.UID), "gid": strconv.Itoa(owner.GID)})
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{plan.YardRoot, plan.YardTree} {
		err := unix.Mkdirat(int(fs.Fd()), dir, 0o700)
		if err == nil {
			err = unix.Fchownat(int(fs.Fd()), dir, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW)
		}
		if err != nil {
			fs.Close()
			return nil, fmt.Errorf("make yard: %w", err)
		}
	}
	return fs, nil
}
