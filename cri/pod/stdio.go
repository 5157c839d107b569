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

// openStdio makes a container's standard streams and opens its log.
func (p *pod) openStdio(h *held, r *Record, c *Container, pr *process) error {
	out, err := openLog(r.Config.Msg, c.Config.Msg)
	if err != nil {
		return err
	}

	log := &client.LogConfig{MaxLine: p.m.MaxLogLine, Out: out}
	if c.Config.Msg.GetTty() {
		pr.row.Hold(log, nil) // the terminal goes along by itself
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

// openStream makes an output of a container; the end that is written to goes to h.
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

// keep names what the keeper holds for a daemon that comes after this one, so
// that this one in turn could hold it for another keeper. It is the input, if
// that is a pipe.
func (pr *process) keep() []client.Named {
	if pr.stdin == nil || !isOpen(pr.stdin) {
		return nil
	}
	return []client.Named{{Name: "stdin", File: pr.stdin}}
}

// isOpen reports whether a file was not closed, as the input of a container is
// after its first client.
func isOpen(f *os.File) bool {
	conn, err := f.SyscallConn()
	return err == nil && conn.Control(func(uintptr) {}) == nil
}

// openLog opens a container's log file for appending, below the pod's log
// directory whatever links stand there. Without a directory or path the output goes
// to the null device: it must be read all the same, or the container blocks.
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
		return nil, fmt.Errorf("make directory of log file %s: %w", cfg.GetLogPath(), err)
	}
	defer parent.Close()

	f, err := rootpath.AppendFile(parent, filepath.Base(cfg.GetLogPath()), 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log file %s: %w", spec.LogPath(sandbox, cfg), err)
	}
	return f, nil
}

// openLogDirectory opens a pod's log directory, which kubelet makes. A link in its
// place was made by others: a container that was given the node's logs, and
// wants its output written elsewhere on the node (CVE-2025-0750).
func openLogDirectory(path string) (*os.File, error) {
	dir, err := os.OpenFile(filepath.Clean(path), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("open log directory: %w: %s is no directory, or a link: name the directory itself", ErrInvalid, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open log directory: %w", err)
	}
	return dir, nil
}

// ReopenLog makes a running container log to a fresh file at its log path,
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

// maxFormer bounds the files that a log is known to have gone to.
const maxFormer = 4

// offerLog makes out the log of a process. Until the keeper has confirmed it
// the last one is held as well: output may have gone to either if the keeper dies.
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

// confirmLog lets go of the file that is not the log any more, after the
// keeper's answer. Without an answer both are held.
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
