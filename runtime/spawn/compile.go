package spawn

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// stackSize is enough for the child's few frames; the stack cannot grow.
const stackSize = 16 << 10

// spill is space above the stack, where a function spills its arguments.
const spill = 64

// compiled is a plan laid out for a child. The interpreter and all that it
// points to are in the layout.
type compiled struct {
	layout
	m *interpreter
	// noFile is the value of [plan.ArgNoFile]; nil keeps the limit.
	noFile *unix.Rlimit
}

// compile lays out the plan for a child that has the descriptors files and sock.
func compile(p *plan.Plan, files []int, sock int, opt Options) (*compiled, error) {
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

	text := opt.Text
	if len(text.keep) == 0 {
		var err error
		if text, err = FindText(); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
	}

	c := &compiled{noFile: opt.NoFile}
	c.begin(p, files, sock)
	c.prologue(files, opt)
	if opt.NoFile != nil && !limitsFiles(p) {
		limit := c.words(opt.NoFile.Cur, opt.NoFile.Max)
		c.prepare(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, addr(limit), 0)
	}

	for i := range p.Steps {
		c.add(&p.Steps[i], int32(i), files)
	}

	// Last, when all memory to keep is known.
	c.forget(text)

	if c.err != nil {
		c.arena.release()
		return nil, fmt.Errorf("%s: %w", p.Name, c.err)
	}

	return c, nil
}

// limitsFiles reports whether a plan has a step for the limit on open files.
func limitsFiles(p *plan.Plan) bool {
	for i := range p.Steps {
		for j := range p.Steps[i].Args {
			if p.Steps[i].Args[j].Kind == plan.ArgNoFile {
				return true
			}
		}
	}
	return false
}

// begin makes the interpreter and the clone's arguments.
func (c *compiled) begin(p *plan.Plan, files []int, sock int) {
	stack := c.alloc(stackSize + spill)
	c.m = &room[interpreter](&c.layout, 1)[:1][0]
	m := c.m
	m.sock, m.full = uintptr(sock), math.MaxUint64

	m.clone.flags = p.Clone.Flags
	m.clone.exitSignal = uint64(unix.SIGCHLD)
	m.clone.stack, m.clone.stackSize = uint64(addr(stack)), stackSize

	if p.Clone.Cgroup >= 0 {
		m.clone.flags |= unix.CLONE_INTO_CGROUP
		m.clone.cgroup = uint64(files[p.Clone.Cgroup])
	}

	m.leave = room[op](&c.layout, maxLeave)
	m.ops = room[op](&c.layout, len(p.Steps)+len(files)+maxPrologue)
}

// maxPrologue bounds the steps of the prologue in addition to one per
// descriptor. More would be allocated on the heap, which a child lacks.
const maxPrologue = 24

// maxLeave bounds the ranges of memory that a child unmaps.
const maxLeave = 64

// forget unmaps the parent's memory in the child, all but the code and this
// plan, so that the child has no data of other containers.
func (c *compiled) forget(text Text) {
	keep := slices.Concat(text.keep, c.arena.spans())
	free := gaps(keep, text.top)
	if !wholly {
		free = []span{heapAround(&Child{})}
	}
	if len(free) > maxLeave {
		c.err = fmt.Errorf("own memory is in more than %d ranges", maxLeave)
		return
	}

	for _, s := range free {
		o := op{call: unix.SYS_MUNMAP, reg: noRegs(), index: stepForget, save: -1}
		o.args[0], o.args[1] = s.from, s.to-s.from
		c.m.leave = append(c.m.leave, o)
	}
}

