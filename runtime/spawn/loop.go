package spawn

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// The runtime's own bookkeeping around a system call that is known to last:
// other goroutines run at once. The toolchain keeps these names open.
//
//go:linkname enterSyscall runtime.entersyscallblock
func enterSyscall()

//go:linkname exitSyscall runtime.exitsyscall
func exitSyscall()

// vfork clones a child with args, which runs m and never returns, and is back when the
// child has executed or ended. A negative result is an errno.
//
//go:noescape
func vfork(m *machine, args unsafe.Pointer, size uintptr) int

var _ = child // which vfork calls

// Exit codes of a child that ends before execve.
const (
	exitFailed  = 125 // a step failed and was reported
	exitRefused = 124 // the gate was closed instead of opened
)

// The kinds of report, the first word of a message from the child.
const (
	reportBorn   uint32 = iota + 1
	reportUnborn        // told by the parent
	reportFailed
	reportForked
	reportWaiting
	reportExec
	reportEnd
)

// reportWords is a report's length: kind, step index, and an errno or a pid.
const reportWords = 3

// numRegs has one register more than plans see, for the prologue.
const numRegs = plan.NumRegs + 1

// op is a step ready to run: nothing is left to allocate, look up or decide.
type op struct {
	call uintptr
	args [6]uintptr
	// reg says which register to take an argument from, or to poke; -1 none.
	reg [6]int8
	// poke is where the register goes when the argument is a structure.
	poke   [6]*uint32
	ignore []syscall.Errno
	// buf is the memory that the call fills and want what it must begin with.
	buf, want []byte
	// index is the step's index in the plan; negative in the prologue, whose
	// errors are ignored.
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

// machine is all the memory that the child uses.
type machine struct {
	clone  cloneArgs
	pidfd  int32
	pid    int32
	sock   uintptr
	ops    []op
	regs   [numRegs]uintptr
	report [reportWords]uint32
	told   bool      // that the next step is execve
	zero   [4]uint64 // the default struct sigaction, and an empty signal set
	full   uint64    // all signals
	mask   uint64    // the parent's own
	arena  arena
	// nowhere is nil.
	nowhere *uint32
}

// start clones the child and waits until it no longer uses this memory.
//
// The child shares the caller's memory, which spares the copy of its page
// tables, and the thread that clones stands still as long as it does. To the
// kernel it is a vfork, so that the child has an OOM score of its own and
// running out of memory there never kills the parent. The signals are blocked
// because a handler of the parent would run in the child.
//
//go:noinline
//go:norace
//go:nocheckptr
//go:nosplit
func (m *machine) start() syscall.Errno {
	enterSyscall()
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&m.full)), uintptr(unsafe.Pointer(&m.mask)), 8, 0, 0)
	r := vfork(m, unsafe.Pointer(&m.clone), unsafe.Sizeof(m.clone))
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&m.mask)), 0, 8, 0, 0)
	exitSyscall()
	return syscall.Errno(max(0, -r))
}

// child runs the plan in the child. Like all that it calls it must neither
// allocate nor grow the stack nor store a pointer: its memory is that of a
// process whose other threads go on and may hold any lock.
//
//go:noinline
//go:norace
//go:nocheckptr
//go:nosplit
func child(m *machine) {
	m.tell(reportBorn, 0, 0)
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
func (m *machine) step(o *op) {
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
		m.told = true // once for all places where a program may lie
		m.tell(reportExec, uint32(o.index), 0)
	}
	r, _, e := syscall.RawSyscall6(o.call, a[0], a[1], a[2], a[3], a[4], a[5])
	for e == unix.EINTR && o.sync {
		r, _, e = syscall.RawSyscall6(o.call, a[0], a[1], a[2], a[3], a[4], a[5])
	}
	for n := 0; o.retry && e == unix.EAGAIN && n < plan.MaxRetries; n++ {
		r, _, e = syscall.RawSyscall6(o.call, a[0], a[1], a[2], a[3], a[4], a[5])
	}
	if e == 0 && !m.holds(o.buf, o.want) {
		e = unix.EBADMSG
	}
	if e != 0 {
		for _, ok := range o.ignore {
			if e == ok {
				e = 0
			}
		}
		if e != 0 && o.index >= 0 {
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

// holds says whether buf begins with want, which is not longer.
//
//go:noinline
//go:norace
//go:nosplit
func (m *machine) holds(buf, want []byte) bool {
	for i := range want {
		if buf[i] != want[i] {
			return false
		}
	}
	return true
}

// tell sends a report. A child whose caller is gone, or has shut the socket,
// ends here.
//
//go:noinline
//go:norace
//go:nocheckptr
//go:nosplit
func (m *machine) tell(kind, index, value uint32) {
	m.report[0], m.report[1], m.report[2] = kind, index, value
	_, _, e := syscall.RawSyscall(unix.SYS_WRITE, m.sock, uintptr(unsafe.Pointer(&m.report)), unsafe.Sizeof(m.report))
	if e == unix.EPIPE || e == unix.ECONNRESET || e == unix.ENOTCONN {
		m.exit(exitRefused)
	}
}

// exit ends the child, by a fault if a filter of the plan refuses exit_group.
//
//go:noinline
//go:norace
//go:nosplit
func (m *machine) exit(code uintptr) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, code, 0, 0)
		*m.nowhere = 0
	}
}
