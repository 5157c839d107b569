// Package plan holds the program that starts a process: an ordered list of
// system calls, the descriptors they need, and a name for each step.
//
// A plan is data. It is built from an OCI runtime-spec without side effects
// ([Container], [Exec], [Sandbox]), printed one step per line ([Plan.Print]),
// sent to the keeper ([Plan.Encode]) and run there by package spawn in a
// freshly cloned child. The last step is normally execve; a step that fails
// ends the child and is reported by its index, so that the error can name it.
package plan

import (
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Plan is a program of system calls for one new process.
type Plan struct {
	// Name describes the plan in errors: "start container web".
	Name string
	// Clone describes how the process that runs the steps is cloned.
	Clone Clone
	// Inputs are the descriptors that must be open before the plan runs, in the
	// order in which they are sent to the keeper.
	Inputs []Input
	// Steps run in order in the child.
	Steps []Step
}

// Clone is the clone3 call that begins a plan.
type Clone struct {
	// Flags are CLONE_NEW* bits.
	Flags uint64
	// Cgroup is the index in Plan.Inputs of the cgroup v2 directory to clone
	// the child into (CLONE_INTO_CGROUP), or -1.
	Cgroup int
	// UIDMap and GIDMap are written by the keeper right after the clone when
	// Flags has CLONE_NEWUSER; the child waits for that in its first [ArgSync] step.
	UIDMap, GIDMap []specs.LinuxIDMapping
}

// InputKind is how the launcher obtains a descriptor.
type InputKind uint8

// The kinds of input.
const (
	// InputHeld is a descriptor that the caller holds under the name Path:
	// a detached root file system, a pod's namespace, a pipe end.
	InputHeld InputKind = iota
	// InputMount is a detached clone of the mount at host path Path
	// (open_tree), with Attr, Propagation and IDMap applied.
	InputMount
	// InputFile is host path Path opened with OpenFlags.
	InputFile
	// InputProc is a detached procfs mount made by the launcher, which the
	// child uses to reach its own /proc/thread-self regardless of what is on
	// /proc.
	InputProc
)

// Input is a descriptor that the launcher opens before the plan is run.
type Input struct {
	// Name is shown in listings: "stdin", "mount /etc/hosts".
	Name string
	Kind InputKind
	// Path is a host path, or for InputHeld the name under which the caller holds it.
	Path string
	// OpenFlags are open(2) flags for InputFile.
	OpenFlags int
	// Recursive clones the mounts below Path, too.
	Recursive bool
	// AttrSet and AttrClear are MOUNT_ATTR_* bits for the top mount;
	// AttrSetRecursive for the whole tree.
	AttrSet, AttrClear, AttrSetRecursive uint64
	// Propagation is MS_PRIVATE, MS_SLAVE, MS_SHARED or 0 for unchanged,
	// applied recursively.
	Propagation uint64
	// UIDMap and GIDMap request an ID-mapped clone; empty means none.
	// IDMapRecursive maps the mounts below Path, too.
	UIDMap, GIDMap []specs.LinuxIDMapping
	IDMapRecursive bool
}

// Reg is a register: a place for a system call's result that later steps read.
type Reg int8

// NoReg means that a result is discarded.
const NoReg Reg = -1

// NumRegs is how many registers a plan has.
const NumRegs = 16

// Step is one system call.
type Step struct {
	// Name describes the call: "mount /proc".
	Name string
	// Call is the number of the system call on the running architecture.
	Call uintptr
	Args []Arg
	// Save receives the result, NoReg for none.
	Save Reg
	// Ignore lists errors that count as success; Save then holds -1.
	Ignore []syscall.Errno
	// Fork marks a clone after which the new child continues with the next
	// step, and the caller reports its PID and exits.
	Fork bool
	// Exposed marks a Fork whose new process is visible to others before it
	// executes. It has no more privileges than they by then, and little
	// follows: no gate, no descriptor is passed, and only a failure report
	// counts.
	Exposed bool
	// Cond makes the step depend on the value of register CondReg. A skipped
	// step succeeds; Save then holds -1.
	Cond    Cond
	CondReg Reg
	// Want, unless empty, is what the memory of the step's [ArgBuf] must begin
	// with after the call. If it does not, the step fails with EBADMSG.
	Want []byte
	// Avoid, unless empty, is what that memory must not begin with, likewise.
	Avoid []byte
	// Retry repeats a call that fails with EAGAIN, up to [MaxRetries] times:
	// openat2 does when a mount or rename anywhere on the machine races with a
	// walk through "..".
	Retry bool
}

// MaxRetries bounds the repetitions of a step with Retry.
const MaxRetries = 1000

// Cond is a condition on a register.
type Cond uint8

// The conditions.
const (
	// Always runs the step.
	Always Cond = iota
	// IfSet runs the step if the register is not negative: an earlier call
	// succeeded and left its result there.
	IfSet
	// IfUnset runs the step if the register is negative.
	IfUnset
)

// ArgKind is how an argument's value is obtained when the step runs.
type ArgKind uint8

// The kinds of argument.
const (
	// ArgInt is the number Int.
	ArgInt ArgKind = iota
	// ArgStr points to Str as a C string.
	ArgStr
	// ArgStrs points to a NULL-terminated vector of C strings.
	ArgStrs
	// ArgBytes points to a copy of Bytes.
	ArgBytes
	// ArgIn is the descriptor number of input Int.
	ArgIn
	// ArgReg is the value of register Int.
	ArgReg
	// ArgFilter points to a struct sock_fprog over the sock_filter array Bytes.
	ArgFilter
	// ArgPassFD points to a struct msghdr that carries one byte and, as
	// SCM_RIGHTS, the descriptor in register Int.
	ArgPassFD
	// ArgSync is the child's end of the keeper's gate: a descriptor from which
	// a one-byte read returns once the keeper lets the child continue. With an
	// Int of [AskDaemon] the keeper asks the daemon first.
	ArgSync
	// ArgBack is the descriptor of the child's socket to the keeper, for
	// sendmsg with ArgPassFD, plus Int: the neighbours bound a range of other
	// descriptors.
	ArgBack
	// ArgRegPtr points to an 8-byte cell that holds Bytes followed by zeros,
	// whose first 4 bytes are overwritten with register Int before the call.
	ArgRegPtr
	// ArgBuf points to Int zero bytes of memory for the call's result, see
	// [Step.Want]. A step has at most one.
	ArgBuf
	// ArgNoFile points to a struct rlimit with the default limit on open files.
	// The child needs, and has, a higher one before.
	ArgNoFile
)

// AskDaemon marks a gate at which the daemon decides when the child continues:
// meanwhile it runs a hook, or takes the listener of a filter, see [Plan.Listens].
const AskDaemon = 1

// Asks reports whether the step is such a gate.
func (s *Step) Asks() bool {
	for i := range s.Args {
		if s.Args[i].Kind == ArgSync && s.Args[i].Int == AskDaemon {
			return true
		}
	}
	return false
}

// Listens reports whether step i is a gate at which the child has the listener of its
// seccomp filter: the step before has returned it.
func (p *Plan) Listens(i int) bool {
	return i > 0 && p.Steps[i].Asks() && p.Steps[i-1].Call == unix.SYS_SECCOMP
}

// Arg is one argument of a system call.
type Arg struct {
	Kind  ArgKind
	Int   int64
	Str   string
	Strs  []string
	Bytes []byte
}
