package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/hook"
	"crisp/runtime/keeper/client"
)

// agentTime bounds the time until an agent has the listener of a filter, and that
// which it may take for the calls of a start.
const agentTime = 10 * time.Second

// listenerLink is what the kernel calls the listener of a seccomp filter.
const listenerLink = "anon_inode:seccomp notify"

// handOver gives the listener of a process's filter to the agent of its profile, with
// the state of the container, as the OCI runtime-spec has it. The process waits
// meanwhile, and closes its own descriptor afterwards, so that the agent has the only
// one: when the agent is gone, the kernel has the calls fail with ENOSYS.
func (l *Launcher) handOver(ctx context.Context, r *Request, w client.Waiting) error {
	profile := r.Spec.Linux.Seccomp
	err := func() error {
		listener, err := takeListener(w)
		if err != nil {
			return err
		}
		defer listener.Close()

		state, err := json.Marshal(r.processState(w.Pid))
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, l.agentTime)
		defer cancel()
		return send(ctx, profile.ListenerPath, state, listener)
	}()
	if err != nil {
		return fmt.Errorf("%w: give the listener of the seccomp filter to the agent at %s: %w", ErrAgent, profile.ListenerPath, err)
	}
	return nil
}

// processState is what the agent is told. A command's own process is not the
// container's.
func (r *Request) processState(pid int) specs.ContainerProcessState {
	state := specs.State{
		Version: specs.Version, ID: r.About.ID, Status: specs.StateCreating, Pid: pid, Bundle: r.About.Bundle, Annotations: r.Spec.Annotations,
	}
	if r.Process != nil {
		state.Status, state.Pid = specs.StateRunning, r.Member
	}
	return specs.ContainerProcessState{
		Version: specs.Version, Fds: []string{specs.SeccompFdName}, Pid: pid, Metadata: r.Spec.Linux.Seccomp.ListenerMetadata, State: state,
	}
}

// takeListener duplicates the listener of a process that waits.
func takeListener(w client.Waiting) (*os.File, error) {
	dir := fmt.Sprintf("/proc/%d/fd", w.Pid) // it waits, so nobody else can have its ID
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}

	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || link != listenerLink {
			continue
		}
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		fd, err := unix.PidfdGetfd(int(w.PidFD.Fd()), number, 0)
		if err != nil {
			return nil, fmt.Errorf("duplicate descriptor %d of process %d: %w", number, w.Pid, err)
		}
		return os.NewFile(uintptr(fd), "listener"), nil
	}
	return nil, errors.New("the process has no listener")
}

// send sends a message with a descriptor on a connection of its own.
func send(ctx context.Context, socket string, message []byte, f *os.File) error {
	c, err := dial(ctx, socket)
	if err != nil {
		return refusal(ctx, err)
	}
	defer c.Close()
	// A write ends with the context.
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()

	conn, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("connection of type %T", c)
	}
	n, _, err := conn.WriteMsgUnix(message, unix.UnixRights(int(f.Fd())), nil)
	if err == nil && n < len(message) {
		_, err = c.Write(message[n:])
	}
	return refusal(ctx, err)
}

// dial connects to a socket whose queue may be full for a while.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	const again = 20 * time.Millisecond
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if !errors.Is(err, unix.EAGAIN) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(again):
		}
	}
}

// refusal is the error of an agent that does not accept, or does not read, in time.
func refusal(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("it does not read: %w", ctx.Err())
	}
	return err
}

// patience ends a start whose agent has the listener and does not answer.
type patience struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	limit  time.Duration
	// Used by the one that asks: what ends the start, and who has the listener.
	timer  *time.Timer
	socket string
}

// newPatience returns the context of a start.
func (l *Launcher) newPatience(ctx context.Context) (*patience, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	return &patience{ctx: ctx, cancel: cancel, limit: l.agentTime}, ctx
}

// begin gives an agent its time, and hooks that are subject to its filter theirs.
func (a *patience) begin(socket string, late []hook.Hook) {
	limit := a.limit
	for _, h := range late {
		limit += h.Limit()
	}
	a.socket = socket
	a.timer = time.AfterFunc(limit, func() {
		a.cancel(fmt.Errorf("%w: the one at %s has not let the program start within %v", ErrAgent, socket, limit))
	})
}

// blame names the agent in the error of a call that the kernel does not have for the
// process, if an agent has the listener: it is likely to be gone.
func (a *patience) blame(err error) error {
	if a.socket == "" || !errors.Is(err, unix.ENOSYS) {
		return err
	}
	return fmt.Errorf("%w: %w: the one at %s decides about calls of the start, and may be gone", err, ErrAgent, a.socket)
}

func (a *patience) end() {
	if a.timer != nil {
		a.timer.Stop()
	}
	a.cancel(nil)
}

// verdict is the error of a start: that of the agent, if that was the reason. A
// process that was killed in the middle of execve may be taken for one that has
// started.
func (a *patience) verdict(started *client.Started, err error) (*client.Started, error) {
	cause := context.Cause(a.ctx)
	switch {
	case !errors.Is(cause, ErrAgent):
		return started, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", err, cause)
	}
	_ = unix.PidfdSendSignal(int(started.PidFD.Fd()), unix.SIGKILL, nil, 0) // it fails if it has exited
	started.Close()
	return nil, cause
}
