package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

const (
	// maxAnswer and maxComplaint bound what a plugin's standard output and
	// error may amount to.
	maxAnswer    = 4 << 20
	maxComplaint = 4 << 10
	// pipeDelay is how long a plugin's children may keep its output open
	// after it has ended.
	pipeDelay = time.Second
	// busyDelay is the pause before a binary that is being written is tried
	// again.
	busyDelay = 50 * time.Millisecond
)

// runner runs plugins as processes, each in a process group of its own that
// is killed as a whole when the context ends.
type runner struct {
	version.PluginDecoder
}

var _ invoke.Exec = (*runner)(nil)

// FindInPath returns the path of a plugin's binary.
func (*runner) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("plugin %s: %w", plugin, err)
	}
	return path, nil
}

// ExecPlugin runs a plugin and returns its answer, or a [*PluginError].
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	for {
		answer, err := r.runOnce(ctx, path, stdin, env)
		if !errors.Is(err, syscall.ETXTBSY) {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(busyDelay):
		}
	}
}

func (*runner) runOnce(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	answer, complaint := &bounded{max: maxAnswer}, &bounded{max: maxComplaint}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = env
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = answer, complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = pipeDelay

	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err == nil && answer.dropped {
		err = fmt.Errorf("answer longer than %d bytes", maxAnswer)
	}
	if err == nil {
		return answer.Bytes(), nil
	}
	return nil, explain(ctx, path, env, err, answer, complaint)
}

// explain makes an error of the answer of a plugin that ended with err.
func explain(ctx context.Context, path string, env []string, err error, answer, complaint *bounded) error {
	e := &PluginError{Plugin: filepath.Base(path), Command: command(env)}
	var said types.Error
	if ctx.Err() != nil {
		e.Err = context.Cause(ctx)
	} else if json.Unmarshal(answer.Bytes(), &said) == nil && (said.Msg != "" || said.Code != 0) {
		e.Code, e.Msg, e.Details = said.Code, said.Msg, said.Details
		return e
	} else {
		e.Err = err
	}
	e.Msg = strings.TrimSpace(complaint.String())
	return e
}

func command(env []string) string {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok {
			return value
		}
	}
	return ""
}

// bounded keeps the first max bytes of what is written to it.
type bounded struct {
	bytes.Buffer
	max     int
	dropped bool
}

func (b *bounded) Write(p []byte) (int, error) {
	keep := min(len(p), b.max-b.Len())
	b.dropped = b.dropped || keep < len(p)
	b.Buffer.Write(p[:keep])
	return len(p), nil
}
