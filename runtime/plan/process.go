package plan

import (
	"cmp"
	"fmt"
	"math/bits"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/capability"
	"crisp/runtime/hook"
)

// process builds the common part of a container's first process and of exec processes.
type process struct {
	*builder
	s  *specs.Spec
	p  *specs.Process
	o  Options
	ns namespaces
	// exposed: the process is forked where others see it, see [process.expose].
	exposed bool
	// setup are the hooks before the container's root is entered, late those
	// before the program.
	setup, late []hook.Hook
}

// userns reports whether the process is in a user namespace of its pod.
func (c *process) userns() bool { return c.ns.has(specs.UserNamespace) }

// hide keeps the processes of a joined namespace from tracing this one before
// it has executed.
func (b *builder) hide() { b.prctl("forbid tracing", unix.PR_SET_DUMPABLE, 0) }

// joinCgroup moves the process into its cgroup. On v1 "0" written to a tasks
// file means the writer, which is cheapest for the kernel.
func (b *builder) joinCgroup(v2 bool, tasks int) {
	if v2 {
		b.plan.Clone.Cgroup = int(b.held("cgroup").Int)
	}
	for i := range tasks {
		name := "cgroup/" + strconv.Itoa(i)
		b.step("join "+name, unix.SYS_WRITE, b.held(name), str("0"), num(1))
	}
}

// keyring gives the process a session keyring of its own, not the keeper's. It
// has no name by which it could be joined, and processes that do not possess it
// cannot see it: most containers without a user namespace have the same user.
// Exec processes do not share the keyring of their container's first process.
func (c *process) keyring() {
	const possessorMayAll = 0x3f000000
	c.labelKeys(c.p.SelinuxLabel)
	c.step("join session keyring", unix.SYS_KEYCTL, num(unix.KEYCTL_JOIN_SESSION_KEYRING), zero()).
		ignore(unix.ENOSYS).save(regFile)
	c.step("close keyring to its user", unix.SYS_KEYCTL, num(unix.KEYCTL_SETPERM), reg(regFile), num(possessorMayAll)).
		when(IfSet, regFile)
}

// personality makes the kernel report a 32-bit machine, if requested.
func (c *process) personality() {
	p := c.s.Linux.Personality
	if p == nil {
		return
	}
	const perLinux, perLinux32 = 0, 8
	domain := perLinux
	if p.Domain == specs.PerLinux32 {
		domain = perLinux32
	}
	c.step("personality "+string(p.Domain), unix.SYS_PERSONALITY, num(domain))
}

// label sets the security label of the program, through a procfs that no mount
// of the container can replace, and verifies it.
func (c *process) label() {
	if profile := c.p.ApparmorProfile; profile != "" {
		c.confine(profile)
	}
	c.labelProgram(c.p.SelinuxLabel)
}

// confine sets the AppArmor profile for the next execve.
func (b *builder) confine(profile string) {
	// The attributes have their own directory since Linux 5.8.
	want := profile + " ("
	if profile == "unconfined" {
		want = profile
	}
	b.attribute("AppArmor profile", "self/attr/apparmor/exec", "exec "+profile, want)
}

// labelProgram sets the SELinux label for the next execve.
func (b *builder) labelProgram(label string) {
	if label != "" {
		b.attribute("SELinux label", "self/attr/exec", label, label)
	}
}

// labelKeys sets the SELinux label of the keyrings that the process creates.
// Otherwise they would have the keeper's, and be inaccessible to the container.
// The kernel resets it at execve.
func (b *builder) labelKeys(label string) {
	if label != "" {
		b.attribute("SELinux label of keys", "self/attr/keycreate", label, label)
	}
}

func (b *builder) attribute(what, path, value, want string) {
	b.step("open "+what, unix.SYS_OPENAT, b.procfs(), str(path), num(unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW), zero()).save(regFile)
	b.step("set "+what+" "+value, unix.SYS_WRITE, reg(regFile), str(value), num(len(value)))
	s := b.step("check "+what, unix.SYS_PREAD64, reg(regFile), buffer(labelSize), num(labelSize), zero())
	s.Want = []byte(want)
	b.shut(regFile)
}

// labelSize is enough for any label of the kernel.
const labelSize = 4096

// standard sets up the standard streams.
func (c *process) standard() {
	if c.o.Terminal {
		for fd := range 3 {
			c.step("terminal on descriptor "+strconv.Itoa(fd), unix.SYS_DUP3, reg(regSlave), num(fd), zero())
		}
		return
	}
	for fd, name := range []string{"stdin", "stdout", "stderr"} {
		from := c.null()
		if held := []bool{c.o.HasStdin, !c.o.NoStdout, !c.o.NoStderr}; held[fd] {
			from = c.held(name)
		}
		c.step(name, unix.SYS_DUP3, from, num(fd), zero())
	}
}

