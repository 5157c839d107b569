package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/cgroup"
	"crisp/runtime/checkpoint"
	"crisp/runtime/criu"
	"crisp/runtime/failpoint"
	"crisp/runtime/keeper/client"
	"crisp/runtime/launch"
)

const (
	// restoreTime bounds how long CRIU may take to make a container's processes.
	restoreTime = 5 * time.Minute
	// unpackedDir is the directory in a container's own with the checkpoint that it
	// was created from, until it is started.
	unpackedDir = "checkpoint"
	// startDir is the directory in that one with the files of a start. They are changed for it,
	// and if it is interrupted, the next one has to find them as they were.
	startDir = "start"
	// yardDir is a directory below the state directory, always empty: see
	// [launch.Restoration].
	yardDir = "yard"
	// usersYard is the directory for a pod in a user namespace, whose root may not enter
	// the state directory. In it CRIU makes files for a moment.
	usersYard = "/tmp"
)

// The descriptors for CRIU, in this order.
const (
	socketFile = "criu"
	nullFile   = "null"
	imagesFile = "images"
)

// restore makes the processes of a container of the checkpoint that it was created
// from. It is the counterpart of [launch.Launcher.Container].
func (p *pod) restore(ctx context.Context, r launch.Request, c *Container, pr *process, ready func() error) (*client.Started, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, restoreTime, fmt.Errorf("%w after %v", ErrTimeout, restoreTime))
	defer cancel()
	ctx, done := p.interruptible(ctx, []string{c.ID})
	defer done()
	program, err := p.m.CRIU.Find(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	session, err := program.NewSession()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	defer session.Close()

	x, ask, err := p.restoration(ctx, c, r, session)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	if f := r.Held[imagesFile]; f != nil {
		defer f.Close()
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	defer null.Close()
	r.Held[socketFile], r.Held[nullFile] = session.Socket(), null

	var restorer *client.Started
	err = failpoint.Between("start CRIU", func() error {
		restorer, err = p.m.Launcher.Restore(ctx, r, x)
		return err
	})
	if err != nil {
		if restorer != nil {
			restorer.Close()
		}
		return nil, err
	}
	defer restorer.Close()
	started := client.Started{StartedAt: restorer.StartedAt}
	err = session.Run(ctx, ask, func(e criu.Event) error {
		switch e.Stage {
		case criu.Terminal:
			return errors.Join(closeFiles(started.Terminal), takeTerminal(&started, e.File))
		case criu.Ready:
			made := criu.Restored{Restorer: restorer.Pid, Tree: x.TreeIn(), First: e.First, Spec: r.Spec}
			if err := verify(made, pr.group); err != nil {
				return err
			}
			err := failpoint.Between("hand over", func() error { return p.handOver(ctx, r, &started, e.First) })
			if err != nil || ready == nil {
				return err
			}
			return ready()
		}
		return nil
	})
	if err == nil && started.PidFD == nil {
		err = errors.New("CRIU said nothing of the first process")
	}
	if err != nil {
		// CRIU lets them go at the last stage, whatever the answer.
		err = errors.Join(err, p.m.killGroup(context.WithoutCancel(ctx), pr.group))
		started.Close()
		return nil, fmt.Errorf("%s: %w", r.Name, timedOut(ctx, err))
	}
	return &started, nil
}

// takeTerminal takes a terminal that CRIU has made.
func takeTerminal(s *client.Started, f *os.File) error {
	if f == nil {
		return errors.New("CRIU has made a terminal and did not pass it")
	}
	s.Terminal = f
	return nil
}

// verify compares all processes in a container's cgroup, but CRIU, with what a start of
// the container would give them.
func verify(made criu.Restored, group *cgroup.Group) error {
	pids, err := group.Pids()
	if err != nil {
		return err
	}
	made.Pids = slices.DeleteFunc(pids, func(pid int) bool { return pid == made.Restorer })
	if !slices.Contains(made.Pids, made.First) {
		return fmt.Errorf("restored process %d is not in the container's cgroup", made.First)
	}
	return made.Verify()
}

// handOver makes the restored process the container's.
func (p *pod) handOver(ctx context.Context, r launch.Request, s *client.Started, pid int) error {
	if r.Spec.Process.Terminal != (s.Terminal != nil) {
		return fmt.Errorf("%w: the checkpointed process has a terminal: %v, and the container: %v", ErrInvalid, s.Terminal != nil, r.Spec.Process.Terminal)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open restored process %d: %w", pid, err)
	}
	s.Pid, s.PidFD = pid, os.NewFile(uintptr(fd), "pidfd")
	return p.m.Keeper.Client().Replace(ctx, client.Adoption{ID: r.ID, Kind: client.Container, Started: *s, Log: r.Log, Keep: r.Keep})
}

// restoration is what CRIU gets, and what it is asked for.
func (p *pod) restoration(ctx context.Context, c *Container, r launch.Request, session *criu.Session) (launch.Restoration, criu.Restore, error) {
	inUsers := joins(r.Spec, specs.UserNamespace)
	x := launch.Restoration{Yard: filepath.Join(p.m.StateDir, yardDir), Env: session.Env(), Merge: p.record().Merge}
	if inUsers {
		x.Yard = usersYard
	}
	dir := filepath.Join(p.unpackedPath(c.ID), startDir)
	images := filepath.Join(dir, checkpoint.ImagesDir)
	ask := criu.Restore{
		Images: images, Work: dir, Root: x.RootIn(),
		Mounts: map[string]string{}, Files: map[string]int{},
		AppArmor: r.Spec.Process.ApparmorProfile, SELinux: r.Spec.Process.SelinuxLabel,
	}
	err := removeTree(ctx, dir)
	if err == nil {
		_, err = checkpoint.OpenSnapshot(p.unpackedPath(c.ID)).Clone(ctx, p.unpackedPath(c.ID), startDir)
	}
	if err != nil {
		return x, ask, err
	}

	filter, err := p.m.Launcher.Filter(r.Spec.Linux.Seccomp)
	if err != nil {
		return x, ask, err
	}
	if filter != nil {
		if err := criu.SetFilter(ctx, images, filter.Prog, filter.Flags); err != nil {
			return x, ask, err
		}
	}
	needs, err := p.inspect(ctx, c, r, images)
	if err != nil {
		return x, ask, err
	}
	if err := p.refillUsed(ctx, dir, r.Spec, needs); err != nil {
		return x, ask, err
	}
	if err := criu.WindTimers(ctx, images); err != nil {
		return x, ask, err
	}
	x.Mounts, ask.Connections = needs.Mounts, needs.Connections
	for i, key := range x.Mounts {
		ask.Mounts[key] = x.MountIn(i)
	}
	shared := slices.DeleteFunc([]specs.LinuxNamespaceType{specs.UserNamespace, specs.UTSNamespace, specs.IPCNamespace}, func(kind specs.LinuxNamespaceType) bool {
		return !joins(r.Spec, kind)
	})
	if err := criu.EnterNamespaces(ctx, images, shared, launch.RootOwner(r.Spec)); err != nil {
		return x, ask, err
	}

	streams, err := checkpoint.ReadStreams(dir)
	if err != nil {
		return x, ask, err
	}
	if streams == (checkpoint.Streams{}) {
		streams = needs.Streams // of an engine that does not note them
	}
	give := func(name, key string) {
		x.Files = append(x.Files, name)
		if key != "" {
			ask.Files[key] = x.FileIn(len(x.Files) - 1)
		}
	}
	give(socketFile, "")
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		if r.Held[name] == nil {
			name = nullFile
		}
		give(name, streams[i])
	}
	if r.Held["ns/net"] != nil {
		give("ns/net", "net")
	}
	if inUsers {
		if r.Held[imagesFile], err = os.Open(images); err != nil {
			return x, ask, err
		}
		give(imagesFile, "")
		ask.Inside, ask.Work = x.FileIn(len(x.Files)-1), images
	}
	x.Args = session.Args(x.FileIn(0))
	return x, ask, nil
}

