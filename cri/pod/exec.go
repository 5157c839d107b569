package pod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/pod/stdio"
	"crisp/cri/spec"
	"crisp/runtime/keeper/client"
	"crisp/runtime/launch"
)

// Exec runs a command in a running container and returns its exit code, 128
// plus the signal's number if one killed it. If ctx ends first the command is
// killed, with its process group, and the error is the cause. The keeper may
// die meanwhile.
func (m *Manager) Exec(ctx context.Context, id string, cmd []string, st stdio.Streams) (int, error) {
	p, id, err := m.container(id)
	if err != nil {
		return 0, err
	}

	if len(cmd) == 0 {
		return 0, fmt.Errorf("exec in container %s: %w: no command", id, ErrInvalid)
	}
	c := p.record().Container(id)
	pr := p.process(id)
	if c == nil || pr == nil || c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return 0, fmt.Errorf("exec in container %s: it is not running: %w", id, ErrState)
	}
	if r := p.record(); r.Moving != nil {
		return 0, fmt.Errorf("exec in container %s: its pod: %w", id, r.moved())
	}

	code, err := p.exec(ctx, c, pr, cmd, st)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return code, nil
}

func (p *pod) exec(ctx context.Context, c *Container, pr *process, cmd []string, st stdio.Streams) (int, error) {
	s, err := p.loadSpec(c.ID)
	if err != nil {
		return 0, err
	}

	s = withScore(s, c)
	proc := *s.Process
	proc.Args, proc.Terminal = cmd, st.TTY
	if st.TTY {
		proc.Env = withTerm(proc.Env)
	}

	if err := spec.CheckArguments(&proc, p.m.Host); err != nil {
		return 0, err
	}
	run, err := stdio.Begin(p.m.table, commandPrefix(c.ID)+newID()[:16], st)
	if err != nil {
		return 0, err
	}
	defer p.m.endCommand(ctx, run)

	group, err := p.m.place(c, pr.group)
	if err != nil {
		return 0, err
	}
	started, err := p.startCommand(ctx, pr, run, launch.Request{
		ID: run.ID(), Name: "exec in container " + c.Config.Msg.GetMetadata().GetName(), Spec: s, Process: &proc,
		Group: group, Member: pr.row.Pid(), InPod: true, About: p.about(c, s),
	})
	if err != nil {
		return 0, err
	}
	return run.Run(ctx, p.m.ctx, started)
}

// commandPrefix begins the keeper's IDs of a container's commands.
func commandPrefix(id string) string { return id[:16] + "-exec-" }

// startCommand starts the requested command with its ends of the pipes. Other
// descriptors are closed once it has started, however long it runs.
func (p *pod) startCommand(ctx context.Context, pr *process, run *stdio.Command, r launch.Request) (*client.Started, error) {
	h := &held{files: launch.Held{}}
	defer h.close()
	if err := p.holdProcess(h, pr); err != nil {
		return nil, err
	}

	maps.Copy(h.files, run.Theirs())
	r.Held = h.files
	return p.m.Launcher.Exec(ctx, r)
}

// endCommand has the keeper forget a command, for which the caller need not
// wait. One that is still dying is forgotten once it has exited.
func (m *Manager) endCommand(ctx context.Context, c *stdio.Command) {
	c.Close()
	m.wg.Go(func() {
		err := m.Keeper.Forget(context.WithoutCancel(ctx), c.ID())
		if !errors.Is(err, client.ErrRunning) {
			warn(err, "forget a command", "command", c.ID())
		}
	})
}

// holdProcess gives an exec the descriptor through which it joins.
func (p *pod) holdProcess(h *held, pr *process) error {
	fd, err := unix.FcntlInt(pr.row.PidFD().Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("duplicate pidfd: %w", err)
	}
	h.add("pidfd", os.NewFile(uintptr(fd), "pidfd"))
	if f := p.namespace("user"); f != nil {
		h.files["ns/user"] = f
	}
	return nil
}

func withTerm(env []string) []string {
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		return env
	}
	return append(append([]string(nil), env...), "TERM=xterm")
}
