package plan

import (
	"encoding/binary"
	"math"
	"syscall"

	"golang.org/x/sys/unix"
)

// The registers that builders use. Those with a general name hold a value for a
// few steps only.
const (
	regBase   Reg = iota // the root of the pod's base mount namespace
	regRoot              // the container's root, when it is not an input
	regDev               // the file system on /dev
	regPts               // the devpts on /dev/pts
	regMaster            // the terminal
	regSlave             // its slave
	regCwd               // the working directory, as root sees it
	regCgroup            // the directory of cgroup hierarchies
	regFS                // a file system being created
	regMount             // a mount being attached
	regTarget            // its target
	regDir               // a directory
	regKind              // set if something is a directory
	regFile              // a file being written
	regProcfs            // the procfs of another PID namespace
	regTime              // the offsets of a time namespace
)

// builder collects a plan's steps and inputs.
type builder struct {
	plan *Plan
	// known has the index of each input that several steps use, by kind and path.
	known map[string]int
	// root is the descriptor of the container's root.
	root Arg
}

func newBuilder(name string) *builder {
	const usual = 320 // steps
	return &builder{
		plan:  &Plan{Name: name, Clone: Clone{Cgroup: -1}, Steps: make([]Step, 0, usual)},
		known: map[string]int{},
	}
}

// step appends a system call. The result is valid until the next call.
func (b *builder) step(name string, call uintptr, args ...Arg) *Step {
	b.plan.Steps = append(b.plan.Steps, Step{Name: name, Call: call, Args: args, Save: NoReg, CondReg: NoReg})
	return &b.plan.Steps[len(b.plan.Steps)-1]
}

func (s *Step) save(r Reg) *Step { s.Save = r; return s }

func (s *Step) ignore(errs ...syscall.Errno) *Step {
	s.Ignore = append(s.Ignore, errs...)
	return s
}

func (s *Step) when(c Cond, r Reg) *Step {
	s.Cond, s.CondReg = c, r
	return s
}

// input adds an input and returns the argument that refers to it.
func (b *builder) input(in Input) Arg {
	b.plan.Inputs = append(b.plan.Inputs, in)
	return Arg{Kind: ArgIn, Int: int64(len(b.plan.Inputs) - 1)}
}

// shared adds an input unless there is one with the same name.
func (b *builder) shared(in Input) Arg {
	i, ok := b.known[in.Name]
	if !ok {
		i = len(b.plan.Inputs)
		b.known[in.Name] = i
		b.input(in)
	}
	return Arg{Kind: ArgIn, Int: int64(i)}
}

// held returns the descriptor that the caller holds under a name.
func (b *builder) held(name string) Arg {
	return b.shared(Input{Name: name, Kind: InputHeld, Path: name})
}

// procfs returns the private procfs.
func (b *builder) procfs() Arg { return b.shared(Input{Name: "procfs", Kind: InputProc}) }

// null returns the host's null device, open for reading and writing.
func (b *builder) null() Arg {
	return b.shared(Input{Name: "null device", Kind: InputFile, Path: "/dev/null", OpenFlags: unix.O_RDWR | unix.O_NOCTTY})
}

func num[T ~int | ~int64 | ~uint64 | ~uint32 | ~uintptr | ~uint | ~int32](v T) Arg {
	return Arg{Kind: ArgInt, Int: int64(v)}
}

func str(s string) Arg       { return Arg{Kind: ArgStr, Str: s} }
func strs(list []string) Arg { return Arg{Kind: ArgStrs, Strs: list} }
func data(b []byte) Arg      { return Arg{Kind: ArgBytes, Bytes: b} }
func reg(r Reg) Arg          { return Arg{Kind: ArgReg, Int: int64(r)} }
func buffer(n int) Arg       { return Arg{Kind: ArgBuf, Int: int64(n)} }
func zero() Arg              { return Arg{} }

// words lays out 8-byte words as in a C structure, words32 4-byte ones.
func words(list ...uint64) []byte {
	var b []byte
	for _, w := range list {
		b = binary.NativeEndian.AppendUint64(b, w)
	}
	return b
}