// inspect has a look at CRIU's images before CRIU does, and returns what the container
// must be given.
func (p *pod) inspect(ctx context.Context, c *Container, r launch.Request, images string) (criu.Needs, error) {
	targets, err := p.m.Launcher.Targets(ctx, r)
	if err != nil {
		return criu.Needs{}, err
	}
	allowed, err := criu.AllowedBy(r.Spec, func(path string) (string, error) { return cmp.Or(targets[path], filepath.Clean(path)), nil })
	if err != nil {
		return criu.Needs{}, err
	}
	allowed.Trusted = c.CheckpointTrusted
	found, err := criu.Inspect(ctx, images)
	if err != nil {
		return criu.Needs{}, err
	}

	var kept []netip.Addr
	if c.CheckpointTrusted {
		kept = p.record().kept()
	}
	return found.Needs(kept...), found.Check(allowed)
}

// forgetCheckpoint removes, in the background, the checkpoint that a container was
// created from: once it was started it is of no use.
func (p *pod) forgetCheckpoint(c *Container) {
	if c.Checkpoint {
		p.m.wg.Go(func() {
			warn(removeTree(p.m.ctx, p.unpackedPath(c.ID)), "remove the checkpoint of a started container", "container", c.ID)
		})
	}
}

// joins reports whether a spec has a namespace of the pod's.
func joins(s *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind && strings.HasPrefix(n.Path, "ns/") })
}
