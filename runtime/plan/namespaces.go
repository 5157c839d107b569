package plan

import (
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// nsFlags has the clone flag of each kind of namespace.
var nsFlags = map[specs.LinuxNamespaceType]uint64{
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
}

// namespaces are the namespaces of a process: flags of new ones, and the names
// or paths of those to join. Kinds in neither are the host's.
type namespaces struct {
	made   uint64
	joined map[specs.LinuxNamespaceType]string
}

func parseNamespaces(list []specs.LinuxNamespace) (namespaces, error) {
	ns := namespaces{joined: map[specs.LinuxNamespaceType]string{}}
	for _, n := range list {
		flag, ok := nsFlags[n.Type]
		switch {
		case !ok:
			return ns, fmt.Errorf("%w: namespace type %q", ErrSpec, n.Type)
		case ns.has(n.Type):
			return ns, fmt.Errorf("%w: duplicate namespace %q", ErrSpec, n.Type)
		case n.Path == "":
			ns.made |= flag
		default:
			ns.joined[n.Type] = n.Path
		}
	}

	return ns, nil
}

func (n namespaces) makes(t specs.LinuxNamespaceType) bool { return n.made&nsFlags[t] != 0 }

// joins reports whether an existing namespace is joined.
func (n namespaces) joins(t specs.LinuxNamespaceType) bool {
	_, ok := n.joined[t]
	return ok
}

// has reports whether the namespace is not the host's.
func (n namespaces) has(t specs.LinuxNamespaceType) bool { return n.makes(t) || n.joins(t) }

// flags are those of all namespaces that are not the host's.
func (n namespaces) flags() uint64 {
	flags := n.made
	for t := range n.joined {
		flags |= nsFlags[t]
	}
	return flags
}

// forksEarly reports whether the process must be cloned twice, before all
// mounts: a new PID namespace owned by a joined user namespace can only be
// created inside it, and it and a time namespace apply only to children. Only
// the plan's own process is in a new PID namespace.
func (n namespaces) forksEarly() bool {
	return !n.exposed() && (n.makes(specs.PIDNamespace) && n.joins(specs.UserNamespace) || n.has(specs.TimeNamespace))
}

// exposed reports whether other processes see this one before it executes: it
// joins their PID namespace. It does so by a fork as late as possible, see
// [process.expose].
func (n namespaces) exposed() bool { return n.joins(specs.PIDNamespace) }

// namespace returns the descriptor of a namespace to join: held by the caller, or a file.
func (b *builder) namespace(name string) Arg {
	if strings.HasPrefix(name, "/") {
		return b.shared(Input{Name: "namespace " + name, Kind: InputFile, Path: name, OpenFlags: unix.O_RDONLY})
	}
	return b.held(name)
}

// joinOrder is the order in which namespaces are entered: the user namespace
// first, because it gives the right to enter those that it owns.
var joinOrder = []specs.LinuxNamespaceType{
	specs.UserNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace,
	specs.CgroupNamespace, specs.TimeNamespace, specs.PIDNamespace, specs.MountNamespace,
}

// enter joins and creates the namespaces. They are final after it, except for the mounts.
func (c *container) enter() {
	if c.o.Target != nil {
		c.takeProcfs()
	}
	for _, t := range joinOrder {
		name, ok := c.ns.joined[t]
		if !ok {
			continue
		}
		c.step("join namespace "+string(t), unix.SYS_SETNS, c.namespace(name), num(nsFlags[t]))
		if t == specs.UserNamespace {
			c.becomeRoot()
		}
	}

	if c.o.PodBase {
		c.step("join namespace mount", unix.SYS_SETNS, c.held("ns/mnt"), num(uint64(unix.CLONE_NEWNS)))
	}
	if c.ns.makes(specs.TimeNamespace) {
		c.timeNamespace()
	}
	if c.ns.forksEarly() {
		c.fork(c.ns.made &^ (c.plan.Clone.Flags | unix.CLONE_NEWTIME))
		return
	}

	// The root of a cgroup namespace is the group that was joined before.
	c.makeNamespaces(c.ns.made &^ c.plan.Clone.Flags)
}

// takeProcfs copies the procfs that another container has on its /proc, without
// what is mounted on top of it, and checks that it shows the PID namespace to
// join: if that container has changed its mounts, the start fails.
func (c *container) takeProcfs() {
	c.step("join target's mounts", unix.SYS_SETNS, c.held("target"), num(uint64(unix.CLONE_NEWNS)))
	root := c.root
	c.root = here()
	c.open("open target's /proc", "/proc", unix.O_PATH|unix.O_DIRECTORY, noLinks, regTarget)
	c.root = root
	c.step("target's /proc is procfs", unix.SYS_FSTATFS, reg(regTarget), buffer(statfsSize)).Want = words(unix.PROC_SUPER_MAGIC)
	c.cloneMount("copy target's procfs", reg(regTarget), "", 0, regProcfs)
	s := c.step("target's procfs is of its PID namespace", sysFstatat, reg(regProcfs), str("1/ns/pid"), buffer(statSize), zero())
	s.Want = words(c.o.Target.Dev, c.o.Target.Ino)
}

// statSize is room for a struct stat, which begins with device and inode.
const statSize = 256

// makeNamespaces creates further namespaces for the process itself.
func (b *builder) makeNamespaces(flags uint64) {
	if flags != 0 {
		b.step("make namespaces "+flagNames(flags), unix.SYS_UNSHARE, num(flags))
	}
}

// early returns the namespaces that the first clone creates. Those owned by a
// new user namespace are created by its root, which owns their objects.
func (c *container) early() uint64 {
	switch {
	case c.ns.makes(specs.UserNamespace) && c.ns.forksEarly():
		// The first process of a PID namespace cannot have a sibling.
		return unix.CLONE_NEWUSER
	case c.ns.makes(specs.UserNamespace):
		return c.ns.made & (unix.CLONE_NEWUSER | unix.CLONE_NEWPID)
	case c.ns.joins(specs.UserNamespace), c.ns.forksEarly():
		return 0
	case c.o.PodBase:
		return c.ns.made &^ (unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS)
	}
	return c.ns.made &^ unix.CLONE_NEWCGROUP
}

// becomeRoot makes the process, whose IDs are not mapped in the user namespace
// yet, its root.
func (b *builder) becomeRoot() {
	b.step("drop groups", unix.SYS_SETGROUPS, zero(), zero())
	b.step("become group 0", unix.SYS_SETRESGID, zero(), zero(), zero())
	b.step("become user 0", unix.SYS_SETRESUID, zero(), zero(), zero())
}

// fork continues in a new child, which is a sibling of this process.
func (b *builder) fork(flags uint64) *Step {
	name := "clone"
	if flags != 0 {
		name += " into new namespaces " + flagNames(flags)
	}
	s := b.step(name, unix.SYS_CLONE, num(flags|unix.CLONE_PARENT|uint64(unix.SIGCHLD)), zero(), zero(), zero(), zero())
	s.Fork = true

	return s
}

// offsetClocks are the clocks that a time namespace can shift.
var offsetClocks = []string{"monotonic", "boottime"}

func (c *container) timeNamespace() {
	c.step("make namespaces time", unix.SYS_UNSHARE, num(uint64(unix.CLONE_NEWTIME)))
	for _, clock := range offsetClocks {
		if o, ok := c.s.Linux.TimeOffsets[clock]; ok {
			line := fmt.Sprintf("%s %d %d\n", clock, o.Secs, o.Nanosecs)
			c.step("set time offset "+clock, unix.SYS_WRITE, reg(regTime), str(line), num(len(line)))
		}
	}
}

// flagNames lists the kinds of namespace in clone flags, in a fixed order.
func flagNames(flags uint64) string {
	var names []string
	for _, t := range []specs.LinuxNamespaceType{
		specs.UserNamespace, specs.MountNamespace, specs.NetworkNamespace, specs.IPCNamespace,
		specs.UTSNamespace, specs.PIDNamespace, specs.CgroupNamespace,
	} {
		if flags&nsFlags[t] != 0 {
			names = append(names, string(t))
		}
	}
	return strings.Join(names, " ")
}

// HostID is what a user or group of a container is on the host, by the mappings of its
// user namespace. One that is not mapped is itself: without a namespace there are none.
func HostID(maps []specs.LinuxIDMapping, id uint32) uint32 {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID)
		}
	}
	return id
}
