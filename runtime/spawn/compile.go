package spawn

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// arena hands out zeroed memory whose address never changes and that holds no
// Go pointers, so that system call arguments can be laid out in it.
type arena struct {
	chunks [][]byte // keeps the memory alive
	last   []byte
	free   []byte
}

const (
	firstChunk = 16 << 10
	// keptChunk is the most memory that a reset keeps.
	keptChunk = 128 << 10
)

func (a *arena) alloc(n int) []byte {
	n = (n + 7) &^ 7
	if n > len(a.free) {
		a.last = make([]byte, max(n, firstChunk, 2*len(a.last)))
		a.free = a.last
		a.chunks = append(a.chunks, a.last)
	}
	b := a.free[:n:n]
	a.free = a.free[n:]
	return b
}

// reset takes all memory back and keeps the last, largest chunk.
func (a *arena) reset() {
	clear(a.chunks)
	a.chunks = a.chunks[:0]
	if len(a.last) > keptChunk {
		a.last = nil
	}
	if a.free = a.last; a.last != nil {
		clear(a.last)
		a.chunks = append(a.chunks, a.last)
	}
}

// bytes returns the address of a copy of b followed by at least pad zeros.
func (a *arena) bytes(b []byte, pad int) uintptr {
	c := a.alloc(len(b) + pad)
	copy(c, b)
	return addr(c)
}

func (a *arena) str(s string) uintptr {
	c := a.alloc(len(s) + 1)
	copy(c, s)
	return addr(c)
}

// strs returns the address of a NULL-terminated vector of C strings.
func (a *arena) strs(list []string) uintptr {
	vec := a.alloc(8 * (len(list) + 1))
	for i, s := range list {
		binary.NativeEndian.PutUint64(vec[8*i:], uint64(a.str(s)))
	}
	return addr(vec)
}

// words returns memory that holds the given 8-byte words.
func (a *arena) words(words ...uint64) []byte {
	b := a.alloc(8 * len(words))
	for i, w := range words {
		binary.NativeEndian.PutUint64(b[8*i:], w)
	}
	return b
}

// passFD lays out a struct msghdr that carries one byte and one descriptor,
// and returns its address and the place of the descriptor.
func (a *arena) passFD() (uintptr, *uint32) {
	iov := a.words(uint64(a.bytes([]byte{0}, 0)), 1)
	control := a.alloc(unix.CmsgSpace(4))
	binary.NativeEndian.PutUint64(control, uint64(unix.CmsgLen(4)))
	binary.NativeEndian.PutUint32(control[8:], unix.SOL_SOCKET)
	binary.NativeEndian.PutUint32(control[12:], unix.SCM_RIGHTS)
	msg := a.words(0, 0, uint64(addr(iov)), 1, uint64(addr(control)), uint64(len(control)), 0)
	return addr(msg), word32(control[unix.CmsgLen(0):])
}

