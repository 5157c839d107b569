package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/image"
	"crisp/runtime/cgroup"
	"crisp/runtime/keeper/client"
	"crisp/runtime/launch"
)

// Reasons of a container's exit, as kubelet and its users know them.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "Unknown"
)

// Exit codes that do not come from a process.
const (
	exitStartError = 128
	exitUnknown    = client.ExitUnknown
)

// StartContainer runs a created container. If that fails the container is
// EXITED with reason StartError and the error as its message.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	p, id, err := m.container(id)
	if err != nil {
		return err
	}
	_, err = m.join(ctx, startOf(id), p.operationOn("start", id), func(ctx context.Context) (string, error) {
		release, err := p.lock(ctx)
		if err != nil {
			return "", err
		}
		defer release()
		return "", p.start(ctx, id, nil)
	})
	return err
}

// startOf is the key of a container's start, see [Manager.join].
func startOf(id string) string { return "start of container " + id }

// start starts a container. One of a checkpoint runs no instruction before ready, which may
// be nil, has returned without an error.
func (p *pod) start(ctx context.Context, id string, ready func() error) error {
	r := p.record()
	c := r.Container(id)
	switch {
	case c == nil:
		return fmt.Errorf("container %s: %w", id, ErrNotFound)
	case c.State() != runtimeapi.ContainerState_CONTAINER_CREATED || c.Phase != phaseReady:
		return fmt.Errorf("start container %s: it is %s, not created: %w", id, c.StateName(), ErrState)
	case !r.Ready():
		return fmt.Errorf("start container %s: sandbox %s is not ready: %w", id, r.ID, ErrState)
	case r.Moving != nil:
		return fmt.Errorf("start container %s: sandbox %s: %w", id, r.ID, r.moved())
	}

	if pr := p.process(id); pr != nil && pr.failure != nil { // and could not be recorded
		return fmt.Errorf("start container %s: an earlier start failed: %w: %w", id, ErrState, pr.failure)
	}
	if err := blamePlugins(c, p.launch(ctx, r, c, ready)); err != nil {
		p.startFailed(ctx, id, err)
		return err
	}

	p.m.events.container(p.record(), id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	p.tellContainer(ctx, ContainerStarted, id)
	return nil
}

// startFailed records a failed start. The process may still exist, if the
// keeper's reply was lost.
func (p *pod) startFailed(ctx context.Context, id string, cause error) {
	if pr := p.process(id); pr != nil && pr.group != nil {
		warn(p.m.killGroup(context.WithoutCancel(ctx), pr.group), "kill a failed start", "container", id)
	}
	if c := p.record().Container(id); c != nil {
		p.forgetCheckpoint(c)
	}
	now := time.Now().UnixNano()
	note := func(c *Container) {
		c.StartedAt, c.FinishedAt, c.ExitCode = now, now, exitStartError
		c.Reason, c.Message = reasonStartError, cause.Error()
	}

	defer p.afterEnd(id)
	if err := p.updateContainer(id, note); err != nil && !errors.Is(err, ErrNotFound) {
		p.m.wg.Go(func() { p.persistEnd(id, note, nil) })
	}
	if pr := p.process(id); pr != nil {
		pr.failure = cause
		close(pr.exited)
		if pr.row != nil {
			pr.row.Abandon()
			pr.row.CloseLog()
		}
	}
	p.m.events.container(p.record(), id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	p.tellStopped(ctx, id)
}

// launch gathers descriptors, runs the container's plan and records the
// process. Its errors begin with the plan's name, as those of the plan do.
func (p *pod) launch(ctx context.Context, r *Record, c *Container, ready func() error) error {
	cfg := c.Config.Msg
	name := "start container " + cfg.GetMetadata().GetName()
	s, err := p.loadSpec(c.ID)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}

	if err := p.askStart(ctx, c); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s = withScore(s, c)
	var pr *process
	err = p.stage(ctx, "prepare", func(ctx context.Context) error {
		pr, err = p.prepareProcess(ctx, c, s)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}

	pr.row = p.m.table.Begin(c.ID, client.Container, p.containerHooks(c.ID))
	h := &held{files: launch.Held{}}
	defer h.close()
	if err := p.stage(ctx, "open inputs", func(ctx context.Context) error { return p.gather(ctx, h, r, c, s, pr) }); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}

	hooks := p.hooks(c, s)
	if err := p.oweHooks(c, hooks); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}

	group, err := p.m.place(c, pr.group)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	request := launch.Request{
		ID: c.ID, Name: name, Spec: s, Held: h.files, Group: group, Classed: c.IntelRDT != nil, Log: pr.row.Log(), Keep: pr.keep(), Hooks: hooks, About: p.about(c, s),
		InPod: true, AnyOrder: true, Hierarchies: p.m.Cgroups.Hierarchies(),
		// Another container's PID namespace is not the one of the pod's base.
		Procfs: c.PIDTarget != "" || r.Pause != nil && !r.Procfs,
	}
	var started *client.Started
	err = p.stage(ctx, "run plan", func(ctx context.Context) error {
		if c.Checkpoint {
			started, err = p.restore(ctx, request, c, pr, ready)
		} else {
			started, err = p.m.Launcher.Container(ctx, request)
		}
		return err
	})
	if err != nil {
		limit := c.limits().GetMemoryLimitInBytes()
		if kills, e := pr.group.OOMKills(false); e == nil && kills > 0 && limit > 0 {
			err = fmt.Errorf("%w: its memory limit of %d bytes is too small: %w", err, limit, ErrState)
		}
		return err
	}

	warn(pr.row.Started(p.m.ctx, started), "hand a started container to the new keeper", "container", c.ID)
	if started.Terminal != nil && cfg.GetStdin() {
		pr.stdin = started.Terminal
	}

	identity, err := identify(started.Pid)
	if err != nil {
		identity = &Process{Pid: started.Pid} // already exited; its exit will be reported
	}

	err = p.updateContainer(c.ID, func(c *Container) {
		c.StartedAt, c.Process = started.StartedAt.UnixNano(), identity
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, errors.Join(err, pr.row.Signal(unix.SIGKILL)))
	}
	pr.rootfs.Close()
	pr.rootfs = nil
	p.forgetCheckpoint(c)
	close(pr.started)
	p.poststart(ctx, c, hooks, started.Pid)
	return nil
}

