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
	"sync"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"crisp/runtime/ordinary"
	"crisp/runtime/span"
)

const (
	// maxStdout and maxStderr bound a plugin's output, in bytes.
	maxStdout = 4 << 20
	maxStderr = 4 << 10
	// pipeDelay is how long a plugin's children may keep its output open after it
	// has exited.
	pipeDelay = time.Second
	// busyDelay is the delay before a binary that is being written is retried.
	busyDelay = 50 * time.Millisecond
)

// runner runs plugins, each in a process group of its own.
type runner struct {
	version.PluginDecoder
	// grace is how long ADD and DEL may keep running after the context has ended.
	// A plugin that is killed midway can leave a state that no DEL repairs, such
	// as a bridge that accepts no more pods.
	grace time.Duration
	// lock is inherited by the plugins: see records.
	lock *os.File
	run  Run
	// builtins are plugins without a program, by type. Only those in served are called;
	// of the others the programs are.
	builtins map[string]Builtin
	served   []string
	meter    Meter // nil for none
	calls    *calls
}

// Meter is told of each call of a plugin: its type, CNI's verb, how long it took and
// whether it failed. It must not block.
type Meter func(plugin, verb string, took time.Duration, err error)

// Builtin is a plugin type that is served in this process. Its functions are safe for
// concurrent use.
type Builtin struct {
	// Call answers one call with what a program would print. An error should be a
	// [*types.Error].
	Call func(context.Context, BuiltinCall) ([]byte, error)
	// Validate refuses a configuration that Call would; chain are those of the plugins
	// before it.
	Validate func(config []byte, chain [][]byte) error
	// New says that new attachments are served. Without it, only those are that were
	// served when they were made; a record says so.
	New bool
}

// BuiltinCall is a call: what a program finds in its environment and standard input.
type BuiltinCall struct {
	Command, ID, NetNS, IfName, Args string
	Config                           []byte
}

// builtinPath stands in for the path of a builtin plugin's program.
const builtinPath = "builtin:"

// Run runs a plugin until it exits. After ctx has ended the plugin may keep running
// for grace; then it is killed and the error is the cause.
type Run func(ctx context.Context, cmd *exec.Cmd, grace time.Duration) error

var _ invoke.Exec = (*runner)(nil)

// FindInPath returns the path of a plugin's binary.
func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	if r.serves(plugin) {
		return builtinPath + plugin, nil
	}
	path, err := invoke.FindInPath(plugin, dirs)
	if err == nil {
		return path, nil
	}
	if r.builtins[plugin].New {
		return "", fmt.Errorf("%w: plugin %s, which attached the pod before crisp served it (builtin_plugins): %w", ErrNoPlugin, plugin, err)
	}
	return "", fmt.Errorf("%w: plugin %s: %w", ErrNoPlugin, plugin, err)
}

// serves reports whether a plugin type is called in this process. A record may be of a later
// release, which served more.
func (r *runner) serves(plugin string) bool {
	_, known := r.builtins[plugin]
	return known && slices.Contains(r.served, plugin)
}

// serving returns a runner that calls only the builtins among some types, with a lock
// for plugins to inherit, or nil.
func (r *runner) serving(types []string, lock *os.File) *runner {
	return &runner{grace: r.grace, lock: lock, run: r.run, builtins: r.builtins, served: types, meter: r.meter, calls: r.calls}
}

// ExecPlugin runs a plugin and returns its output, or a [*PluginError].
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) (output []byte, err error) {
	verb, began := variable(env, "CNI_COMMAND"), time.Now()
	kind := strings.TrimPrefix(filepath.Base(path), builtinPath)
	ctx, end := span.Start(ctx, "plugin "+kind+" "+verb, "cni.plugin", kind, "cni.command", verb)
	defer func() {
		end(err)
		if r.meter != nil {
			r.meter(kind, verb, time.Since(began), err)
		}
	}()
	if plugin, ok := strings.CutPrefix(path, builtinPath); ok {
		return r.callBuiltin(ctx, plugin, stdin, env)
	}
	for {
		output, err := r.runOnce(ctx, path, stdin, env)
		if !errors.Is(err, syscall.ETXTBSY) {
			return output, err
		}

		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(busyDelay):
		}
	}
}