func addr(b []byte) uintptr    { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
func word32(b []byte) *uint32  { return (*uint32)(unsafe.Pointer(unsafe.SliceData(b[:4]))) }
func addrOf(p *int32) uint64   { return uint64(uintptr(unsafe.Pointer(p))) }
func noRegs() (regs [6]int8)   { return [6]int8{-1, -1, -1, -1, -1, -1} }
func isExec(call uintptr) bool { return call == unix.SYS_EXECVE || call == unix.SYS_EXECVEAT }

// compile lays out the plan for a child that has the descriptors files and sock.
func compile(p *plan.Plan, files []int, sock int, opt Options) (*machine, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if len(files) != len(p.Inputs) {
		return nil, fmt.Errorf("%s: %w: %d for %d inputs", p.Name, ErrInputs, len(files), len(p.Inputs))
	}
	for i, fd := range files {
		if fd <= 2 {
			return nil, fmt.Errorf("%s: %w: input %d is descriptor %d", p.Name, ErrInputs, i, fd)
		}
	}
	m := newMachine(opt.Memory)
	m.sock, m.full = uintptr(sock), math.MaxUint64
	m.clone.flags = p.Clone.Flags | unix.CLONE_PIDFD | unix.CLONE_PARENT_SETTID | unix.CLONE_VM | unix.CLONE_VFORK
	m.clone.exitSignal = uint64(unix.SIGCHLD)
	m.clone.pidfd, m.clone.parentTID = addrOf(&m.pidfd), addrOf(&m.pid)
	if p.Clone.Cgroup >= 0 {
		m.clone.flags |= unix.CLONE_INTO_CGROUP
		m.clone.cgroup = uint64(files[p.Clone.Cgroup])
	}
	m.ops = slices.Grow(m.ops, len(p.Steps)+len(files)+8)
	m.prologue(files, opt)
	for i := range p.Steps {
		m.add(&p.Steps[i], int32(i), files)
	}
	return m, nil
}

// newMachine returns an empty machine, with the memory of an earlier one if
// there is any.
func newMachine(memory *sync.Pool) *machine {
	if memory == nil {
		return &machine{}
	}
	m, known := memory.Get().(*machine)
	if !known {
		return &machine{}
	}
	clear(m.ops)
	m.arena.reset()
	*m = machine{ops: m.ops[:0], arena: m.arena}
	return m
}

// prologue undoes in the child what belongs to its parent alone.
func (m *machine) prologue(files []int, opt Options) {
	low := uintptr(3)
	keep := append(slices.Clone(files), int(m.sock))
	slices.Sort(keep)
	for _, fd := range keep {
		if uintptr(fd) > low {
			m.prepare(unix.SYS_CLOSE_RANGE, low, uintptr(fd)-1, 0)
		}
		low = uintptr(fd) + 1
	}
	m.prepare(unix.SYS_CLOSE_RANGE, low, math.MaxUint32, 0)
	m.prepare(unix.SYS_UMASK, 0)
	if opt.NoFile != nil {
		lim := m.arena.words(opt.NoFile.Cur, opt.NoFile.Max)
		m.prepare(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, addr(lim), 0)
	}
	if opt.OOMScoreAdj != "" {
		const spare = plan.NumRegs
		at := unix.AT_FDCWD
		m.prepare(unix.SYS_OPENAT, uintptr(at), m.arena.str("/proc/self/oom_score_adj"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		m.ops[len(m.ops)-1].save = spare
		for _, call := range []uintptr{unix.SYS_WRITE, unix.SYS_CLOSE} {
			m.prepare(call, 0, m.arena.str(opt.OOMScoreAdj), uintptr(len(opt.OOMScoreAdj)))
			m.ops[len(m.ops)-1].reg[0] = spare
		}
	}
}

// prepare adds a call whose failure does not matter.
func (m *machine) prepare(call uintptr, args ...uintptr) {
	o := op{call: call, reg: noRegs(), index: -1, save: -1}
	copy(o.args[:], args)
	m.ops = append(m.ops, o)
}

func (m *machine) add(s *plan.Step, index int32, files []int) {
	o := op{
		call: s.Call, reg: noRegs(), ignore: s.Ignore, index: index,
		save: int8(s.Save), fork: s.Fork, exec: isExec(s.Call),
		cond: s.Cond, condReg: int8(s.CondReg), want: s.Want, retry: s.Retry,
	}
	for j := range s.Args {
		a := &s.Args[j]
		switch a.Kind {
		case plan.ArgInt:
			o.args[j] = uintptr(a.Int)
		case plan.ArgStr:
			o.args[j] = m.arena.str(a.Str)
		case plan.ArgStrs:
			o.args[j] = m.arena.strs(a.Strs)
		case plan.ArgBytes:
			o.args[j] = m.arena.bytes(a.Bytes, 1)
		case plan.ArgIn:
			o.args[j] = uintptr(files[a.Int])
		case plan.ArgReg:
			o.reg[j] = int8(a.Int)
		case plan.ArgFilter:
			// struct sock_fprog: a 16-bit length, padding, a pointer.
			prog := m.arena.words(0, uint64(m.arena.bytes(a.Bytes, 0)))
			binary.NativeEndian.PutUint16(prog, uint16(len(a.Bytes)/8))
			o.args[j] = addr(prog)
		case plan.ArgPassFD:
			o.args[j], o.poke[j] = m.arena.passFD()
			o.reg[j] = int8(a.Int)
		case plan.ArgSync:
			o.args[j] = m.sock
			o.sync = true
		case plan.ArgBack:
			o.args[j] = m.sock
		case plan.ArgRegPtr:
			cell := m.arena.alloc(max(8, len(a.Bytes)))
			copy(cell, a.Bytes)
			o.args[j], o.poke[j] = addr(cell), word32(cell)
			o.reg[j] = int8(a.Int)
		case plan.ArgBuf:
			o.buf = m.arena.alloc(int(a.Int))
			o.args[j] = addr(o.buf)
		}
	}
	m.ops = append(m.ops, o)
}
