package plan

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// container builds the plan of a container's first process.
type container struct {
	process
	// mounted are the targets of the mounts so far.
	mounted []string
	// index is the index in the spec of the present mount, and target its
	// resolved destination.
	index  int
	target string
	// readonly are the targets that become read-only at the end.
	readonly []string
	// dev is the kind of /dev.
	dev devKind
	// host is the host's file systems, if hooks need them.
	host Arg
	// restored says that the program is a restorer's, which makes the PID namespace
	// and mounts each procfs anew.
	restored bool
}

// Container returns the plan that starts a container's first process. A
// namespace's path in the spec is "", for a new one, or the name under which
// the caller holds it, or an absolute path; the root's path is a path on the
// host, unless [Options.PodBase] is set and "rootfs" is held.
func Container(s *specs.Spec, o Options) (*Plan, error) {
	c, err := newContainer(s, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}

	c.privilegedSetup()
	c.enter()
	c.setUpNamespaces()
	c.enterRoot()

	for _, part := range []func() error{c.mounts, c.devices, c.terminal} {
		if err := part(); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Name, err)
		}
	}

	c.makeWorkingDir()
	c.maskPaths()
	c.protectPaths()
	c.finishRoot()
	if err := c.execute(); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}

	return c.plan, nil
}

func newContainer(s *specs.Spec, o Options) (*container, error) {
	if err := checkSpec(s); err != nil {
		return nil, err
	}
	ns, err := parseNamespaces(s.Linux.Namespaces)
	if err != nil {
		return nil, err
	}

	if !ns.has(specs.MountNamespace) {
		return nil, fmt.Errorf("%w: a container in the host's mount namespace", ErrUnsupported)
	}
	if err := checkNamespaces(s, ns); err != nil {
		return nil, err
	}

	c := &container{process: process{builder: newBuilder(o.Name), s: s, p: s.Process, o: o, ns: ns, exposed: ns.exposed()}}
	if err := c.takeHooks(); err != nil {
		return nil, err
	}
	c.root = c.rootInput()
	return c, c.check()
}

// rootInput is the root file system as a detached mount.
func (c *container) rootInput() Arg {
	if !strings.HasPrefix(c.s.Root.Path, "/") {
		return c.held(c.s.Root.Path)
	}
	return c.input(Input{Name: "root file system", Kind: InputMount, Path: c.s.Root.Path, Recursive: true, Propagation: unix.MS_PRIVATE})
}

// checkSpec refuses settings that a plan would silently ignore, except for network
// devices, which the caller moves.
func checkSpec(s *specs.Spec) error {
	switch {
	case s == nil || s.Process == nil || s.Root == nil || s.Linux == nil:
		return fmt.Errorf("%w: process, root or linux is missing", ErrSpec)
	case s.Root.Path == "":
		return fmt.Errorf("%w: no root path", ErrSpec)
	case s.Linux.Personality != nil && s.Linux.Personality.Domain != specs.PerLinux && s.Linux.Personality.Domain != specs.PerLinux32:
		return fmt.Errorf("%w: personality %q", ErrSpec, s.Linux.Personality.Domain)
	case s.Linux.Personality != nil && len(s.Linux.Personality.Flags) > 0:
		return fmt.Errorf("%w: personality flags", ErrUnsupported)
	case !slices.Contains(rootPropagations, s.Linux.RootfsPropagation):
		return fmt.Errorf("%w: rootfsPropagation %q", ErrSpec, s.Linux.RootfsPropagation)
	}
	return nil
}

