package plan

import (
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/hook"
)

// hostTree names the host's file systems in a plan.
const hostTree = "host's file systems"

// takeHooks reads the spec's hooks that the plan has steps for.
func (c *container) takeHooks() error {
	for _, h := range hook.List(c.s.Hooks, nil) {
		if err := h.Validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrSpec, err)
		}
		switch {
		case h.Kind.Setup():
			c.setup = append(c.setup, h)
		case h.Kind == hook.StartContainer:
			c.late = append(c.late, h)
		}
	}

	at, root := c.o.BundleAt, c.o.BundleRoot
	if len(c.setup) > 0 && (!strings.HasPrefix(at, "/") || clean(at) == "/" || root == "") {
		return fmt.Errorf("%w: hooks without a bundle", ErrSpec)
	}
	return nil
}

// seen reports whether other processes of the container exist before this one
// executes: those that it joins, or its startContainer hooks.
func (c *process) seen() bool { return c.exposed || len(c.late) > 0 }

// mountInHost mounts the container's root where hooks find it: in a copy of the
// host's file systems, at the bundle's directory for it.
func (c *container) mountInHost() {
	c.host = c.input(Input{Name: hostTree, Kind: InputMount, Path: "/", Recursive: true, Propagation: unix.MS_PRIVATE})
	bundle := c.held("bundle")
	c.step("mount "+hostTree, unix.SYS_MOVE_MOUNT, c.host, str(""), reg(regBase), str(baseRoot), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	c.step("mount bundle", unix.SYS_MOVE_MOUNT, bundle, str(""), c.host, str(strings.TrimPrefix(clean(c.o.BundleAt), "/")), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	c.step("mount root in bundle", unix.SYS_MOVE_MOUNT, c.root, str(""), bundle, str(c.o.BundleRoot), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// runSetupHooks waits for the hooks that run before the container's root is
// entered. A hook that joins the mount namespace starts in its root: for that
// time it is the host's file systems.
func (c *container) runSetupHooks() {
	c.pivot(hostTree, c.host)
	c.leaveOldRoot("base")
	for _, h := range c.setup {
		c.waitForHook(h)
	}
}

// waitForHook makes the process wait until the daemon has run a hook.
func (c *process) waitForHook(h hook.Hook) {
	words := strings.Join(append([]string{h.Path}, h.Argv()[1:]...), " ")
	c.step(string(h.Kind)+" hook "+words, unix.SYS_READ, Arg{Kind: ArgSync, Int: AskDaemon}, buffer(1), num(1))
}

// Hook returns the plan of a hook of the container with spec s, except for
// startContainer hooks, whose plan is made by [Exec]. What the hook gets as
// standard streams is held as "stdin", "stdout" and "stderr", and for a hook in
// the container's namespaces its process, which waits, as "pidfd".
//
// The hook runs with the keeper's privileges, or with all of the container's
// user namespace.
func Hook(s *specs.Spec, h hook.Hook, name string) (*Plan, error) {
	if err := h.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := checkSpec(s); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	ns, err := parseNamespaces(s.Linux.Namespaces)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}

	b := newBuilder(name)
	b.hide()
	if h.Kind == hook.CreateContainer {
		b.joinWaiting(ns)
	}
	b.step("make session", unix.SYS_SETSID)
	b.step("join session keyring", unix.SYS_KEYCTL, num(unix.KEYCTL_JOIN_SESSION_KEYRING), zero()).ignore(unix.ENOSYS)
	b.step("enter /", unix.SYS_CHDIR, str("/"))
	for fd, stream := range []string{"stdin", "stdout", "stderr"} {
		b.step(stream, unix.SYS_DUP3, b.held(stream), num(fd), zero())
	}

	b.step("umask 0022", unix.SYS_UMASK, num(0o022))
	b.closeOthers(false)
	b.usualFiles()
	b.step("exec "+h.Path, unix.SYS_EXECVE, str(h.Path), strs(h.Argv()), strs(h.Env))
	return b.plan, nil
}

// joinWaiting enters the namespaces of a container whose process waits. Into an
// existing PID namespace it has not gone itself yet: processes of others are
// there, which must not see a hook with privileges.
func (b *builder) joinWaiting(ns namespaces) {
	flags := ns.flags() &^ unix.CLONE_NEWTIME
	if ns.exposed() {
		flags &^= unix.CLONE_NEWPID
	}
	b.step("join namespaces "+flagNames(flags), unix.SYS_SETNS, b.held("pidfd"), num(flags))
	if ns.has(specs.UserNamespace) {
		b.becomeRoot()
	}
	if flags&unix.CLONE_NEWPID != 0 {
		b.fork(0)
	}
}