// callBuiltin calls a plugin of this process. Its failure is a [*PluginError] as well.
func (r *runner) callBuiltin(ctx context.Context, plugin string, stdin []byte, env []string) ([]byte, error) {
	call := BuiltinCall{
		Command: variable(env, "CNI_COMMAND"), ID: variable(env, "CNI_CONTAINERID"), NetNS: variable(env, "CNI_NETNS"),
		IfName: variable(env, "CNI_IFNAME"), Args: variable(env, "CNI_ARGS"), Config: stdin,
	}
	failure := &PluginError{Plugin: plugin, Command: call.Command}
	if ctx.Err() != nil {
		failure.Err = context.Cause(ctx)
		return nil, failure
	}

	defer r.calls.begin(&running{id: call.ID, of: Running{Plugin: plugin, Command: call.Command}})()
	output, err := r.builtins[plugin].Call(ctx, call)
	if err == nil {
		return output, nil
	}
	var printed *types.Error
	if errors.As(err, &printed) {
		failure.Code, failure.Msg, failure.Details = printed.Code, printed.Msg, printed.Details
	} else {
		failure.Err = err
	}
	return nil, failure
}

func (r *runner) runOnce(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	failure := &PluginError{Plugin: filepath.Base(path), Command: variable(env, "CNI_COMMAND")}
	if ctx.Err() != nil {
		failure.Err = context.Cause(ctx)
		return nil, failure
	}

	stdout, stderr := &bounded{max: maxStdout}, &bounded{max: maxStderr}
	cmd := exec.Command(path)
	cmd.Env = append(slices.Clip(env), span.Environment(ctx)...)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = pipeDelay

	if r.lock != nil {
		cmd.ExtraFiles = []*os.File{r.lock}
	}

	var grace time.Duration
	if failure.Command == "ADD" || failure.Command == "DEL" {
		grace = r.grace
	}

	end := r.calls.begin(&running{id: variable(env, "CNI_CONTAINERID"), of: Running{Plugin: failure.Plugin, Command: failure.Command}, stdout: stdout, stderr: stderr})
	err := r.run(ctx, cmd, grace)
	end()
	if err == nil && stdout.truncated {
		err = fmt.Errorf("output longer than %d bytes", maxStdout)
	}
	if err == nil {
		err = checkLists(stdout.Bytes())
	}
	if err == nil {
		return stdout.Bytes(), nil
	}

	failure.explain(stdout.Bytes(), stderr.String(), err)
	return nil, failure
}

// explain sets the reason of a failure: the error that the plugin printed as JSON,
// or else its standard error and err.
func (e *PluginError) explain(stdout []byte, stderr string, err error) {
	var printed types.Error
	if json.Unmarshal(stdout, &printed) == nil && (printed.Msg != "" || printed.Code != 0) {
		e.Code, e.Msg, e.Details = printed.Code, printed.Msg, printed.Details
		return
	}
	e.Msg, e.Err = strings.TrimSpace(stderr), err
}

// checkLists refuses a result with a null in a list: libcni dereferences each
// element when it converts results between versions. Invalid JSON is left to
// libcni to refuse.
func checkLists(result []byte) error {
	var lists struct {
		Interfaces, IPs, Routes []any
		IP4, IP6                struct{ Routes []any }
	}

	// Fields of a wrong type are left to libcni too.
	_ = json.Unmarshal(result, &lists)
	for name, list := range map[string][]any{
		"interfaces": lists.Interfaces, "ips": lists.IPs, "routes": lists.Routes,
		"ip4.routes": lists.IP4.Routes, "ip6.routes": lists.IP6.Routes,
	} {
		if slices.ContainsFunc(list, func(v any) bool { return v == nil }) {
			return fmt.Errorf("result has a null in its %s", name)
		}
	}

	return nil
}

// runGroup runs a command that leads a process group. When ctx ends it waits for
// grace, kills the group and returns the cause.
func runGroup(ctx context.Context, cmd *exec.Cmd, grace time.Duration) error {
	if err := ordinary.Start(cmd); err != nil {
		return err
	}

	exited := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		if errors.Is(err, exec.ErrWaitDelay) {
			err = nil
		}
		exited <- err
	}()

	select {
	case err := <-exited:
		return err
	case <-ctx.Done():
	}

	select {
	case err := <-exited:
		return err
	case <-time.After(grace):
	}

	err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	<-exited
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}

	return errors.Join(context.Cause(ctx), err)
}

// variable returns the value of a variable in an environment. As for a program, the
// last one counts: libcni appends its own.
func variable(env []string, name string) string {
	for _, kv := range slices.Backward(env) {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// bounded keeps the first max bytes of what is written to it.
type bounded struct {
	mu sync.Mutex // held while the plugin runs; afterwards nobody else looks
	bytes.Buffer
	max       int
	truncated bool
}

// end is the end of what was written so far.
func (b *bounded) end() string {
	if b == nil {
		return ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	text := b.Bytes()
	return string(text[max(0, len(text)-maxPrinted):])
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	keep := min(len(p), b.max-b.Len())
	b.truncated = b.truncated || keep < len(p)
	b.Buffer.Write(p[:keep])
	return len(p), nil
}
