package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"crisp/runtime/keeper/client"
)

// cleanTimeout bounds the cleanup after a container's exit.
const cleanTimeout = 30 * time.Second

// recordRetry is the time between attempts to record an exit.
const recordRetry = time.Second

// containerExited records the exit of a container's first process. A keeper may
// report it twice.
func (p *pod) containerExited(id string, e client.Exit) {
	pr := p.process(id)
	if pr == nil {
		return
	}
	select {
	case <-pr.started:
	case <-pr.exited: // the start failed after the process began
		return
	}
	pr.end.Do(func() { p.recordExit(id, pr, e) })
}

// recordExit kills the remaining processes in the container's cgroup, which
// only a shared PID namespace allows, and publishes the exit. On a full disk it
// retries until there is space.
func (p *pod) recordExit(id string, pr *process, e client.Exit) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.m.ctx), cleanTimeout)
	defer cancel()
	e, _ = pr.row.Exit(e)
	oom := max(e.OOMKills, p.emptyCgroup(ctx, id, pr, unix.Signal(e.Signal) == unix.SIGKILL))
	recorded := p.persistEnd(id, func(c *Container) {
		c.FinishedAt, c.ExitCode = e.At.UnixNano(), int32(e.Code)
		c.Reason, c.Message = exitReason(e, oom, c.limits().GetMemoryLimitInBytes())
	}, pr.unrecorded)
	if !recorded {
		return // the keeper holds the exit for the next daemon
	}
	pr.row.End()
	close(pr.exited)
	if c := p.record().Container(id); c != nil && p.m.Meter != nil {
		p.m.Meter.Exited(c.Reason)
	}
	p.m.events.container(p.record(), id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	warn(p.m.Keeper.Forget(ctx, id), "forget an exit", "container", id)

	pr.row.CloseLog()
	warn(closeFiles(pr.stdin), "close a container's input", "container", id)
	p.afterEnd(id)
	p.m.wg.Go(func() { p.tellStopped(p.m.ctx, id) })
}

// persistEnd records the exit of a container, and retries while the disk fails.
// It returns false if the daemon stops before. The reason for the wait is sent
// to the channel, if there is a receiver.
func (p *pod) persistEnd(id string, change func(*Container), why chan<- error) bool {
	for {
		err := p.updateContainer(id, change)
		if err == nil || errors.Is(err, ErrNotFound) {
			return true
		}

		klog.ErrorS(err, "Could not record the exit of a container, will retry", "container", id)
		select {
		case why <- err:
		default:
		}

		select {
		case <-time.After(recordRetry):
		case <-p.m.ctx.Done():
			return false
		}
	}
}

// emptyCgroup counts the OOM kills in a container's cgroup, whose first process may
// have been killed, and empties it.
func (p *pod) emptyCgroup(ctx context.Context, id string, pr *process, killed bool) (oom uint64) {
	if pr.group == nil {
		return 0
	}
	oom, err := pr.group.OOMKills(killed)
	warn(err, "read OOM count", "container", id)
	if p.sharesPID(id) {
		warn(pr.group.Kill(ctx), "kill remaining processes of a container", "container", id)
	}
	return oom
}

// exitReason returns the CRI's reason for an exit, and a message if the kernel
// or a signal caused it. A container was OOM-killed if the kernel killed a
// process in its cgroup and its exit code is not zero.
func exitReason(e client.Exit, oomKills uint64, memoryLimit int64) (reason, message string) {
	switch signal := unix.Signal(e.Signal); {
	case e.Code == 0:
		return reasonCompleted, ""
	case oomKills > 0:
		return reasonOOMKilled, outOfMemory(signal == unix.SIGKILL, oomKills, memoryLimit)
	case signal == unix.SIGSYS:
		return reasonError, "ended by SIGSYS: it made a system call that its seccomp profile kills for"
	case e.Signal > 0:
		return reasonError, fmt.Sprintf("ended by signal %d (%s)", e.Signal, cmp.Or(unix.SignalName(signal), signal.String()))
	default:
		return reasonError, ""
	}
}

// outOfMemory describes which process the kernel killed, where first is the
// container's first one, and for which limit.
func outOfMemory(first bool, kills uint64, limit int64) string {
	victim := "a process other than the first"
	if first {
		victim = "its first process"
	}
	limited := "the container has no limit, so its pod's limit or the node's memory was reached"
	if limit > 0 {
		limited = fmt.Sprintf("the container's limit is %d bytes", limit)
	}
	return fmt.Sprintf("out of memory: the kernel killed %s (%d killed in all): %s", victim, kills, limited)
}

// sharesPID reports whether a container's processes can outlive its first one.
func (p *pod) sharesPID(id string) bool {
	c := p.record().Container(id)
	if c == nil {
		return false
	}
	return c.Config.Msg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() != runtimeapi.NamespaceMode_CONTAINER
}

// firstExited records that the pod's own first process exited and, if the PID
// namespace is shared, all others with it.
func (p *pod) firstExited() {
	p.mu.Lock()
	if p.firstEnded != nil {
		close(p.firstEnded)
		p.firstEnded = nil
	}
	row := p.row
	p.mu.Unlock()
	if row != nil {
		row.End()
	}

	if !p.record().Ready() {
		return
	}

	err := p.update(func(r *Record) {
		if r.Ready() {
			r.Phase, r.Reason = phaseStopping, "the first process of the pod's PID namespace ended"
		}
	})

	warn(err, "record the exit of a pod's first process", "sandbox", p.record().ID)
	p.m.events.sandbox(p.record(), runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}