var rootPropagations = []string{"", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"}

// checkNamespaces refuses settings for a namespace of the host.
func checkNamespaces(s *specs.Spec, ns namespaces) error {
	names, offsets := s.Hostname != "" || s.Domainname != "", len(s.Linux.TimeOffsets) > 0
	switch {
	case names && !ns.has(specs.UTSNamespace):
		return fmt.Errorf("%w: a host or domain name without a UTS namespace would change the host's", ErrSpec)
	case offsets && !ns.has(specs.TimeNamespace):
		return fmt.Errorf("%w: time offsets without a time namespace", ErrSpec)
	case offsets && !ns.makes(specs.TimeNamespace):
		return fmt.Errorf("%w: time offsets for an existing time namespace", ErrSpec)
	}

	for clock := range s.Linux.TimeOffsets {
		if !slices.Contains(offsetClocks, clock) {
			return fmt.Errorf("%w: time offset of clock %q", ErrSpec, clock)
		}
	}

	return nil
}

// privilegedSetup comes before the process enters any namespace, with all the
// keeper's privileges.
func (c *container) privilegedSetup() {
	c.plan.Clone.Flags = c.early()
	c.hide()
	if c.ns.makes(specs.UserNamespace) {
		c.plan.Clone.UIDMap = c.s.Linux.UIDMappings
		c.plan.Clone.GIDMap = c.s.Linux.GIDMappings
	}
	if c.o.Gate || c.ns.makes(specs.UserNamespace) {
		c.wait("wait for the keeper")
	}

	c.joinCgroup(c.o.CgroupV2, c.o.CgroupTasks)
	c.privileged()
	if len(c.s.Linux.TimeOffsets) > 0 {
		// In a user namespace it could no longer be opened.
		c.step("open time offsets", unix.SYS_OPENAT, c.procfs(), str("self/timens_offsets"), num(unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW), zero()).save(regTime)
	}
	if c.ns.makes(specs.UserNamespace) {
		c.becomeRoot()
	}
}

// setUpNamespaces configures the new namespaces.
func (c *container) setUpNamespaces() {
	c.session()
	if c.ns.makes(specs.NetworkNamespace) {
		c.loopbackUp()
	}
	if c.ns.makes(specs.UTSNamespace) {
		c.hostname(c.s.Hostname, c.s.Domainname)
	}

	c.sysctls(c.s.Linux.Sysctl)
	c.keyring()
	if !c.o.PodBase {
		c.base(baseOptions{label: c.s.Linux.MountLabel, userns: c.ns.has(specs.UserNamespace)})
		return
	}
	c.step("open base", unix.SYS_OPENAT, here(), str("/"), num(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC), zero()).save(regBase)
}

// enterRoot mounts the container's file system and makes it the process's root:
// from here on no path leads out of it. It becomes the root of the mount
// namespace in [container.finishRoot]; until then the base stays attached,
// because only attached mounts can be copied, and beneath, because ".." in the
// root leads to what is mounted on top of it.
func (c *container) enterRoot() {
	if c.o.DeviceNodes {
		// Beneath the root, only to be copied from: see [container.node].
		c.step("mount device nodes", unix.SYS_MOVE_MOUNT, c.held("devices"), str(""), reg(regBase), str(baseRoot), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	}
	if len(c.setup) > 0 {
		c.mountInHost()
	} else {
		c.step("mount root", unix.SYS_MOVE_MOUNT, c.root, str(""), reg(regBase), str(baseRoot), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	}
	c.step("enter root", unix.SYS_FCHDIR, c.root)
	c.step("confine to root", unix.SYS_CHROOT, str("."))
}

func (c *container) finishRoot() {
	if len(c.setup) > 0 {
		c.returnToBase()
		c.runSetupHooks()
		c.protectRoot()
		c.pivot("root", c.root)
		c.leaveOldRoot(hostTree)
	} else {
		c.protectRoot()
		c.returnToBase()
		c.pivot("root", c.root)
		c.leaveOldRoot("base")
	}

	// Only a private mount can become the root.
	switch c.s.Linux.RootfsPropagation {
	case "shared", "rshared":
		c.setAttr("share root mount", c.root, 0, 0, 0, unix.MS_SHARED)
	case "unbindable", "runbindable":
		c.setAttr("make root mount unbindable", c.root, 0, 0, 0, unix.MS_UNBINDABLE)
	}
}

func (c *container) returnToBase() {
	c.step("return to base", unix.SYS_FCHDIR, reg(regBase))
	c.step("confine to base", unix.SYS_CHROOT, str("."))
}

// protectRoot makes what is mounted read-only, as configured.
func (c *container) protectRoot() {
	c.finishReadonly()
	if c.s.Root.Readonly {
		c.setAttr("make root read-only", c.root, 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
}

// makeWorkingDir creates the working directory if it is missing.
func (c *container) makeWorkingDir() {
	if dir := c.workingDir(); dir != "/" && !below(dir, "/proc") {
		c.makeDirs("make working directory "+dir, dir)
	}
}

// workingDir is the resolved working directory, as far as known.
func (c *container) workingDir() string {
	if c.o.WorkingDir != "" {
		return clean(c.o.WorkingDir)
	}
	return clean(c.p.Cwd)
}

// makeDirs creates the missing directories of a path inside the root.
func (b *builder) makeDirs(what, dir string) {
	b.open(what+": look", dir, unix.O_PATH|unix.O_DIRECTORY, inRoot, regKind).ignore(unix.ENOENT, unix.EACCES)
	parts := strings.Split(strings.TrimPrefix(dir, "/"), "/")
	parent := "/"
	for _, part := range parts {
		b.open(what+": open "+parent, parent, unix.O_PATH|unix.O_DIRECTORY, inRoot, regDir).when(IfUnset, regKind)
		b.step(what+": make "+part, unix.SYS_MKDIRAT, reg(regDir), str(part), num(0o755)).ignore(unix.EEXIST).when(IfUnset, regKind)
		b.shut(regDir)
		parent = path.Join(parent, part)
	}
	b.shut(regKind)
}

// clean returns an absolute path without dots, as the container sees it.
func clean(p string) string { return path.Join("/", p) }

// below reports whether a clean path is dir or below it.
func below(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}