// prologue resets in the child what must not be inherited from its parent.
func (c *compiled) prologue(files []int, opt Options) {
	for _, r := range unkept(append(slices.Clone(files), 0, 1, 2, int(c.m.sock))) {
		c.prepare(unix.SYS_CLOSE_RANGE, r.from, r.to-1, 0)
	}

	c.prepare(unix.SYS_UMASK, 0)
	c.ordinary()

	if opt.OOMScoreAdj != "" {
		const spare = plan.NumRegs
		at := unix.AT_FDCWD
		c.prepare(unix.SYS_OPENAT, uintptr(at), c.str("/proc/self/oom_score_adj"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		c.m.ops[len(c.m.ops)-1].save = spare
		for _, call := range []uintptr{unix.SYS_WRITE, unix.SYS_CLOSE} {
			c.prepare(call, 0, c.str(opt.OOMScoreAdj), uintptr(len(opt.OOMScoreAdj)))
			c.m.ops[len(c.m.ops)-1].reg[0] = spare
		}
	}
}

// ordinary gives the child default attributes: all CPUs of its cgroup, default
// priority, and so on. The parent's are not meant for the child.
func (c *compiled) ordinary() {
	const (
		cpuWords  = 8192 / 64 // for more CPUs than any kernel supports
		slack     = 50_000
		ioProcess = 1
		schedSize = 48
	)

	all := make([]uint64, cpuWords)
	for i := range all {
		all[i] = math.MaxUint64
	}

	c.prepare(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(8*len(all)), addr(c.words(all...)))
	// The policy SCHED_OTHER, nice 0.
	c.prepare(unix.SYS_SCHED_SETATTR, 0, addr(c.words(schedSize, 0, 0, 0, 0, 0)), 0)
	c.prepare(unix.SYS_IOPRIO_SET, ioProcess, 0, 0)
	c.prepare(unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, slack, 0, 0, 0)
	c.prepare(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 0, 0, 0, 0)
	c.prepare(unix.SYS_PERSONALITY, 0)
	c.prepare(unix.SYS_SET_MEMPOLICY, unix.MPOL_DEFAULT, 0, 0)
}

// prepare adds a call whose errors are ignored.
func (c *compiled) prepare(call uintptr, args ...uintptr) {
	o := op{call: call, reg: noRegs(), index: stepPrepare, save: -1}
	copy(o.args[:], args)
	c.m.ops = append(c.m.ops, o)
}

func (c *compiled) add(s *plan.Step, index int32, files []int) {
	o := op{
		call: s.Call, reg: noRegs(), index: index,
		save: int8(s.Save), fork: s.Fork, exec: isExec(s.Call),
		cond: s.Cond, condReg: int8(s.CondReg), retry: s.Retry,
		// What the child reads must not be on the heap, as the plan is.
		ignore: append(room[errno](&c.layout, len(s.Ignore)), s.Ignore...),
		want:   c.bytes(s.Want, 0)[:len(s.Want)],
		avoid:  c.bytes(s.Avoid, 0)[:len(s.Avoid)],
	}

	for j := range s.Args {
		c.argument(&o, j, &s.Args[j], files)
	}

	c.m.ops = append(c.m.ops, o)
}

// argument lays out argument j of a step.
func (c *compiled) argument(o *op, j int, a *plan.Arg, files []int) {
	switch a.Kind {
	case plan.ArgInt:
		o.args[j] = uintptr(a.Int)
	case plan.ArgStr:
		o.args[j] = c.str(a.Str)
	case plan.ArgStrs:
		o.args[j] = c.strs(a.Strs)
	case plan.ArgBytes:
		o.args[j] = addr(c.bytes(a.Bytes, 1))
	case plan.ArgIn:
		o.args[j] = uintptr(files[a.Int])
	case plan.ArgReg:
		o.reg[j] = int8(a.Int)
	case plan.ArgFilter:
		// struct sock_fprog: a 16-bit length, padding, a pointer.
		prog := c.words(0, uint64(addr(c.bytes(a.Bytes, 0))))
		binary.NativeEndian.PutUint16(prog, uint16(len(a.Bytes)/8))
		o.args[j] = addr(prog)
	case plan.ArgPassFD:
		o.args[j], o.poke[j] = c.passFD()
		o.reg[j] = int8(a.Int)
	case plan.ArgSync:
		o.args[j] = c.m.sock
		o.sync = true
	case plan.ArgBack:
		o.args[j] = c.m.sock + uintptr(a.Int)
	case plan.ArgRegPtr:
		cell := c.alloc(max(8, len(a.Bytes)))
		copy(cell, a.Bytes)

		o.args[j], o.poke[j] = addr(cell), word32(cell)
		o.reg[j] = int8(a.Int)
	case plan.ArgNoFile:
		if limit := c.noFile; limit != nil {
			o.args[j] = addr(c.words(limit.Cur, limit.Max))
		}
	case plan.ArgBuf:
		o.buf = c.alloc(int(a.Int))
		o.args[j] = addr(o.buf)
	}
}

// entry is the address of the function child: a Go function value points to the
// word with its address.
func entry() uintptr {
	f := child
	return **(**uintptr)(unsafe.Pointer(&f))
}