func words32(list ...uint32) []byte {
	var b []byte
	for _, w := range list {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b
}

// here is AT_FDCWD, the working directory as a descriptor.
func here() Arg { return num(unix.AT_FDCWD) }

// How a path inside the container's root is resolved. Links never lead out of
// the root, nor through /proc to open descriptors of the child.
const (
	inRoot  = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	noLinks = inRoot | unix.RESOLVE_NO_SYMLINKS
)

// open opens a path inside the container's root.
func (b *builder) open(name, path string, flags, resolve uint64, to Reg) *Step {
	how := words(flags|unix.O_CLOEXEC, 0, resolve)
	s := b.step(name, unix.SYS_OPENAT2, b.root, str(path), data(how), num(len(how)))
	s.Retry = true
	return s.save(to)
}

// manySteps is the length from which a plan could run out of descriptors.
const manySteps = 800

// shut closes a register that is reused many times. In most plans that is left
// to execve, which is cheaper.
func (b *builder) shut(r Reg) {
	if len(b.plan.Steps) > manySteps {
		b.step("close", unix.SYS_CLOSE, reg(r)).when(IfSet, r)
	}
}

// prctl appends a prctl whose unused arguments are zero.
func (b *builder) prctl(name string, option int, args ...uint64) *Step {
	all := []Arg{num(option), zero(), zero(), zero(), zero()}
	for i, a := range args {
		all[i+1] = num(a)
	}
	return b.step(name, unix.SYS_PRCTL, all...)
}

// attach moves a detached mount onto an open target.
func (b *builder) attach(name string, from Arg, onto Reg) *Step {
	return b.step(name, unix.SYS_MOVE_MOUNT, from, str(""), reg(onto), str(""),
		num(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// cloneMount creates a detached copy of the mount at path below dir.
func (b *builder) cloneMount(name string, dir Arg, path string, flags uint, to Reg) *Step {
	return b.step(name, unix.SYS_OPEN_TREE, dir, str(path),
		num(flags|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)).save(to)
}

// setAttr changes the attributes of a mount.
func (b *builder) setAttr(name string, mount Arg, flags uint, set, clear, propagation uint64) *Step {
	attr := words(set, clear, propagation, 0)
	return b.step(name, unix.SYS_MOUNT_SETATTR, mount, str(""), num(flags|unix.AT_EMPTY_PATH), data(attr), num(len(attr)))
}

// fsOption is an option of a file system; one without a value is a flag.
type fsOption struct {
	key, value string
	flag       bool
}

// fileSystem creates a detached mount of a new file system.
func (b *builder) fileSystem(what, fsType string, attrs uint64, options []fsOption, to Reg) {
	b.step(what+": open "+fsType, unix.SYS_FSOPEN, str(fsType), num(unix.FSOPEN_CLOEXEC)).save(regFS)
	for _, o := range options {
		if o.flag {
			b.step(what+": option "+o.key, unix.SYS_FSCONFIG, reg(regFS), num(unix.FSCONFIG_SET_FLAG), str(o.key), zero(), zero())
			continue
		}
		b.step(what+": option "+o.key+"="+o.value, unix.SYS_FSCONFIG, reg(regFS), num(unix.FSCONFIG_SET_STRING), str(o.key), str(o.value), zero())
	}
	b.step(what+": create", unix.SYS_FSCONFIG, reg(regFS), num(unix.FSCONFIG_CMD_CREATE), zero(), zero(), zero())
	b.step(what+": take", unix.SYS_FSMOUNT, reg(regFS), num(unix.FSMOUNT_CLOEXEC), num(attrs)).save(to)
	b.shut(regFS)
}

// writeFile writes a value to a file of the private procfs.
func (b *builder) writeFile(what, path, value string) {
	b.step("open file to "+what, unix.SYS_OPENAT, b.procfs(), str(path), num(unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW), zero()).save(regFile)
	b.step(what, unix.SYS_WRITE, reg(regFile), str(value), num(len(value)))
	b.shut(regFile)
}

// wait makes the child wait for the keeper.
func (b *builder) wait(name string) {
	b.step(name, unix.SYS_READ, Arg{Kind: ArgSync}, buffer(1), num(1))
}

// closeOthers has execve close everything above the standard streams. With now,
// in a process that others will see, all but the socket is closed at once.
func (b *builder) closeOthers(now bool) {
	if now {
		// A range may be empty.
		b.step("close descriptors before the socket", unix.SYS_CLOSE_RANGE, num(3), Arg{Kind: ArgBack, Int: -1}, zero()).ignore(unix.EINVAL)
		b.step("close descriptors after the socket", unix.SYS_CLOSE_RANGE, Arg{Kind: ArgBack, Int: 1}, num(uint32(math.MaxUint32)), zero())
		return
	}

	b.step("close other descriptors at exec", unix.SYS_CLOSE_RANGE, num(3), num(uint32(math.MaxUint32)), num(unix.CLOSE_RANGE_CLOEXEC))
}
