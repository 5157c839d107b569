package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"crisp/runtime/ordinary"
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

// runner runs plugins as processes, each in a process group of its own.
type runner struct {
	version.PluginDecoder
	// grace is how long a plugin that changes things may go on when the
	// context has ended. One that is killed half-way can leave what no DEL
	// repairs: the bridge plugin a bridge that takes no more pods.
	grace time.Duration
	// lock is held open by the plugins: see records.
	lock *os.File
	run  Run
}

// Run runs a plugin to its end. When ctx ends the plugin may go on for grace,
// and the error is the cause.
type Run func(ctx context.Context, cmd *exec.Cmd, grace time.Duration) error

var _ invoke.Exec = (*runner)(nil)

// FindInPath returns the path of a plugin's binary.
func (*runner) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("%w: plugin %s: %w", ErrNoPlugin, plugin, err)
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

func (r *runner) runOnce(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	failure := &PluginError{Plugin: filepath.Base(path), Command: command(env)}
	if ctx.Err() != nil {
		failure.Err = context.Cause(ctx)
		return nil, failure
	}

	answer, complaint := &bounded{max: maxAnswer}, &bounded{max: maxComplaint}
	cmd := exec.Command(path)
	cmd.Env = env
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = answer, complaint
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = pipeDelay

	if r.lock != nil {
		cmd.ExtraFiles = []*os.File{r.lock}
	}

	var grace time.Duration
	if failure.Command == "ADD" || failure.Command == "DEL" {
		grace = r.grace
	}

	err := r.run(ctx, cmd, grace)
	if err == nil && answer.dropped {
		err = fmt.Errorf("answer longer than %d bytes", maxAnswer)
	}
	if err == nil {
		err = checkLists(answer.Bytes())
	}
	if err == nil {
		return answer.Bytes(), nil
	}

	var said types.Error
	if json.Unmarshal(answer.Bytes(), &said) == nil && (said.Msg != "" || said.Code != 0) {
		failure.Code, failure.Msg, failure.Details = said.Code, said.Msg, said.Details
	} else {
		failure.Msg, failure.Err = strings.TrimSpace(complaint.String()), err
	}

	return nil, failure
}

// checkLists refuses an answer with a null in a list: libcni, which converts
// answers from version to version, looks into each element unseen. What is no
// JSON at all is left to libcni to refuse.
func checkLists(answer []byte) error {
	var lists struct {
		Interfaces, IPs, Routes []any
		IP4, IP6                struct{ Routes []any }
	}

	// What does not fit is of another type, which libcni finds too.
	_ = json.Unmarshal(answer, &lists)
	for name, list := range map[string][]any{
		"interfaces": lists.Interfaces, "ips": lists.IPs, "routes": lists.Routes,
		"ip4.routes": lists.IP4.Routes, "ip6.routes": lists.IP6.Routes,
	} {
		if slices.ContainsFunc(list, func(v any) bool { return v == nil }) {
			return fmt.Errorf("answer has a null among its %s", name)
		}
	}

	return nil
}

// runGroup runs a command that leads a process group. When ctx ends it waits
// for grace, kills the group and returns the cause.
func runGroup(ctx context.Context, cmd *exec.Cmd, grace time.Duration) error {
	if err := ordinary.Start(cmd); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		if errors.Is(err, exec.ErrWaitDelay) {
			err = nil
		}
		ended <- err
	}()

	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}

	select {
	case err := <-ended:
		return err
	case <-time.After(grace):
	}

	err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	<-ended
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}

	return errors.Join(context.Cause(ctx), err)
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
