package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec"
	"crisp/runtime/keeper/client"
	"crisp/runtime/rootpath"
)

// pipe returns both ends of a pipe. Unlike os.Pipe it leaves them blocking:
// the end that a container gets must not surprise it with EAGAIN.
func pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// polled turns our end of a pipe over to the network poller, so that a wait
// for it holds no thread and ends when the file is closed.
func polled(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate pipe: %w", err)
	}
	f.Close()
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make pipe non-blocking: %w", err)
	}
	return os.NewFile(uintptr(fd), "pipe"), nil
}

// openStdio makes a container's standard streams and opens its log.
func (p *pod) openStdio(h *held, r *Record, c *Container, pr *process) (*client.LogConfig, error) {
	log := &client.LogConfig{MaxLine: p.m.MaxLogLine}
	out, err := openLog(r.Config.Msg, c.Config.Msg)
	if err != nil {
		return nil, err
	}
	h.own = append(h.own, out)
	log.Out = out
	if c.Config.Msg.GetTty() {
		return log, nil
	}
	if c.Config.Msg.GetStdin() {
		rd, wr, err := pipe()
		if err != nil {
			return nil, err
		}
		h.add("stdin", rd)
		if pr.stdin, err = polled(wr); err != nil {
			return nil, err
		}
	}
	var w *os.File
	if pr.stdout, w, err = pipe(); err != nil {
		return nil, err
	}
	h.add("stdout", w)
	if pr.stderr, w, err = pipe(); err != nil {
		return nil, err
	}
	h.add("stderr", w)
	log.Stdout, log.Stderr = pr.stdout, pr.stderr
	return log, nil
}

// keep names what the keeper holds for a daemon that comes after this one, so
// that this one in turn could hold it for another keeper.
func keep(pr *process) []client.Named {
	var out []client.Named
	for name, f := range map[string]*os.File{"stdin": pr.stdin, "stdout": pr.stdout, "stderr": pr.stderr} {
		if f != nil && f != pr.terminal && isOpen(f) {
			out = append(out, client.Named{Name: name, File: f})
		}
	}
	return out
}

// isOpen tells whether a file was not closed, as the input of a container is
// after its first client.
func isOpen(f *os.File) bool {
	conn, err := f.SyscallConn()
	return err == nil && conn.Control(func(uintptr) {}) == nil
}

// openLog opens a container's log file for appending, below the pod's log
// folder whatever links stand there. Without a folder or path the output goes
// to the null device: it must be read all the same, or the container blocks.
func openLog(sandbox *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) (*os.File, error) {
	if spec.LogPath(sandbox, cfg) == "" {
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	dir, err := os.Open(sandbox.GetLogDirectory())
	if err != nil {
		return nil, fmt.Errorf("open log folder: %w", err)
	}
	defer dir.Close()
	parent, err := rootpath.MkdirAll(dir, filepath.Dir(cfg.GetLogPath()), 0o755, rootpath.Owner{})
	if err != nil {
		return nil, fmt.Errorf("make folder of log file %s: %w", cfg.GetLogPath(), err)
	}
	defer parent.Close()
	fd, err := unix.Openat(int(parent.Fd()), filepath.Base(cfg.GetLogPath()),
		unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log file %s: %w", spec.LogPath(sandbox, cfg), err)
	}
	return os.NewFile(uintptr(fd), cfg.GetLogPath()), nil
}

// ReopenLog makes a running container log to a fresh file at its log path,
// after kubelet renamed the old one.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	c, r, err := m.Container(id)
	if err != nil {
		return err
	}
	if c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("reopen log of container %s: it is %s, not running: %w", c.ID, c.StateName(), ErrState)
	}
	out, err := openLog(r.Config.Msg, c.Config.Msg)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := m.Keeper.Client().ReopenLog(ctx, c.ID, out); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", c.ID, err)
	}
	return nil
}
