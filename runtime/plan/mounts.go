package plan

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mounts makes the spec's mounts in order.
func (c *container) mounts() error {
	for i := range c.s.Mounts {
		m := c.s.Mounts[i]
		c.index, c.target = i, c.landing(i)
		if err := c.mount(&m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		c.mounted = append(c.mounted, c.target)
	}
	return nil
}

// landing is the resolved destination of a mount, as far as known.
func (c *container) landing(i int) string {
	if i < len(c.o.Targets) {
		return clean(c.o.Targets[i])
	}
	return clean(c.s.Mounts[i].Destination)
}

func (c *container) mount(m *specs.Mount) error {
	dest := clean(m.Destination)
	if dest == "/" || strings.IndexByte(m.Destination, 0) >= 0 {
		return fmt.Errorf("%w: destination %q", ErrSpec, m.Destination)
	}

	o, err := parseOptions(m.Options, m.Type == "bind")
	if err != nil {
		return err
	}

	if err := checkBelowProc(m, dest, o.bind); err != nil {
		return err
	}
	what := "mount " + dest
	switch kind := c.kind(m, &o); kind {
	case "procs":
		return c.joinedProcfs(what, dest, o)
	case "bind":
		return c.bind(what, dest, m, o)
	case "image":
		c.image(what, dest, m.Source, o)
	case "shm":
		c.cloneMount(what+": copy", reg(regBase), baseShm, 0, regMount)
		c.setAttr(what+": options", reg(regMount), 0, o.mount(), o.clear, 0)
		c.place(what, dest, reg(regMount), true)
	case "cgroup":
		c.cgroup(what, dest, o)
	default:
		if o.copyUp && kind != "tmpfs" {
			return fmt.Errorf("%w: mount option tmpcopyup of a %s: only for tmpfs", ErrSpec, kind)
		}
		if name := c.o.CopiedUp[c.index]; name != "" {
			c.image(what, dest, name, c.delayReadonly(kind, dest, o))
			return nil
		}
		if m.Source != "" && m.Source != "none" {
			o.data = slices.Insert(o.data, 0, fsOption{key: "source", value: m.Source})
		}
		c.fresh(what, dest, kind, c.delayReadonly(kind, dest, o))
	}

	return nil
}

// delayReadonly leaves a read-only file system writable while targets are
// created in it, until [container.finishReadonly].
func (c *container) delayReadonly(kind, dest string, o mountOptions) mountOptions {
	if o.mount()&unix.MOUNT_ATTR_RDONLY == 0 || kind != "tmpfs" && dest != "/dev" {
		return o
	}
	filled := dest == "/dev" || below(c.workingDir(), c.target)
	for i := c.index + 1; i < len(c.s.Mounts); i++ {
		filled = filled || c.landing(i) != c.target && below(c.landing(i), c.target)
	}
	if filled {
		c.readonly = append(c.readonly, c.target)
		o.set &^= unix.MOUNT_ATTR_RDONLY
		o.all.set &^= unix.MOUNT_ATTR_RDONLY
	}
	return o
}

// finishReadonly makes the file systems of [container.delayReadonly] read-only.
func (c *container) finishReadonly() {
	for _, target := range c.readonly {
		what := "make read-only " + target
		c.open(what+": open", target, unix.O_PATH, inRoot, regTarget)
		c.setAttr(what, reg(regTarget), 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
		c.shut(regTarget)
	}
}

// kind is the effective type of a mount. A file system of a host namespace
// cannot be mounted in a user namespace: there the host's mount is bound.
func (c *container) kind(m *specs.Mount, o *mountOptions) string {
	if o.bind {
		return "bind"
	}
	foreign := func(t specs.LinuxNamespaceType) bool { return c.userns() && !c.ns.has(t) }
	rebind := ""
	switch m.Type {
	case "proc":
		if c.ns.joins(specs.PIDNamespace) {
			return "procs"
		}
		if foreign(specs.PIDNamespace) {
			rebind = "/proc"
		}
	case "sysfs":
		if foreign(specs.NetworkNamespace) {
			rebind = "/sys"
		}
	case "mqueue":
		if foreign(specs.IPCNamespace) {
			rebind = "/dev/mqueue"
		}
	case "cgroup", "cgroup2":
		if c.ns.has(specs.CgroupNamespace) || c.o.CgroupDir != "" && len(c.o.Hierarchies) > 0 {
			return "cgroup"
		}
		// Mounting the unified hierarchy here would change the options of the
		// host's mount.
		rebind = "/sys/fs/cgroup"
	case "shm":
		if m.Source != "pod" || !c.o.PodBase {
			return "tmpfs"
		}
	}
	if rebind == "" {
		return m.Type
	}

	m.Source = rebind
	o.bind, o.recursive, o.data = true, true, nil
	if c.restored && m.Type == "proc" {
		// It stands for the new procfs, which has none of the host's mounts below it.
		o.recursive = false
	}
	o.all.set |= o.set & unix.MOUNT_ATTR_RDONLY
	return "bind"
}

// binds below /proc that stand in for single files of it, as lxcfs makes them.
var procFiles = []string{
	"cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev",
	"sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
}

// checkBelowProc refuses mounts that would give a container a fake /proc.
func checkBelowProc(m *specs.Mount, dest string, bind bool) error {
	switch {
	case !below(dest, "/proc"):
		return nil
	case dest == "/proc" && (!bind && m.Type == "proc" || bind && clean(m.Source) == "/proc"):
		return nil
	case bind && slices.Contains(procFiles, strings.TrimPrefix(dest, "/proc/")):
		return nil
	}
	return fmt.Errorf("%w: nothing but proc may be mounted on /proc, and nothing below it", ErrSpec)
}

func (c *container) bind(what, dest string, m *specs.Mount, o mountOptions) error {
	if !strings.HasPrefix(m.Source, "/") {
		return fmt.Errorf("%w: source %q is not absolute", ErrSpec, m.Source)
	}
	if (len(m.UIDMappings) == 0) != (len(m.GIDMappings) == 0) {
		return fmt.Errorf("%w: id mappings of users or of groups only", ErrSpec)
	}

	if o.idmap && len(m.UIDMappings) == 0 {
		// Those of the container's user namespace, if it has one.
		m.UIDMappings, m.GIDMappings = c.s.Linux.UIDMappings, c.s.Linux.GIDMappings
	}

	in := Input{
		Name: what, Kind: InputMount, Path: m.Source, Recursive: o.recursive,
		AttrSet: o.set, AttrClear: o.clear, Propagation: o.propagation,
		UIDMap: m.UIDMappings, GIDMap: m.GIDMappings, IDMapRecursive: o.idmapAll,
	}

	// The mounts below a slave or private mount are like it, as by default.
	ownOnly := o.ownOnly && (o.propagation == unix.MS_SHARED || o.propagation == unix.MS_UNBINDABLE)
	if in.Propagation == 0 || ownOnly {
		in.Propagation = unix.MS_PRIVATE
	}

	// The launcher sets those of the tree first, though they must be applied last.
	later := o.all.clear != 0 || o.all.set&o.clear != 0
	if !later {
		in.AttrSetRecursive = o.all.set
	}

	if dest == "/dev" {
		c.dev = devBound
	}

	mount := c.input(in)
	if later {
		c.setAttr(what+": options of all", mount, unix.AT_RECURSIVE, o.all.set, o.all.clear, 0)
	}

	if ownOnly {
		c.setAttr(what+": propagation", mount, 0, 0, 0, o.propagation)
	}
	c.place(what, dest, mount, false)
	return nil
}

// image mounts an image volume that the caller holds.
func (c *container) image(what, dest, name string, o mountOptions) {
	mount := c.held(name)
	c.place(what, dest, mount, false)
	if o.mount()|o.clear != 0 {
		c.setAttr(what+": options", mount, 0, o.mount(), o.clear, 0)
	}
}

// fresh mounts a new file system.
func (c *container) fresh(what, dest, fsType string, o mountOptions) {
	to := regMount
	switch {
	case dest == "/dev":
		to, c.dev = regDev, devOwn
	case dest == "/dev/pts" && fsType == "devpts":
		to = regPts
	}

	if mode, ok := c.o.TargetModes[c.index]; ok && fsType == "tmpfs" {
		o.data = withMode(o.data, mode)
	}
	if fsType == "tmpfs" || fsType == "devpts" {
		o.data = labelled(o.data, c.s.Linux.MountLabel)
	}

	c.fileSystem(what, fsType, o.mount(), o.data, to)
	if o.propagation != 0 {
		c.setAttr(what+": propagation", reg(to), 0, 0, 0, o.propagation)
	}

	if fsType == "mqueue" {
		c.labelRoot(what, reg(to))
	}
	c.place(what, dest, reg(to), true)

	if to == regDev {
		c.fillDev()
	}
}

// joinedProcfs mounts the procfs of a PID namespace to join. The process is not
// in it yet and cannot mount one.
func (c *container) joinedProcfs(what, dest string, o mountOptions) error {
	if len(o.data) > 0 {
		return fmt.Errorf("%w: options for the procfs of a shared PID namespace", ErrUnsupported)
	}

	procfs := reg(regMount)
	switch {
	case c.o.Target != nil:
		procfs = reg(regProcfs)
	case c.o.Procfs:
		procfs = c.held("procfs/pid")
	default:
		c.cloneMount(what+": copy", reg(regBase), baseProcs, 0, regMount)
	}

	c.setAttr(what+": options", procfs, 0, o.mount(), o.clear, 0)
	c.place(what, dest, procfs, true)

	return nil
}

// statfsSize is room for a struct statfs, which begins with the file system's type.
const statfsSize = 256

// labelRoot labels the root of mqueue, a file system without a label option. In
// a user namespace it has no labels at all, and without an IPC namespace it is
// the node's.
func (c *container) labelRoot(what string, mount Arg) {
	label := c.s.Linux.MountLabel
	if label == "" || c.userns() || !c.ns.has(specs.IPCNamespace) {
		return
	}
	c.step(what+": open root", unix.SYS_OPENAT, mount, str("."), num(unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC), zero()).save(regDir)
	c.step(what+": label", unix.SYS_FSETXATTR, reg(regDir), str("security.selinux"), str(label), num(len(label)), zero()).ignore(unix.EOPNOTSUPP)
	c.shut(regDir)
}

// place attaches a detached mount at its destination. The launcher creates a
// destination in the root file system; one inside another mount is created
// here.
func (c *container) place(what, dest string, mount Arg, dir bool) {
	target := c.target
	parent, name := path.Split(target)
	parent = clean(parent)
	switch {
	case parent == "/dev" && c.dev == devOwn && dir:
		c.step(what+": make directory", unix.SYS_MKDIRAT, reg(regDev), str(name), num(0o755)).ignore(unix.EEXIST)
	case c.nested(target) && (below(dest, "/proc") || !below(target, "/proc")):
		c.makeTarget(what, parent, name, mount, dir)
	}

	resolve := uint64(inRoot)
	for _, top := range []string{"/proc", "/sys", "/dev"} {
		if below(dest, top) {
			// An image with a link here is not trustworthy.
			resolve = noLinks
		}
	}

	c.open(what+": open target", target, unix.O_PATH, resolve, regTarget)
	if !below(dest, "/proc") {
		// [checkBelowProc] cannot know where links of the image lead.
		s := c.step(what+": target is not in procfs", unix.SYS_FSTATFS, reg(regTarget), buffer(statfsSize))
		s.Avoid = words(unix.PROC_SUPER_MAGIC)
	}

	c.attach(what, mount, regTarget)
	c.shut(regTarget)
	if mount.Kind == ArgReg && Reg(mount.Int) == regMount {
		c.shut(regMount)
	}
}

// nested reports whether a destination is inside another mount.
func (c *container) nested(dest string) bool {
	return slices.ContainsFunc(c.mounted, func(m string) bool { return m != dest && below(dest, m) })
}

func (c *container) hasMount(dest string) bool { return slices.Contains(c.mounted, dest) }

// makeTarget creates a missing mount target, a directory or a file like the mount itself.
func (c *container) makeTarget(what, parent, name string, mount Arg, dir bool) {
	c.makeDirs(what, parent)
	c.open(what+": open "+parent, parent, unix.O_PATH|unix.O_DIRECTORY, inRoot, regDir)
	mkdir := func() *Step {
		return c.step(what+": make directory", unix.SYS_MKDIRAT, reg(regDir), str(name), num(0o755)).ignore(unix.EEXIST)
	}

	if dir {
		mkdir()
	} else {
		c.step(what+": directory or file", unix.SYS_OPENAT, mount, str("."), num(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC), zero()).
			ignore(unix.ENOTDIR).save(regKind)
		mkdir().when(IfSet, regKind)
		c.step(what+": make file", unix.SYS_MKNODAT, reg(regDir), str(name), num(unix.S_IFREG|0o644), zero()).
			ignore(unix.EEXIST).when(IfUnset, regKind)
		c.shut(regKind)
	}
	c.shut(regDir)
}

// cgroup mounts the container's view of cgroups: the unified hierarchy, or a
// directory with all those of v1.
func (c *container) cgroup(what, dest string, o mountOptions) {
	if len(c.o.Hierarchies) == 0 {
		c.fresh(what, dest, "cgroup2", mountOptions{set: o.mount(), propagation: o.propagation})
		return
	}

	hierarchies := labelled([]fsOption{{key: "mode", value: "755"}, {key: "size", value: "64k"}}, c.s.Linux.MountLabel)
	c.fileSystem(what, "tmpfs", o.mount()&^unix.MOUNT_ATTR_RDONLY, hierarchies, regCgroup)
	c.place(what, dest, reg(regCgroup), true)
	for _, h := range c.o.Hierarchies {
		sub := what + "/" + h.Dir
		c.step(sub+": make directory", unix.SYS_MKDIRAT, reg(regCgroup), str(h.Dir), num(0o755))
		mount := c.hierarchy(sub, h, o)
		c.step(sub, unix.SYS_MOVE_MOUNT, mount, str(""), reg(regCgroup), str(h.Dir), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
		c.shut(regMount)
		if !strings.Contains(h.Dir, ",") {
			continue
		}

		for _, name := range strings.Split(h.Dir, ",") {
			c.step(what+"/"+name+": link", unix.SYS_SYMLINKAT, str(h.Dir), reg(regCgroup), str(name))
		}
	}

	if o.mount()&unix.MOUNT_ATTR_RDONLY != 0 {
		c.setAttr(what+": make read-only", reg(regCgroup), 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
	c.shut(regCgroup)
}

// hierarchy is a cgroup v1 hierarchy as the container sees it. Without a cgroup
// namespace of its own, its group's directory is bound.
func (c *container) hierarchy(what string, h Hierarchy, o mountOptions) Arg {
	if !c.ns.has(specs.CgroupNamespace) {
		return c.input(Input{
			Name: what, Kind: InputMount, Path: path.Join("/sys/fs/cgroup", h.Dir, c.o.CgroupDir),
			AttrSet: o.mount(), Propagation: unix.MS_PRIVATE,
		})
	}
	var options []fsOption
	for _, opt := range h.Options {
		key, value, has := strings.Cut(opt, "=")
		options = append(options, fsOption{key: key, value: value, flag: !has})
	}
	c.fileSystem(what, "cgroup", o.mount(), options, regMount)
	return reg(regMount)
}

// maskPaths covers paths that the container must not see. Only now is it known
// whether one is a directory or a file, or exists. The covers come from the
// base, which no process in a container can reach.
func (c *container) maskPaths() {
	for _, p := range distinct(c.s.Linux.MaskedPaths) {
		what := "mask " + p
		c.open(what+": look for directory", p, unix.O_PATH|unix.O_DIRECTORY, inRoot, regKind).ignore(unix.ENOENT, unix.ENOTDIR)
		c.open(what+": look for file", p, unix.O_PATH, inRoot, regTarget).ignore(unix.ENOENT, unix.ENOTDIR).when(IfUnset, regKind)
		c.cloneMount(what+": copy empty directory", reg(regBase), baseMask, 0, regMount).when(IfSet, regKind)
		c.attach(what+" (directory)", reg(regMount), regKind).when(IfSet, regKind)
		c.shut(regMount)
		c.cloneMount(what+": copy null device", reg(regBase), baseNull, 0, regMount).when(IfSet, regTarget)
		c.attach(what+" (file)", reg(regMount), regTarget).when(IfSet, regTarget)
		c.shut(regMount)
		c.shut(regTarget)
		c.shut(regKind)
	}
}

// distinct returns clean paths without duplicates.
func distinct(list []string) []string {
	var out []string
	for _, p := range list {
		if p = clean(p); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// protectPaths makes paths read-only by a read-only copy on top of them.
func (c *container) protectPaths() {
	for _, p := range distinct(c.s.Linux.ReadonlyPaths) {
		what := "make read-only " + p
		c.open(what+": open", p, unix.O_PATH, inRoot, regTarget).ignore(unix.ENOENT, unix.ENOTDIR)
		c.cloneMount(what+": copy", reg(regTarget), "", unix.AT_RECURSIVE, regMount).when(IfSet, regTarget)
		c.setAttr(what+": set", reg(regMount), unix.AT_RECURSIVE, unix.MOUNT_ATTR_RDONLY, 0, 0).when(IfSet, regTarget)
		c.attach(what, reg(regMount), regTarget).when(IfSet, regTarget)
		c.shut(regMount)
		c.shut(regTarget)
	}
}
