package seccomp

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Filter is a profile compiled for seccomp(2).
type Filter struct {
	// Prog is an array of struct sock_filter.
	Prog []byte
	// Flags are SECCOMP_FILTER_FLAG_* bits. With SECCOMP_FILTER_FLAG_NEW_LISTENER
	// loading the filter returns the descriptor for the profile's listenerPath.
	Flags uint32
	// Joins: a process can join the PID namespace of others after it has loaded
	// the filter: clone, start a session, set a controlling terminal, limit
	// itself. For profiles that forbid that, see [Filter.WithPass].
	Joins bool
}

// Compile compiles a profile for this machine.
func Compile(p *specs.LinuxSeccomp) (Filter, error) {
	f, err := CompileFor(runtime.GOARCH, p)
	if err != nil {
		return f, err
	}

	abis, err := abisOf(runtime.GOARCH)
	if err != nil {
		return f, err
	}
	f.Joins, err = joins(f.Prog, abis[0])

	return f, err
}

// CompileFor compiles a profile for an architecture, "amd64" or "arm64". It
// leaves Joins unset.
func CompileFor(goarch string, p *specs.LinuxSeccomp) (Filter, error) {
	flags, err := newFlags(p.Flags)
	if err != nil {
		return Filter{}, err
	}

	abis, err := selectABIs(goarch, p.Architectures)
	if err != nil {
		return Filter{}, err
	}

	fallback, err := newAction(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return Filter{}, fmt.Errorf("default action: %w", err)
	}

	rules, err := newRules(p.Syscalls)
	if err != nil {
		return Filter{}, err
	}
	listening, err := listen(p, rules, fallback)
	if err != nil {
		return Filter{}, err
	}

	prog := program(abis, rules, fallback)
	if len(prog) > maxLength {
		return Filter{}, fmt.Errorf("%w: %d instructions, limit %d", ErrTooLarge, len(prog), maxLength)
	}
	return Filter{Prog: prog.bytes(), Flags: flags | listening}, nil
}

// rule is one entry of a profile.
type rule struct {
	names      []string
	action     action
	conditions []specs.LinuxSeccompArg // at most one for each argument
}

// newRules checks the entries of a profile.
func newRules(entries []specs.LinuxSyscall) ([]rule, error) {
	var rules []rule
	for i, e := range entries {
		a, err := newAction(e.Action, e.ErrnoRet)
		if len(e.Names) == 0 {
			err = errors.Join(err, fmt.Errorf("%w: no names", ErrInvalid))
		}

		for _, c := range e.Args {
			err = errors.Join(err, checkCondition(c))
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d, %q: %w", i, e.Names, err)
		}

		if !repeatsArgument(e.Args) {
			rules = append(rules, rule{e.Names, a, e.Args})
			continue
		}
		for _, c := range e.Args {
			rules = append(rules, rule{e.Names, a, []specs.LinuxSeccompArg{c}})
		}
	}

	return rules, nil
}

func repeatsArgument(conditions []specs.LinuxSeccompArg) bool {
	var seen [maxArg + 1]bool
	for _, c := range conditions {
		if seen[c.Index] {
			return true
		}
		seen[c.Index] = true
	}
	return false
}

// program is the whole filter: it branches by ABI, then searches the number.
func program(abis []abi, rules []rule, fallback action) block {
	out := give(killThread)
	for _, a := range slices.Backward(abis) {
		if a.arch == specs.ArchX32 {
			continue // searched together with amd64
		}
		ranges := rangesOf(a, rules, fallback)
		if a.arch == specs.ArchX86_64 {
			ranges = append(ranges, x32Ranges(abis, rules, fallback, ranges)...)
		}
		number := block{{code: opLoad, k: offsetNumber}}
		out = choose(opEq, a.audit, append(number, search(merge(ranges))...), out)
	}
	return append(block{{code: opLoad, k: offsetArch}}, out...)
}

// numbers is a range of call numbers with the same decision, from first up to
// the next range.
type numbers struct {
	first  uint32
	wide   bool
	checks []check // in order
	action action  // when no check applies
}

