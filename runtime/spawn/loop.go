package spawn

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// fork clones a child with args, which calls the function at entry with m and
// never returns. A negative result is an errno.
//
//go:noescape
func fork(args unsafe.Pointer, size, entry uintptr, m *interpreter) int

// Exit codes of a child that exits before execve.
const (
	exitFailed  = 125 // a step failed and was reported
	exitRefused = 124 // the gate was closed instead of opened
)

// The kinds of report, the first word of a message from the child.
const (
	reportFailed uint32 = iota + 1
	reportForked
	reportWaiting
	reportExec
	reportEnd
)

// reportWords is a report's length: kind, step index, and an errno or a pid.
const reportWords = 3

// numRegs includes one register beyond those of plans, for the prologue.
const numRegs = plan.NumRegs + 1

// The indexes of steps that are not in the plan.
const (
	// stepPrepare is a step whose errors are ignored.
	stepPrepare int32 = -1 - iota
	// stepForget unmaps memory of the parent.
	stepForget
)

type errno = syscall.Errno

// op is a step ready to run: nothing is left to allocate, look up or decide.
type op struct {
	call uintptr
	args [6]uintptr
	// reg is the register to take an argument from, or to poke; -1 for none.
	reg [6]int8
	// poke is where to store the register when the argument is a structure.
	poke   [6]*uint32
	ignore []errno
	// buf is the memory that the call fills; it must begin with want and not with avoid.
	buf, want, avoid []byte
	// index is the step's index in the plan, or one of stepPrepare and stepForget.
	index                   int32
	save                    int8
	cond                    plan.Cond
	condReg                 int8
	fork, sync, exec, retry bool
}

// cloneArgs is struct clone_args.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// interpreter runs the steps in the child. It is in the child's own
// memory, with everything that it points to.
type interpreter struct {
	clone  cloneArgs
	pidfd  int32
	sock   uintptr
	leave  []op // unmaps the parent's memory
	ops    []op
	regs   [numRegs]uintptr
	report [reportWords]uint32
	told   bool      // the report that the next step is execve was sent
	zero   [4]uint64 // the default struct sigaction, and an empty signal set
	full   uint64    // all signals
	mask   uint64    // the parent's own
	// nowhere is nil.
	nowhere *uint32
}

// start clones the child and returns its pid, or a negative errno. It does not
// wait for the child, which may be stopped before its first instruction.
//
// The signals are blocked because a handler of the parent would run in the child.
//
//go:noinline
//go:norace
//go:nocheckptr
//go:nosplit
func (m *interpreter) start(entry uintptr) int {
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&m.full)), uintptr(unsafe.Pointer(&m.mask)), 8, 0, 0)
	pid := fork(unsafe.Pointer(&m.clone), unsafe.Sizeof(m.clone), entry, m)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&m.mask)), 0, 8, 0, 0)

	return pid
}

// child runs the plan in the child. Like all that it calls it must neither
// allocate nor grow the stack nor access a package variable: the only memory is
// the code, this stack, and the interpreter.
//
//go:noinline
//go:norace
//go:nocheckptr
//go:nosplit
func child(m *interpreter) {
	for i := range m.leave {
		m.step(&m.leave[i])
	}

	for s := uintptr(1); s <= 64; s++ {
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&m.zero)), 0, 8, 0, 0)
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&m.zero)), 0, 8, 0, 0)

	for i := range m.ops {
		m.step(&m.ops[i])
	}
	m.tell(reportEnd, 0, 0)
	m.exit(0)
}

// step runs one step; it does not return when the step fails or forks away.
//
//go:noinline
//go:norace
//go:nocheckptr
//go:nosplit
func (m *interpreter) step(o *op) {
	if o.cond != plan.Always && (o.cond == plan.IfUnset) != (int(m.regs[o.condReg]) < 0) {
		if o.save >= 0 {
			m.regs[o.save] = ^uintptr(0)
		}
		return
	}

	a := o.args
	for j := range a {
		r := o.reg[j]
		if r < 0 {
			continue
		}

		if o.poke[j] != nil {
			*o.poke[j] = uint32(m.regs[r])
		} else {
			a[j] = m.regs[r]
		}
	}

	if o.sync {
		m.tell(reportWaiting, uint32(o.index), 0)
	}
	if o.exec && !m.told {
		m.told = true // only once for all possible paths of a program
		m.tell(reportExec, uint32(o.index), 0)
	}

	r, _, e := syscall.RawSyscall6(o.call, a[0], a[1], a[2], a[3], a[4], a[5])
	for e == unix.EINTR && o.sync {
		r, _, e = syscall.RawSyscall6(o.call, a[0], a[1], a[2], a[3], a[4], a[5])
	}

	for n := 0; o.retry && e == unix.EAGAIN && n < plan.MaxRetries; n++ {
		r, _, e = syscall.RawSyscall6(o.call, a[0], a[1], a[2], a[3], a[4], a[5])
	}
	if e == 0 && (!m.holds(o.buf, o.want) || len(o.avoid) > 0 && m.holds(o.buf, o.avoid)) {
		e = unix.EBADMSG
	}
	if e != 0 {
		for _, ok := range o.ignore {
			if e == ok {
				e = 0
			}
		}

		if e != 0 && o.index != stepPrepare {
			m.tell(reportFailed, uint32(o.index), uint32(e))
			m.exit(exitFailed)
		}
		r = ^uintptr(0)
	}

	if o.sync && r != 1 {
		m.exit(exitRefused)
	}
	if o.fork && r != 0 {
		m.tell(reportForked, uint32(o.index), uint32(r))
		m.exit(0)
	}
	if o.save >= 0 {
		m.regs[o.save] = r
	}
}

// holds reports whether buf begins with want, which is not longer.
//
//go:noinline
//go:norace
//go:nosplit
func (m *interpreter) holds(buf, want []byte) bool {
	for i := range want {
		if buf[i] != want[i] {
			return false
		}
	}
	return true
}

// tell sends a report. A child whose caller is gone, or has shut down the
// socket, exits here.
//
//go:noinline
//go:norace
//go:nocheckptr
//go:nosplit
func (m *interpreter) tell(kind, index, value uint32) {
	m.report[0], m.report[1], m.report[2] = kind, index, value
	_, _, e := syscall.RawSyscall(unix.SYS_WRITE, m.sock, uintptr(unsafe.Pointer(&m.report)), unsafe.Sizeof(m.report))
	if e == unix.EPIPE || e == unix.ECONNRESET || e == unix.ENOTCONN {
		m.exit(exitRefused)
	}
}

// exit terminates the child, by a fault if a filter of the plan refuses exit_group.
//
//go:noinline
//go:norace
//go:nosplit
func (m *interpreter) exit(code uintptr) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, code, 0, 0)
		*m.nowhere = 0
	}
}
