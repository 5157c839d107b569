package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/pod/stdio"
	"crisp/cri/spec"
	"crisp/runtime/keeper/client"
	"crisp/runtime/rootpath"
)

// openStdio creates a container's standard streams and opens its log.
func (p *pod) openStdio(h *held, r *Record, c *Container, pr *process) error {
	out, err := openLog(r.Config.Msg, c.Config.Msg)
	if err != nil {
		return err
	}

	log := &client.LogConfig{MaxLine: p.m.MaxLogLine, Out: out}
	if c.Config.Msg.GetTty() {
		pr.row.Hold(log, nil) // the keeper holds the terminal anyway
		log.Stdout, err = client.NewTerminalStream(p.m.MaxLogLine)
		return err
	}

	pr.row.Hold(log, pr.keep)
	if c.Config.Msg.GetStdin() {
		rd, wr, err := stdio.Pipe()
		if err != nil {
			return err
		}
		h.add("stdin", rd)
		if pr.stdin, err = stdio.Polled(wr); err != nil {
			return err
		}
	}
	if log.Stdout, err = p.openStream(h, "stdout"); err != nil {
		return err
	}

	log.Stderr, err = p.openStream(h, "stderr")
	return err
}

// openStream creates an output of a container; its write end is added to h.
func (p *pod) openStream(h *held, name string) (*client.Stream, error) {
	rd, wr, err := stdio.Pipe()
	if err != nil {
		return nil, err
	}
	h.add(name, wr)
	st, err := client.NewStream(rd, p.m.MaxLogLine)
	if err != nil {
		rd.Close()
	}
	return st, err
}

// keep returns the descriptors that the keeper holds for the next daemon, so
// that the daemon in turn can pass them to another keeper. It is the input, if
// that is a pipe.
func (pr *process) keep() []client.Named {
	if pr.stdin == nil || !isOpen(pr.stdin) {
		return nil
	}
	return []client.Named{{Name: "stdin", File: pr.stdin}}
}

// isOpen reports whether a file is open; the input of a container is closed
// after its first client.
func isOpen(f *os.File) bool {
	conn, err := f.SyscallConn()
	return err == nil && conn.Control(func(uintptr) {}) == nil
}

// openLog opens a container's log file for appending, below the pod's log
// directory, following no links. Without a directory or path the output goes to
// the null device: it must still be read, or the container blocks.
func openLog(sandbox *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) (*os.File, error) {
	if spec.LogPath(sandbox, cfg) == "" {
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	dir, err := openLogDirectory(sandbox.GetLogDirectory())
	if err != nil {
		return nil, err
	}
	defer dir.Close()

	parent, err := rootpath.MkdirAll(dir, filepath.Dir(cfg.GetLogPath()), 0o755, rootpath.Owner{})
	if err != nil {
		return nil, fmt.Errorf("create directory of log file %s: %w", cfg.GetLogPath(), err)
	}
	defer parent.Close()

	f, err := rootpath.AppendFile(parent, filepath.Base(cfg.GetLogPath()), 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log file %s: %w", spec.LogPath(sandbox, cfg), err)
	}
	return f, nil
}

// openLogDirectory opens a pod's log directory, which kubelet creates. A link
// in its place is an attack: by a container that has the node's logs mounted,
// and redirects its output elsewhere on the node (CVE-2025-0750).
func openLogDirectory(path string) (*os.File, error) {
	dir, err := os.OpenFile(filepath.Clean(path), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("open log directory: %w: %s is not a directory, or a link: use the directory itself", ErrInvalid, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open log directory: %w", err)
	}
	return dir, nil
}

// ReopenLog makes a running container log to a new file at its log path,
// after kubelet renamed the old one.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	p, id, err := m.container(id)
	if err != nil {
		return err
	}

	r := p.record()
	c, pr := r.Container(id), p.process(id)
	if c == nil || pr == nil || c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("reopen log of container %s: it is not running: %w", id, ErrState)
	}

	pr.reopening.Lock()
	defer pr.reopening.Unlock()
	out, err := openLog(r.Config.Msg, c.Config.Msg)
	if err != nil {
		return err
	}

	pr.offerLog(out)
	err = m.Keeper.Retry(ctx, func(k *client.Client) error { return k.ReopenLog(ctx, id, out) })
	pr.confirmLog(err)
	if err != nil {
		return fmt.Errorf("reopen log of container %s: %w", id, err)
	}
	return nil
}

// maxFormer bounds the known former files of a log.
const maxFormer = 4

// offerLog sets the new log of a process. Until the keeper has confirmed it the
// last one is held as well: if the keeper dies output may be in either.
func (pr *process) offerLog(out *os.File) {
	pr.row.ChangeLog(func(l client.LogConfig) client.LogConfig {
		l.Former = append(slices.Clone(l.Former), l.Out)
		if len(l.Former) > maxFormer {
			l.Former[0].Close()
			l.Former = l.Former[1:]
		}
		l.Out = out
		return l
	})
}

// confirmLog drops the file that is no longer the log, after the keeper's
// reply. Without a reply both are held.
func (pr *process) confirmLog(err error) {
	pr.row.ChangeLog(func(l client.LogConfig) client.LogConfig {
		last := len(l.Former) - 1
		switch {
		case err == nil:
			warn(closeFiles(l.Former...), "close a former log")
			l.Former = nil
		case client.Refused(err):
			warn(l.Out.Close(), "close a log that is not used")
			l.Out, l.Former = l.Former[last], l.Former[:last:last]
		}
		return l
	})
}
