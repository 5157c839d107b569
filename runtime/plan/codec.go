package plan

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/wire/pack"
)

// The bounds of a plan. They are far above what any container needs and bound
// the memory for a corrupt plan.
const (
	// MaxEncoded is the largest encoded plan in bytes.
	MaxEncoded = 16 << 20
	maxInputs  = 4096
	maxSteps   = 1 << 16
	maxArgs    = 6
	maxIgnore  = 8
	// maxIDMaps is the kernel's limit on the lines of an id map.
	maxIDMaps  = 340
	maxStrings = 1 << 18
	// maxFilter is the kernel's limit of 4096 filter instructions of 8 bytes.
	maxFilter = 4096 * 8
	// maxBuf is the most memory that a step's result may need.
	maxBuf = 64 << 10
)

// header opens an encoded plan and changes with the format.
const header = "crisp plan 4\n"

// Encode returns the plan in its binary form. Equal plans encode to equal bytes.
func (p *Plan) Encode() []byte {
	var (
		w     pack.Writer
		lists lists
	)

	w.Raw([]byte(header))
	w.String(p.Name)
	w.Uint(p.Clone.Flags)
	w.Int(int64(p.Clone.Cgroup))
	putIDMaps(&w, p.Clone.UIDMap)
	putIDMaps(&w, p.Clone.GIDMap)
	w.Uint(uint64(len(p.Inputs)))

	for i := range p.Inputs {
		putInput(&w, &p.Inputs[i])
	}
	w.Uint(uint64(len(p.Steps)))

	for i := range p.Steps {
		putStep(&w, &p.Steps[i], &lists)
	}

	return w.Bytes()
}

// lists are the string lists so far. They store the arguments and environment
// only once for a program that is searched in many directories.
type lists [][]string

// maxLists bounds the lists that are deduplicated; more are written out.
const maxLists = 8

// find returns the number of a list, from 1, or 0 for a new one.
func (l *lists) find(list []string) int {
	i := slices.IndexFunc(*l, func(known []string) bool { return slices.Equal(known, list) })
	if i < 0 && len(*l) < maxLists {
		*l = append(*l, list)
	}
	return i + 1
}

func (l *lists) put(w *pack.Writer, list []string) {
	n := l.find(list)
	w.Uint(uint64(n))
	if n == 0 {
		w.Strings(list)
	}
}

// take reads what put wrote; ok is false for an invalid list number.
func (l *lists) take(r *pack.Reader) (list []string, ok bool) {
	n := r.Uint()
	if n > uint64(len(*l)) {
		return nil, false
	}
	if n > 0 {
		return (*l)[n-1], true
	}

	list = r.Strings(maxStrings)
	l.find(list)

	return list, true
}

// Decode reads an encoded plan and validates it. The plan shares no memory with data.
func Decode(data []byte) (*Plan, error) { return new(Decoder).Decode(data) }

// Decoder decodes plans, each into the memory of the one before, which becomes invalid.
type Decoder struct {
	plan   Plan
	lists  lists
	args   chunks[Arg]
	errnos chunks[syscall.Errno]
}

