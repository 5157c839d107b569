package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// RestoreOptions are those of [Restore] in addition to a container's.
type RestoreOptions struct {
	// Args and Env are the program that restores the processes, and its arguments
	// and environment. Its first argument is its path on the host.
	Args, Env []string
	// Files are the names of held descriptors for the program: the first is
	// [FirstFile] there, the next has the next number.
	Files []string
	// Yard is a directory of the host, which a file system covers that is held as
	// "yard" and has empty directories [YardRoot] and [YardTree].
	Yard string
	// Mounts are paths at which the container has mounts, without links. The program
	// finds a copy of mount i in the yard, by the name i.
	Mounts []string
	// Merge has the kernel merge equal pages of the processes, and of those that they start,
	// with each other's and those of others for which that is wanted, until they are written.
	Merge bool
}

const (
	// FirstFile is above all numbers that a plan's inputs have; next to them there are the
	// standard streams, the child's socket and a few of the keeper's, for which it leaves
	// some reserved.
	FirstFile = 900
	reserved  = 16
	// YardRoot is where in the yard the container's root file system is mounted,
	// and nothing on top of it; YardTree has all of its mounts.
	YardRoot = "root"
	YardTree = "tree"
)

// Restore returns the plan that starts a program which makes a container's
// processes from a checkpoint: CRIU. It is that of a start up to the finished
// mounts, so that each is what the spec says, whatever the checkpoint says. Then
// the process enters a copy of the host's file systems in place of the container's.
// It stays in the PID namespace of the host, with the keeper's privileges.
func Restore(s *specs.Spec, o Options, r RestoreOptions) (*Plan, error) {
	c, err := newRestored(s, o, r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}

	c.privilegedSetup()
	c.enter()
	c.setUpNamespaces()
	c.enterYard(r)
	for _, part := range []func() error{c.mounts, c.devices} {
		if err := part(); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Name, err)
		}
	}

	c.makeWorkingDir()
	c.maskPaths()
	c.protectPaths()
	c.protectRoot()
	for i, p := range r.Mounts {
		c.export(p, strconv.Itoa(i))
	}
	c.cloneMount("copy root", c.root, "", 0, regMount)
	c.intoYard(YardRoot, reg(regMount))

	c.returnToBase()
	c.pivot(hostTree, c.host)
	c.leaveOldRoot("base")
	c.restorer(r)
	// One of these would take the number of an input that is still needed.
	if n := len(c.plan.Inputs); n >= FirstFile-reserved {
		return nil, fmt.Errorf("%s: %w: %d inputs of a restore", o.Name, ErrTooLarge, n)
	}
	return c.plan, nil
}

// Restorable reports why a container with the spec s cannot be restored, nil if it can
// be. The error is [ErrUnsupported].
func Restorable(s *specs.Spec) error {
	_, err := newRestored(s, Options{BundleAt: "/any", BundleRoot: "any"}, RestoreOptions{Args: []string{"/any"}, Yard: "/any"})
	return err
}

// newRestored checks what is asked for.
func newRestored(s *specs.Spec, o Options, r RestoreOptions) (*container, error) {
	if err := checkSpec(s); err != nil {
		return nil, err
	}
	if len(r.Args) == 0 || !strings.HasPrefix(r.Args[0], "/") || clean(r.Yard) == "/" {
		return nil, fmt.Errorf("%w: a restore without a program or a yard", ErrSpec)
	}
	ns, err := parseNamespaces(s.Linux.Namespaces)
	if err != nil {
		return nil, err
	}

	switch {
	case s.Linux.Seccomp != nil && s.Linux.Seccomp.ListenerPath != "":
		return nil, fmt.Errorf("%w: restore of a container whose seccomp filter has an agent", ErrUnsupported)
	case !ns.makes(specs.PIDNamespace):
		return nil, fmt.Errorf("%w: restore of a container without a PID namespace of its own", ErrUnsupported)
	case ns.makes(specs.UserNamespace), ns.has(specs.TimeNamespace):
		return nil, fmt.Errorf("%w: restore in a new user namespace, or a time namespace", ErrUnsupported)
	}

	// The program makes the PID namespace.
	without := *s
	linux := *s.Linux
	linux.Namespaces = slices.DeleteFunc(slices.Clone(linux.Namespaces), func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	without.Linux = &linux
	c, err := newContainer(&without, o)
	if err != nil {
		return nil, err
	}
	if len(c.setup)+len(c.late) > 0 {
		return nil, fmt.Errorf("%w: restore of a container with hooks", ErrUnsupported)
	}
	c.restored = true
	return c, nil
}

// enterYard is [container.enterRoot] with the root in the yard, in a copy of the
// host's file systems.
func (c *container) enterYard(r RestoreOptions) {
	c.host = c.input(Input{Name: hostTree, Kind: InputMount, Path: "/", Recursive: true, Propagation: unix.MS_PRIVATE})
	c.step("mount "+hostTree, unix.SYS_MOVE_MOUNT, c.host, str(""), reg(regBase), str(baseRoot), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	c.step("mount yard", unix.SYS_MOVE_MOUNT, c.held("yard"), str(""), c.host, str(strings.TrimPrefix(clean(r.Yard), "/")), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	c.intoYard(YardTree, c.root)
	c.step("enter root", unix.SYS_FCHDIR, c.root)
	c.step("confine to root", unix.SYS_CHROOT, str("."))
}

// intoYard mounts something at a name in the yard.
func (c *container) intoYard(name string, mount Arg) *Step {
	return c.step("mount yard's "+name, unix.SYS_MOVE_MOUNT, mount, str(""), c.held("yard"), str(name), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// export copies the mount at a path of the container to a name in the yard.
func (c *container) export(path, name string) {
	what := "export mount " + path
	c.open(what+": open directory", path, unix.O_PATH|unix.O_DIRECTORY, noLinks, regKind).ignore(unix.ENOTDIR)
	c.open(what+": open file", path, unix.O_PATH, noLinks, regTarget).when(IfUnset, regKind)
	c.step(what+": make directory", unix.SYS_MKDIRAT, c.held("yard"), str(name), num(0o700)).when(IfSet, regKind)
	c.step(what+": make file", unix.SYS_MKNODAT, c.held("yard"), str(name), num(unix.S_IFREG|0o600), zero()).when(IfSet, regTarget)

	for _, kind := range []Reg{regKind, regTarget} {
		c.cloneMount(what+": copy", reg(kind), "", 0, regMount).when(IfSet, kind)
		c.intoYard(name, reg(regMount)).when(IfSet, kind)
		c.shut(regMount)
		c.shut(kind)
	}
}

// restorer ends the plan with the program.
func (c *container) restorer(r RestoreOptions) {
	for fd := range 3 {
		c.step("null device on descriptor "+strconv.Itoa(fd), unix.SYS_DUP3, c.null(), num(fd), zero())
	}
	c.step("umask 0022", unix.SYS_UMASK, num(0o022))
	if r.Merge {
		c.prctl("merge equal pages", unix.PR_SET_MEMORY_MERGE, 1)
	}
	c.closeOthers(false)
	for i, name := range r.Files {
		c.step(name+" for the program", unix.SYS_DUP3, c.held(name), num(FirstFile+i), zero())
	}
	c.step("exec "+r.Args[0], unix.SYS_EXECVE, str(r.Args[0]), strs(r.Args), strs(r.Env))
}