// execute covers all steps from the finished mounts to the program itself.
func (c *process) execute() error {
	c.personality()
	c.label()
	c.standard()
	umask := uint32(0o022)

	if c.p.User.Umask != nil {
		umask = *c.p.User.Umask
	}
	c.step(fmt.Sprintf("umask %04o", umask), unix.SYS_UMASK, num(umask))
	c.enterWorkingDirAsRoot()
	c.closeOthers(c.seen())
	c.limits()

	sets := c.capSets()
	c.bound(sets)
	c.identity()
	if !c.exposed {
		// A user that already has too many processes can still become this
		// process and execute the program, but not fork.
		c.limitProcesses()
	}

	c.enterWorkingDir()
	if !c.p.NoNewPrivileges {
		// Loading a filter takes privileges unless no_new_privs is set, so it
		// comes before they are dropped, but after all other steps: a profile
		// need not allow the calls of the setup.
		c.seccomp()
	}

	c.capabilities(sets)
	if c.p.NoNewPrivileges {
		c.prctl("no new privileges", unix.PR_SET_NO_NEW_PRIVS, 1)
	}
	if c.seen() {
		// Changing the user may have made it dumpable.
		c.hide()
	}
	if c.p.NoNewPrivileges {
		c.seccomp()
	}

	for _, h := range c.late {
		c.waitForHook(h)
	}
	if c.exposed {
		c.expose()
	}

	return c.exec()
}

// expose continues in a process that the others of its PID namespace see. They
// may be able to trace it, to take its descriptors, and to stop it. It has no
// more than they have: it is in the container's namespaces and root, with the
// program's identity, capabilities and filter, has only the standard streams
// and the socket for its report open, and no memory but this plan.
func (c *process) expose() {
	fork := c.fork(0)
	fork.Exposed = true
	c.pass(fork)
	// Only the process itself can start its session.
	c.pass(c.step("make session", unix.SYS_SETSID))
	if c.o.Terminal {
		c.pass(c.step("control terminal", unix.SYS_IOCTL, zero(), num(unix.TIOCSCTTY), zero()))
	}
	c.limitProcesses()
}

// pass gives a step the token for the filter, see [Filter.Pass].
func (c *process) pass(s *Step) {
	if f := c.o.Seccomp; f != nil && f.Pass != [2]uint64{} {
		for len(s.Args) < 4 {
			s.Args = append(s.Args, zero())
		}
		s.Args = append(s.Args[:4:4], num(f.Pass[0]), num(f.Pass[1]))
	}
}

// session makes the process a session leader, unless a later fork will be.
func (c *process) session() {
	if !c.exposed {
		c.step("make session", unix.SYS_SETSID)
	}
}

// check refuses an invalid process before anything is built.
func (c *process) check() error {
	switch {
	case c.p == nil:
		return fmt.Errorf("%w: no process", ErrSpec)
	case len(c.p.Args) == 0 || c.p.Args[0] == "":
		return fmt.Errorf("%w: no program to run", ErrSpec)
	case !strings.HasPrefix(c.p.Cwd, "/"):
		return fmt.Errorf("%w: working directory %q is not absolute", ErrSpec, c.p.Cwd)
	}

	for _, text := range append(append([]string{c.p.Cwd}, c.p.Args...), c.p.Env...) {
		if strings.IndexByte(text, 0) >= 0 {
			return fmt.Errorf("%w: NUL in %q", ErrSpec, text)
		}
	}

	return c.checkLimits()
}

// seccomp loads the filter. One about whose calls an agent decides has a listener:
// the process waits until the agent has it, and has it no more itself, before
// anything else is subject to the filter.
func (c *process) seccomp() {
	f := c.o.Seccomp
	if f == nil {
		return
	}
	load := c.step("load seccomp filter", unix.SYS_SECCOMP, num(unix.SECCOMP_SET_MODE_FILTER), num(f.Flags), Arg{Kind: ArgFilter, Bytes: f.Prog})
	if f.Flags&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
		return
	}

	load.save(regFile)
	c.step("listener to the agent of the filter", unix.SYS_READ, Arg{Kind: ArgSync, Int: AskDaemon}, buffer(1), num(1))
	c.step("close listener", unix.SYS_CLOSE, reg(regFile))
}