// Decode is like the function [Decode].
func (d *Decoder) Decode(data []byte) (*Plan, error) {
	if len(data) > MaxEncoded {
		return nil, fmt.Errorf("decode plan: %w: %d bytes", ErrTooLarge, len(data))
	}
	if !strings.HasPrefix(string(data[:min(len(data), len(header))]), header) {
		return nil, fmt.Errorf("decode plan: %w", ErrVersion)
	}

	r := pack.NewReader(data[len(header):])
	p := d.reset()
	p.Name = r.String()
	p.Clone.Flags = r.Uint()
	p.Clone.Cgroup = int(r.Int())
	p.Clone.UIDMap = takeIDMaps(r)
	p.Clone.GIDMap = takeIDMaps(r)

	for range r.Count(maxInputs) {
		p.Inputs = append(p.Inputs, takeInput(r))
	}
	steps := r.Count(maxSteps)
	p.Steps = slices.Grow(p.Steps, steps)

	for range steps {
		if r.Err() != nil {
			break
		}
		p.Steps = append(p.Steps, d.takeStep(r))
	}

	if err := r.Done(); err != nil {
		return nil, fmt.Errorf("decode plan: %w", err)
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return p, nil
}

func putIDMaps(w *pack.Writer, maps []specs.LinuxIDMapping) {
	w.Uint(uint64(len(maps)))
	for _, m := range maps {
		w.Uint(uint64(m.ContainerID))
		w.Uint(uint64(m.HostID))
		w.Uint(uint64(m.Size))
	}
}

func takeIDMaps(r *pack.Reader) []specs.LinuxIDMapping {
	var maps []specs.LinuxIDMapping
	for range r.Count(maxIDMaps) {
		maps = append(maps, specs.LinuxIDMapping{ContainerID: take32(r), HostID: take32(r), Size: take32(r)})
	}
	return maps
}

// take32 lets a number that does not fit wrap to a value that is caught or
// harmless: id maps are checked by the kernel.
func take32(r *pack.Reader) uint32 { return uint32(r.Uint()) }

func putInput(w *pack.Writer, in *Input) {
	w.String(in.Name)
	w.Uint(uint64(in.Kind))
	w.String(in.Path)
	w.Int(int64(in.OpenFlags))
	w.Bool(in.Recursive)
	w.Uint(in.AttrSet)
	w.Uint(in.AttrClear)
	w.Uint(in.AttrSetRecursive)
	w.Uint(in.Propagation)
	putIDMaps(w, in.UIDMap)
	putIDMaps(w, in.GIDMap)
	w.Bool(in.IDMapRecursive)
}

func takeInput(r *pack.Reader) Input {
	return Input{
		Name:             r.String(),
		Kind:             InputKind(takeEnum(r)),
		Path:             r.String(),
		OpenFlags:        int(r.Int()),
		Recursive:        r.Bool(),
		AttrSet:          r.Uint(),
		AttrClear:        r.Uint(),
		AttrSetRecursive: r.Uint(),
		Propagation:      r.Uint(),
		UIDMap:           takeIDMaps(r),
		GIDMap:           takeIDMaps(r),
		IDMapRecursive:   r.Bool(),
	}
}

// takeEnum maps a number beyond all enumerations to one that Validate refuses.
func takeEnum(r *pack.Reader) uint8 { return uint8(min(r.Uint(), uint64(badKind))) }

// badKind is a kind that no argument has.
const badKind = 0xff

func putStep(w *pack.Writer, s *Step, l *lists) {
	w.String(s.Name)
	w.Uint(uint64(s.Call))
	w.Int(int64(s.Save))
	w.Bool(s.Fork)
	w.Bool(s.Exposed)
	w.Uint(uint64(s.Cond))
	w.Int(int64(s.CondReg))
	w.Blob(s.Want)
	w.Blob(s.Avoid)
	w.Bool(s.Retry)
	w.Uint(uint64(len(s.Ignore)))

	for _, e := range s.Ignore {
		w.Uint(uint64(e))
	}
	w.Uint(uint64(len(s.Args)))

	for i := range s.Args {
		putArg(w, &s.Args[i], l)
	}
}

// reset returns an empty plan that reuses the memory of the last one.
func (d *Decoder) reset() *Plan {
	clear(d.plan.Inputs)
	clear(d.plan.Steps)
	d.plan = Plan{Inputs: d.plan.Inputs[:0], Steps: d.plan.Steps[:0]}
	d.lists = nil
	d.args.reset()
	d.errnos.reset()
	return &d.plan
}

// chunks allocates short lists, many at a time.
type chunks[T any] struct{ last, free []T }

// room returns an empty list for n elements.
func (c *chunks[T]) room(n int) []T {
	const first = 256
	if n > len(c.free) {
		// Earlier chunks are not reused; they grow until one is enough.
		c.last = make([]T, max(first, 2*len(c.last)))
		c.free = c.last
	}
	list := c.free[:0:n]
	c.free = c.free[n:]
	return list
}

func (c *chunks[T]) reset() {
	clear(c.last)
	c.free = c.last
}

func (d *Decoder) takeStep(r *pack.Reader) Step {
	s := Step{Name: r.String(), Call: uintptr(r.Uint())}
	s.Save = takeReg(r)
	s.Fork = r.Bool()
	s.Exposed = r.Bool()
	s.Cond = Cond(takeEnum(r))
	s.CondReg = takeReg(r)
	s.Want = r.Blob()
	s.Avoid = r.Blob()
	s.Retry = r.Bool()

	if n := r.Count(maxIgnore); n > 0 {
		s.Ignore = d.errnos.room(n)
		for range n {
			s.Ignore = append(s.Ignore, syscall.Errno(r.Uint()))
		}
	}

	if n := r.Count(maxArgs); n > 0 {
		s.Args = d.args.room(n)
		for range n {
			s.Args = append(s.Args, takeArg(r, &d.lists))
		}
	}

	return s
}

// takeReg clamps a number, and keeps an invalid one invalid.
func takeReg(r *pack.Reader) Reg { return Reg(max(min(r.Int(), NumRegs), -2)) }

func putArg(w *pack.Writer, a *Arg, l *lists) {
	w.Uint(uint64(a.Kind))
	switch a.Kind {
	case ArgInt, ArgIn, ArgReg, ArgPassFD, ArgBuf, ArgBack, ArgSync:
		w.Int(a.Int)
	case ArgStr:
		w.String(a.Str)
	case ArgStrs:
		l.put(w, a.Strs)
	case ArgBytes, ArgFilter:
		w.Blob(a.Bytes)
	case ArgRegPtr:
		w.Int(a.Int)
		w.Blob(a.Bytes)
	}
}

func takeArg(r *pack.Reader, l *lists) Arg {
	a := Arg{Kind: ArgKind(takeEnum(r))}
	switch a.Kind {
	case ArgInt, ArgIn, ArgReg, ArgPassFD, ArgBuf, ArgBack, ArgSync:
		a.Int = r.Int()
	case ArgStr:
		a.Str = r.String()
	case ArgStrs:
		list, ok := l.take(r)
		if !ok {
			return Arg{Kind: badKind}
		}
		a.Strs = list
	case ArgBytes, ArgFilter:
		a.Bytes = r.Blob()
	case ArgRegPtr:
		a.Int = r.Int()
		a.Bytes = r.Blob()
	}

	return a
}