// check is a rule for one call.
type check struct {
	conditions []specs.LinuxSeccompArg
	action     action
}

// rangesOf returns the ranges of an ABI in order, the first from the ABI's
// base on.
func rangesOf(a abi, rules []rule, fallback action) []numbers {
	starts, unknown := decide(a, rules, fallback)
	gap := func(nr uint32) numbers {
		if unknown > 0 && nr >= unknown && !fallback.permits() {
			return numbers{action: noSuchCall}
		}
		return numbers{action: fallback}
	}

	after := []uint32{0, unknown}
	for nr := range starts {
		after = append(after, nr+1)
	}

	for _, nr := range after {
		if _, ok := starts[nr]; !ok {
			starts[nr] = gap(nr)
		}
	}

	var ranges []numbers
	for _, nr := range slices.Sorted(maps.Keys(starts)) {
		n := starts[nr]
		n.first, n.wide = a.base+nr, a.wide
		ranges = append(ranges, n)
	}

	return ranges
}

// decide returns the decision of the rules for each number of an ABI, and the
// first number above all that they name, or 0 if they name none.
func decide(a abi, rules []rule, fallback action) (decided map[uint32]numbers, unknown uint32) {
	decided = map[uint32]numbers{}
	for _, r := range rules {
		for _, name := range r.names {
			if nr, ok := a.number(name); ok {
				add(decided, nr, check{r.conditions, r.action}, fallback)
				if nr < armPrivate {
					unknown = max(unknown, nr+1)
				}
			}

			via, selector, ok := a.multiplexed(name)
			// The actual arguments are in memory, which a filter cannot read. A
			// rule with conditions on them may restrict the multiplexed call,
			// but not allow it.
			if !ok || len(r.conditions) > 0 && !r.action.stricterThan(fallback) {
				continue
			}

			nr, _ := a.number(via)
			selected := specs.LinuxSeccompArg{Index: 0, Value: selector, Op: specs.OpEqualTo}
			add(decided, nr, check{[]specs.LinuxSeccompArg{selected}, r.action}, fallback)
		}
	}

	return decided, unknown
}

// add adds a check for a number, unless it changes nothing.
func add(decided map[uint32]numbers, nr uint32, c check, fallback action) {
	if c.action == fallback {
		return
	}
	n, ok := decided[nr]
	switch {
	case ok && len(n.checks) == 0:
		return // decided regardless of the arguments
	case len(c.conditions) == 0:
		n = numbers{action: c.action}
	default:
		n.action = fallback
		n.checks = append(n.checks, c)
	}
	decided[nr] = n
}

// x32Ranges returns the ranges of amd64 from x32's numbers on, given those below.
func x32Ranges(abis []abi, rules []rule, fallback action, below []numbers) []numbers {
	ranges := []numbers{{first: x32Bit, action: killThread}}
	if slices.ContainsFunc(abis, func(a abi) bool { return a.arch == specs.ArchX32 }) {
		ranges = rangesOf(x32, rules, fallback)
	}
	// A tracer that skips a call sets its number to -1, which is not an x32 call.
	skipped := numbers{first: math.MaxUint32, action: below[len(below)-1].action}
	return append(ranges, skipped)
}

// merge merges adjacent ranges with the same decision.
func merge(ranges []numbers) []numbers {
	return slices.CompactFunc(ranges, func(a, b numbers) bool {
		return a.action == b.action && len(a.checks)+len(b.checks) == 0
	})
}

// search finds the range of the loaded number by binary search.
func search(ranges []numbers) block {
	if len(ranges) == 1 {
		n := ranges[0]
		var out block
		for _, c := range n.checks {
			out = append(out, when(c.conditions, n.wide, c.action)...)
		}
		return append(out, give(n.action)...)
	}
	middle := len(ranges) / 2
	return choose(opGe, ranges[middle].first, search(ranges[middle:]), search(ranges[:middle]))
}