// enterWorkingDirAsRoot enters the working directory as root: a user may start in a
// directory that only root can enter. Where root has fewer rights than the
// user, as on NFS, [process.enterWorkingDir] tries again.
func (c *process) enterWorkingDirAsRoot() {
	dir := clean(c.p.Cwd)
	c.open("open working directory "+dir, dir, unix.O_PATH|unix.O_DIRECTORY, inRoot, regDir).ignore(unix.EACCES)
	c.step("enter working directory", unix.SYS_FCHDIR, reg(regDir)).ignore(unix.EACCES).when(IfSet, regDir).save(regCwd)
	c.checkWorkingDir(IfSet)
}

func (c *process) enterWorkingDir() {
	dir := clean(c.p.Cwd)
	root := c.root
	if c.seen() {
		c.root = here() // all other descriptors are closed by then
	}
	c.open("open working directory "+dir+" as user", dir, unix.O_PATH|unix.O_DIRECTORY, inRoot, regDir).when(IfUnset, regCwd)
	c.root = root
	c.step("enter working directory as user", unix.SYS_FCHDIR, reg(regDir)).when(IfUnset, regCwd)
	c.checkWorkingDir(IfUnset)
	if c.seen() {
		c.step("close working directory", unix.SYS_CLOSE, reg(regDir)).when(IfUnset, regCwd)
	}
}

// checkWorkingDir checks that the working directory is reachable from the root.
func (c *process) checkWorkingDir(cond Cond) {
	s := c.step("check working directory", unix.SYS_GETCWD, buffer(unix.PathMax), num(unix.PathMax)).when(cond, regCwd)
	s.Want = []byte("/")
}

// bound drops what the program can never regain.
func (c *process) bound(sets capSets) {
	last := c.o.Machine.LastCap
	for n := range 64 {
		if sets.bounding&(1<<n) != 0 {
			continue
		}
		if last != 0 && n > last {
			break
		}
		drop := c.prctl("drop "+capabilityName(n)+" from bounding set", unix.PR_CAPBSET_DROP, uint64(n))
		if last == 0 && capability.Name(n) == "" {
			drop.ignore(unix.EINVAL) // a capability that this kernel lacks
		}
	}
}

// identity switches to the user and keeps all capabilities.
func (c *process) identity() {
	const noSetuidFixup = 1 << 2
	user := c.p.User
	if user.UID != 0 {
		c.prctl("keep capabilities", unix.PR_SET_SECUREBITS, noSetuidFixup)
	}
	c.become(user)
	if user.UID != 0 {
		c.prctl("keep capabilities no longer", unix.PR_SET_SECUREBITS, 0)
	}
}

// capabilities sets the program's capabilities.
func (c *process) capabilities(sets capSets) {
	c.capset(sets)
	c.prctl("clear ambient capabilities", unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	for left := sets.ambient; left != 0; left &= left - 1 {
		n := bits.TrailingZeros64(uint64(left))
		c.prctl("raise ambient "+capabilityName(n), unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uint64(n))
	}
}

// become sets the IDs of a user.
func (b *builder) become(user specs.User) {
	b.setgroups(user.AdditionalGids)
	b.step(fmt.Sprintf("become group %d", user.GID), unix.SYS_SETRESGID, num(user.GID), num(user.GID), num(user.GID))
	b.step(fmt.Sprintf("become user %d", user.UID), unix.SYS_SETRESUID, num(user.UID), num(user.UID), num(user.UID))
}

func (b *builder) setgroups(gids []uint32) {
	if len(gids) == 0 {
		b.step("drop groups", unix.SYS_SETGROUPS, zero(), zero())
		return
	}
	b.step(fmt.Sprintf("groups %v", gids), unix.SYS_SETGROUPS, num(len(gids)), data(words32(gids...)))
}

// maxCandidates bounds the directories of PATH that are searched.
const maxCandidates = 4096

// exec ends the plan with the program. One without a slash is tried in each
// directory of PATH, since only the mounted root shows where it is.
func (c *process) exec() error {
	name := cmp.Or(c.o.Program, c.p.Args[0])
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		known := map[string]bool{}
		for _, dir := range strings.Split(searchPath(c.p.Env), ":") {
			file := path.Join(dir, name)
			if strings.HasPrefix(dir, "/") && !known[file] {
				known[file] = true
				candidates = append(candidates, file)
			}
		}
	}
	if len(candidates) == 0 || len(candidates) > maxCandidates {
		return fmt.Errorf("%w: %d directories in PATH to look for %q", ErrSpec, len(candidates), name)
	}

	for i, file := range candidates {
		s := c.step("exec "+file, unix.SYS_EXECVE, str(file), strs(c.p.Args), strs(c.p.Env))
		if i < len(candidates)-1 {
			s.ignore(unix.ENOENT, unix.ENOTDIR, unix.EACCES)
		}
	}

	return nil
}

// defaultPath is the search path without a PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func searchPath(env []string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			return v
		}
	}
	return defaultPath
}