// prepareProcess returns the container's process with its root file system
// mounted and its cgroup open, which a restart of the daemon may have undone.
func (p *pod) prepareProcess(ctx context.Context, c *Container, s *specs.Spec) (*process, error) {
	pr := p.process(c.ID)
	if pr == nil {
		pr = newProcess()
		p.setProcess(c.ID, pr)
	}
	if pr.rootfs == nil {
		root, err := p.m.Images.Mount(ctx, c.ID, image.View{UserNS: p.namespace("user"), Label: s.Linux.MountLabel})
		if err != nil {
			return nil, fmt.Errorf("mount root file system: %w", err)
		}
		pr.rootfs = root
	}
	if pr.group == nil {
		// A restart of the daemon closed it, and with the systemd driver there
		// is no cgroup before there is a process.
		resources, err := p.m.limits(c, s)
		if err != nil {
			return nil, err
		}

		group, err := p.m.Cgroups.Create(ctx, c.CgroupPath, resources)
		if err != nil {
			return nil, fmt.Errorf("create cgroup: %w", err)
		}
		p.setGroup(pr, group)
	}

	return pr, nil
}

// held is a set of descriptors for one launch. Those marked kept outlive it.
type held struct {
	files launch.Held
	own   []*os.File
}

func (h *held) add(name string, f *os.File) {
	h.files[name] = f
	h.own = append(h.own, f)
}

func (h *held) close() {
	for _, f := range h.own {
		f.Close()
	}
}

// gather opens everything that a container's plan refers to.
func (p *pod) gather(ctx context.Context, h *held, r *Record, c *Container, s *specs.Spec, pr *process) error {
	h.files["rootfs"] = pr.rootfs
	for _, kind := range []string{"user", "net", "ipc", "uts", "mnt", "pid"} {
		if f := p.namespace(kind); f != nil {
			h.files["ns/"+kind] = f
		}
	}

	if c.PIDTarget != "" {
		if err := p.holdTarget(h, c.PIDTarget); err != nil {
			return err
		}
	}

	if err := p.holdImages(ctx, h, c, s); err != nil {
		return err
	}
	return p.openStdio(h, r, c, pr)
}

// holdTarget opens the PID namespace of another container of the pod.
func (p *pod) holdTarget(h *held, target string) error {
	_, id, err := p.m.container(target)
	if err != nil {
		return fmt.Errorf("target of the PID namespace: %w", err)
	}

	pr := p.process(id)
	if pr == nil || pr.row == nil || pr.row.PidFD() == nil {
		return fmt.Errorf("target container %s of the PID namespace is not running in this pod: %w", target, ErrState)
	}

	pidfd := pr.row.PidFD()
	f, err := os.Open("/proc/" + strconv.Itoa(pr.row.Pid()) + "/ns/pid")
	if err != nil {
		return fmt.Errorf("open PID namespace of container %s: %w", target, err)
	}

	h.add("ns/pid", f)
	h.files["target"] = pidfd

	// While the pidfd's process lives, its pid was not reused.
	if err := signal0(pidfd); err != nil {
		return fmt.Errorf("target container %s of the PID namespace: %w", target, err)
	}
	return nil
}

func (p *pod) holdImages(ctx context.Context, h *held, c *Container, s *specs.Spec) error {
	view := image.View{UserNS: p.namespace("user"), Label: s.Linux.MountLabel}
	for i, v := range c.ImageVolumes {
		f, err := p.m.Images.MountImage(ctx, v.ImageID, v.SubPath, view)
		if err != nil {
			return fmt.Errorf("%w: at %s: %w", ErrImageVolume, v.Path, err)
		}
		h.add("image/"+strconv.Itoa(i), f)
	}
	return nil
}

// groupOf returns a container's cgroup, which it opens after a restart.
func (p *pod) groupOf(c *Container) (*cgroup.Group, error) {
	if pr := p.process(c.ID); pr != nil && pr.group != nil {
		return pr.group, nil
	}
	return p.m.Cgroups.Open(c.CgroupPath)
}
