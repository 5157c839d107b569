package seccomp

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	allow  = action(unix.SECCOMP_RET_ALLOW)
	eperm  = unix.SECCOMP_RET_ERRNO | action(unix.EPERM)
	eacces = unix.SECCOMP_RET_ERRNO | action(unix.EACCES)
	logged = action(unix.SECCOMP_RET_LOG)
)

func compile(t testing.TB, goarch string, p *specs.LinuxSeccomp) testMachine {
	t.Helper()
	f, err := CompileFor(goarch, p)
	if err != nil {
		t.Fatal(err)
	}
	return newTestMachine(t, f)
}

// at is a call by name; a name that the ABI lacks fails the test.
func at(t testing.TB, a abi, name string, args ...uint64) event {
	t.Helper()
	nr, ok := a.number(name)
	if !ok {
		t.Fatalf("%s has no %s", a.arch, name)
	}
	e := event{arch: a.audit, nr: nr + a.base}
	copy(e.args[:], args)
	return e
}

func arg(index uint, op specs.LinuxSeccompOperator, values ...uint64) specs.LinuxSeccompArg {
	out := specs.LinuxSeccompArg{Index: index, Op: op, Value: values[0]}
	if len(values) > 1 {
		out.ValueTwo = values[1]
	}
	return out
}

func entry(name string, a specs.LinuxSeccompAction, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: []string{name}, Action: a, Args: args}
}

func TestOperators(t *testing.T) {
	const big = 0x1_0000_0005
	for _, tt := range []struct {
		cond     specs.LinuxSeccompArg
		yes, no  []uint64
		onlyWide bool // the operand has more than 32 bits
	}{
		{cond: arg(0, specs.OpEqualTo, 5), yes: []uint64{5}, no: []uint64{4, 6, big, math.MaxUint64}},
		{cond: arg(0, specs.OpEqualTo, big), yes: []uint64{big}, no: []uint64{5, big + 1, 0x2_0000_0005}, onlyWide: true},
		{cond: arg(0, specs.OpNotEqual, big), yes: []uint64{5, 1 << 32, big + 1}, no: []uint64{big}, onlyWide: true},
		{cond: arg(0, specs.OpNotEqual, 5), yes: []uint64{4, 6, big}, no: []uint64{5}},
		{cond: arg(0, specs.OpGreaterThan, big), yes: []uint64{big + 1, 0x2_0000_0000, math.MaxUint64}, no: []uint64{big, big - 1, 6, 0xffffffff}, onlyWide: true},
		{cond: arg(0, specs.OpGreaterEqual, big), yes: []uint64{big, big + 1, 0x2_0000_0000}, no: []uint64{big - 1, 6, 0xffffffff}, onlyWide: true},
		{cond: arg(0, specs.OpLessThan, big), yes: []uint64{0, 5, 0xffffffff, big - 1}, no: []uint64{big, big + 1, 0x2_0000_0000}, onlyWide: true},
		{cond: arg(0, specs.OpLessEqual, big), yes: []uint64{0, 0xffffffff, big}, no: []uint64{big + 1, 0x2_0000_0000}, onlyWide: true},
		{cond: arg(0, specs.OpMaskedEqual, 0xf0, 0x50), yes: []uint64{0x50, 0x5f, 0x1_0000_0050}, no: []uint64{0x40, 0x150 &^ 0x50}},
		{cond: arg(0, specs.OpMaskedEqual, 0xf_0000_000f, 0x1_0000_0005), yes: []uint64{big, big + 0x10}, no: []uint64{5, 0x2_0000_0005}, onlyWide: true},
		{cond: arg(0, specs.OpMaskedEqual, 0xf0, 0x5f), yes: []uint64{0x50}, no: []uint64{0x60}}, // bits outside the mask do not count
		{cond: arg(5, specs.OpEqualTo, 0), yes: nil, no: nil},
	} {
		t.Run(fmt.Sprintf("%s_%#x", tt.cond.Op, tt.cond.Value), func(t *testing.T) {
			m := compile(t, "amd64", &specs.LinuxSeccomp{
				DefaultAction: specs.ActErrno,
				Architectures: []specs.Arch{specs.ArchX86},
				Syscalls:      []specs.LinuxSyscall{entry("read", specs.ActAllow, tt.cond), entry("write", specs.ActAllow)},
			})

			abis := []abi{amd64, i386}
			if tt.onlyWide {
				abis = abis[:1]
			}

			for want, values := range map[action][]uint64{allow: tt.yes, eperm: tt.no} {
				for _, v := range values {
					for _, a := range abis {
						if !a.wide && v > math.MaxUint32 {
							continue
						}
						if got := m.run(t, at(t, a, "read", v)); got != want {
							t.Errorf("%s: read(%#x) = %#x, want %#x", a.arch, v, got, want)
						}
					}
				}
			}
		})
	}
}

// A 32-bit program passes -1 as 0xffffffff, a profile may write it with 64 bits.
func TestNarrowOperand(t *testing.T) {
	m := compile(t, "amd64", &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Architectures: []specs.Arch{specs.ArchX86, specs.ArchX32},
		Syscalls:      []specs.LinuxSyscall{entry("personality", specs.ActAllow, arg(0, specs.OpEqualTo, math.MaxUint64))},
	})
	for a, want := range map[*abi]action{&i386: allow, &x32: allow, &amd64: eperm} {
		if got := m.run(t, at(t, *a, "personality", math.MaxUint32)); got != want {
			t.Errorf("%s: %#x, want %#x", a.arch, got, want)
		}
	}
}

func TestABIs(t *testing.T) {
	p := func(arches ...specs.Arch) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{
			DefaultAction: specs.ActErrno, Architectures: arches,
			Syscalls: []specs.LinuxSyscall{entry("read", specs.ActAllow), entry("close_range", specs.ActAllow)},
		}
	}
	for _, tt := range []struct {
		goarch string
		listed []specs.Arch
		a      abi
		want   action
	}{
		{"amd64", nil, amd64, allow},
		{"amd64", nil, i386, killThread},
		{"amd64", nil, x32, killThread},
		{"amd64", []specs.Arch{specs.ArchX86}, amd64, allow},
		{"amd64", []specs.Arch{specs.ArchX86}, i386, allow},
		{"amd64", []specs.Arch{specs.ArchX86_64, specs.ArchX32}, x32, allow},
		{"amd64", []specs.Arch{specs.ArchS390X}, amd64, allow},
		{"amd64", []specs.Arch{specs.ArchARM}, arm, killThread},
		{"arm64", nil, arm64, allow},
		{"arm64", nil, arm, killThread},
		{"arm64", []specs.Arch{specs.ArchARM, specs.ArchAARCH64}, arm, allow},
		{"arm64", []specs.Arch{specs.ArchX86_64}, amd64, killThread},
	} {
		if got := compile(t, tt.goarch, p(tt.listed...)).run(t, at(t, tt.a, "read")); got != tt.want {
			t.Errorf("%s listing %v: %s gives %#x, want %#x", tt.goarch, tt.listed, tt.a.arch, got, tt.want)
		}
	}
}

func TestNewerCallsAreUnknown(t *testing.T) {
	arches := []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	last, _ := amd64.number("close_range")
	for _, tt := range []struct {
		name string
		def  specs.LinuxSeccompAction
		nr   uint32
		want action
	}{
		{"below", specs.ActErrno, last - 1, eperm},
		{"above", specs.ActErrno, last + 1, noSuchCall},
		{"last below x32", specs.ActErrno, x32Bit - 1, noSuchCall},
		{"above in x32", specs.ActErrno, x32Bit + last + 1, noSuchCall},
		{"below in x32", specs.ActErrno, x32Bit + last - 1, eperm},
		{"skipped by a tracer", specs.ActErrno, math.MaxUint32, noSuchCall},
		{"default kill", specs.ActKillProcess, last + 1, noSuchCall},
		{"default trap", specs.ActTrap, last + 1, noSuchCall},
		{"default allow", specs.ActAllow, last + 1, allow},
		{"default log", specs.ActLog, last + 1, logged},
		{"default trace", specs.ActTrace, last + 1, unix.SECCOMP_RET_TRACE | action(unix.EPERM)},
		{"default allow, skipped", specs.ActAllow, math.MaxUint32, allow},
	} {
		p := &specs.LinuxSeccomp{DefaultAction: tt.def, Architectures: arches, Syscalls: []specs.LinuxSyscall{
			entry("close_range", specs.ActErrno), entry("read", specs.ActKill),
		}}
		if got := compile(t, "amd64", p).run(t, event{arch: amd64.audit, nr: tt.nr}); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}

	// A profile without names does not define newer calls.
	empty := compile(t, "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno})
	if got := empty.run(t, event{arch: amd64.audit, nr: 9999}); got != eperm {
		t.Errorf("empty profile: %#x, want %#x", got, eperm)
	}

	// Without x32 among the ABIs, its numbers are another ABI's.
	plain := compile(t, "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{entry("read", specs.ActAllow)}})
	for nr, want := range map[uint32]action{x32Bit: killThread, math.MaxUint32 - 1: killThread, math.MaxUint32: noSuchCall} {
		if got := plain.run(t, event{arch: amd64.audit, nr: nr}); got != want {
			t.Errorf("number %#x without x32: %#x, want %#x", nr, got, want)
		}
	}
}

// The private calls of ARM are far above the rest, which stays unknown.
func TestPrivateCallsOfARM(t *testing.T) {
	m := compile(t, "arm64", &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchARM},
		Syscalls: []specs.LinuxSyscall{entry("openat2", specs.ActAllow), entry("set_tls", specs.ActAllow)},
	})
	if got := m.run(t, at(t, arm, "set_tls")); got != allow {
		t.Errorf("set_tls: %#x", got)
	}
	if got := m.run(t, event{arch: arm.audit, nr: 600}); got != noSuchCall {
		t.Errorf("number 600: %#x", got)
	}
}

func TestPrecedence(t *testing.T) {
	m := compile(t, "amd64", &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Syscalls: []specs.LinuxSyscall{
			entry("read", specs.ActKill, arg(0, specs.OpEqualTo, 1)),
			entry("read", specs.ActAllow),
			entry("read", specs.ActLog),
			entry("write", specs.ActLog, arg(0, specs.OpEqualTo, 1)),
			entry("write", specs.ActAllow, arg(0, specs.OpLessThan, 9)),
			entry("openat", specs.ActAllow, arg(0, specs.OpEqualTo, 1), arg(1, specs.OpEqualTo, 2)),
			entry("dup3", specs.ActAllow, arg(0, specs.OpEqualTo, 1), arg(0, specs.OpEqualTo, 2)),
			{Names: []string{"close"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(unix.EACCES))},
			entry("no_such_call", specs.ActAllow),
		},
	})
	for _, tt := range []struct {
		e    event
		want action
	}{
		{at(t, amd64, "read", 1), allow},
		{at(t, amd64, "write", 1), logged},
		{at(t, amd64, "write", 2), allow},
		{at(t, amd64, "write", 9), eperm},
		{at(t, amd64, "openat", 1, 2), allow},
		{at(t, amd64, "openat", 1, 3), eperm},
		{at(t, amd64, "openat", 0, 2), eperm},
		{at(t, amd64, "dup3", 1), allow},
		{at(t, amd64, "dup3", 2), allow},
		{at(t, amd64, "dup3", 3), eperm},
		{at(t, amd64, "close"), eacces},
	} {
		if got := m.run(t, tt.e); got != tt.want {
			t.Errorf("call %d%v: %#x, want %#x", tt.e.nr, tt.e.args, got, tt.want)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestMultiplexedCalls(t *testing.T) {
	x86 := []specs.Arch{specs.ArchX86}
	socket := func(a abi, args ...uint64) event { return at(t, a, "socket", args...) }
	via := func(n uint64) event { return at(t, i386, "socketcall", n) }
	deny := compile(t, "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: x86, Syscalls: []specs.LinuxSyscall{
		entry("socket", specs.ActErrno, arg(0, specs.OpEqualTo, unix.AF_ALG)), entry("semop", specs.ActErrno),
	}})

	admit := compile(t, "amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: x86, Syscalls: []specs.LinuxSyscall{
		entry("socket", specs.ActAllow, arg(0, specs.OpEqualTo, unix.AF_INET)), entry("connect", specs.ActAllow),
	}})
	for _, tt := range []struct {
		name string
		m    testMachine
		e    event
		want action
	}{
		{"denied directly", deny, socket(i386, unix.AF_ALG), eperm},
		{"allowed directly", deny, socket(i386, unix.AF_INET), allow},
		{"denied whatever the family", deny, via(1), eperm},
		{"another call of socketcall", deny, via(3), allow},
		{"semop", deny, at(t, i386, "ipc", 1), eperm},
		{"another call of ipc", deny, at(t, i386, "ipc", 2), allow},
		{"socket of amd64", deny, socket(amd64, unix.AF_ALG), eperm},
		{"not opened by a rule about arguments", admit, via(1), eperm},
		{"opened by a rule without", admit, via(3), allow},
	} {
		if got := tt.m.run(t, tt.e); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}
}

func TestActions(t *testing.T) {
	for _, tt := range []struct {
		action specs.LinuxSeccompAction
		errno  *uint
		want   action
		err    error
	}{
		{action: specs.ActKill, want: 0},
		{action: specs.ActKillThread, want: 0},
		{action: specs.ActKillProcess, want: 0x80000000},
		{action: specs.ActTrap, want: 0x00030000},
		{action: specs.ActErrno, want: 0x00050001},
		{action: specs.ActErrno, errno: ptr(uint(38)), want: 0x00050026},
		{action: specs.ActErrno, errno: ptr(uint(0)), want: 0x00050000},
		{action: specs.ActErrno, errno: ptr(uint(4096)), err: ErrInvalid},
		{action: specs.ActTrace, want: 0x7ff00001},
		{action: specs.ActTrace, errno: ptr(uint(0xffff)), want: 0x7ff0ffff},
		{action: specs.ActTrace, errno: ptr(uint(0x10000)), err: ErrInvalid},
		{action: specs.ActLog, want: 0x7ffc0000},
		{action: specs.ActAllow, want: 0x7fff0000},
		{action: specs.ActAllow, errno: ptr(uint(1)), err: ErrInvalid},
		{action: specs.ActNotify, err: ErrInvalid}, // without an agent
		{action: "SCMP_ACT_NONSENSE", err: ErrInvalid},
		{action: "", err: ErrInvalid},
	} {
		f, err := CompileFor("amd64", &specs.LinuxSeccomp{DefaultAction: tt.action, DefaultErrnoRet: tt.errno})
		if !errors.Is(err, tt.err) {
			t.Errorf("%s: error %v, want %v", tt.action, err, tt.err)
		}
		if err == nil {
			if got := newTestMachine(t, f).run(t, event{arch: amd64.audit}); got != tt.want {
				t.Errorf("%s: %#x, want %#x", tt.action, got, tt.want)
			}
		}

		_, err = CompileFor("amd64", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read"}, Action: tt.action, ErrnoRet: tt.errno},
		}})
		if !errors.Is(err, tt.err) {
			t.Errorf("%s in an entry: error %v, want %v", tt.action, err, tt.err)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		flags []specs.LinuxSeccompFlag
		want  uint32
		err   error
	}{
		{flags: nil, want: unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{flags: []specs.LinuxSeccompFlag{}, want: 0},
		{flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"}, want: 6},
		{flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"}, want: 0},
		{flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NONSENSE"}, err: ErrInvalid},
	} {
		f, err := CompileFor("arm64", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: tt.flags})
		if f.Flags != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%v: %#x, %v; want %#x, %v", tt.flags, f.Flags, err, tt.want, tt.err)
		}
	}
}

func TestInvalidProfiles(t *testing.T) {
	for name, p := range map[string]*specs.LinuxSeccomp{
		"no default":   {},
		"architecture": {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"amd64"}},
		"no names":     {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Action: specs.ActAllow}}},
		"argument": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			entry("read", specs.ActErrno, arg(6, specs.OpEqualTo, 1))}},
		"operator": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			entry("read", specs.ActErrno, arg(0, "SCMP_CMP_NONSENSE", 1))}},
	} {
		if _, err := CompileFor("amd64", p); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := CompileFor("riscv64", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("riscv64: %v, want ErrUnsupported", err)
	}
}

// Programs up to the kernel's limit work, with jumps beyond the reach of a
// conditional one; longer ones are refused.
func TestLength(t *testing.T) {
	profile := func(rules int) *specs.LinuxSeccomp {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		for i := range rules {
			name := []string{"read", "write", "openat"}[i%3]
			p.Syscalls = append(p.Syscalls, entry(name, specs.ActAllow, arg(uint(i%6), specs.OpEqualTo, uint64(1000+i))))
		}
		return p
	}

	m := compile(t, "amd64", profile(600))
	for i := range 600 {
		e := at(t, amd64, []string{"read", "write", "openat"}[i%3])
		if got := m.run(t, e); got != eperm {
			t.Fatalf("rule %d without its argument: %#x", i, got)
		}
		e.args[i%6] = uint64(1000 + i)
		if got := m.run(t, e); got != allow {
			t.Fatalf("rule %d: %#x", i, got)
		}
	}

	if _, err := CompileFor("amd64", profile(900)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("900 rules: %v, want ErrTooLarge", err)
	}
}

// Random profiles behave like a naive interpretation.
func TestAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 400 {
		p := randomProfile(r)
		m := compile(t, "amd64", p)
		for range 200 {
			e, name, a := randomEvent(r, p)
			if got, want := m.run(t, e), model(p, a, name, e); got != want {
				t.Fatalf("%s %s(%#x): %#x, want %#x\nprofile: %+v", a.arch, name, e.args, got, want, p)
			}
		}
	}
}

var (
	someNames = []string{"read", "write", "openat", "close", "clone", "personality", "dup", "umask", "execve", "futex"}
	operators = []specs.LinuxSeccompOperator{
		specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual,
		specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual,
	}
	someValues = []uint64{0, 1, 5, 0x7fffffff, 0x80000000, math.MaxUint32, 1 << 32, 1<<32 + 5, math.MaxUint64 - 1, math.MaxUint64}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func randomProfile(r *rand.Rand) *specs.LinuxSeccomp {
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActLog, specs.ActKillProcess}
	p := &specs.LinuxSeccomp{
		DefaultAction: pick(r, actions),
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
	}
	for range r.IntN(20) {
		e := entry(pick(r, someNames), pick(r, actions))
		for range r.IntN(4) {
			e.Args = append(e.Args, arg(uint(r.IntN(6)), pick(r, operators), pick(r, someValues), pick(r, someValues)))
		}
		p.Syscalls = append(p.Syscalls, e)
	}
	return p
}

func randomEvent(r *rand.Rand, p *specs.LinuxSeccomp) (event, string, abi) {
	a, name := pick(r, []abi{amd64, i386, x32}), pick(r, someNames)
	nr, _ := a.number(name)
	e := event{arch: a.audit, nr: nr + a.base}
	for i := range e.args {
		e.args[i] = pick(r, someValues) + uint64(r.IntN(3)) - 1
	}
	return e, name, a
}

// model decides a call as the package documentation specifies.
func model(p *specs.LinuxSeccomp, a abi, name string, e event) action {
	fallback, _ := newAction(p.DefaultAction, nil)
	decided := fallback
	found := false
	newest := uint32(0)
	for _, s := range p.Syscalls {
		nr, _ := a.number(s.Names[0])
		newest = max(newest, nr+1)
		act, _ := newAction(s.Action, nil)
		if s.Names[0] != name || act == fallback {
			continue
		}
		if len(s.Args) == 0 {
			return act
		}
		if !found && matches(s.Args, e.args, a.wide) {
			decided, found = act, true
		}
	}

	// An unconditional rule further down wins, which the loop above returns.
	if nr, _ := a.number(name); newest > 0 && nr >= newest && !fallback.permits() {
		return noSuchCall
	}
	return decided
}

func matches(conds []specs.LinuxSeccompArg, args [6]uint64, wide bool) bool {
	one, every := false, true
	for _, c := range conds {
		ok := holds(c, args[c.Index], wide)
		one, every = one || ok, every && ok
	}
	if repeatsArgument(conds) {
		return one
	}
	return every
}

func holds(c specs.LinuxSeccompArg, v uint64, wide bool) bool {
	x, y := c.Value, c.ValueTwo
	if !wide {
		v, x, y = uint64(uint32(v)), uint64(uint32(x)), uint64(uint32(y))
	}

	switch c.Op {
	case specs.OpEqualTo:
		return v == x
	case specs.OpNotEqual:
		return v != x
	case specs.OpGreaterThan:
		return v > x
	case specs.OpGreaterEqual:
		return v >= x
	case specs.OpLessThan:
		return v < x
	case specs.OpLessEqual:
		return v <= x
	default:
		return v&x == y&x
	}
}

// TestJoins identifies profiles under which a process can still join others.
func TestJoins(t *testing.T) {
	deny := func(calls ...specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: calls}
	}
	terminal := entry("ioctl", specs.ActErrno, arg(1, specs.OpEqualTo, unix.TIOCSCTTY))
	for name, c := range map[string]struct {
		profile *specs.LinuxSeccomp
		want    bool
	}{
		"all":             {deny(), true},
		"runtime default": {RuntimeDefault(nil), true},
		"no clone":        {deny(entry("clone", specs.ActErrno)), false},
		"no setsid":       {deny(entry("setsid", specs.ActKillProcess)), false},
		"no terminal":     {deny(terminal), false},
		"no other ioctl":  {deny(entry("ioctl", specs.ActErrno, arg(1, specs.OpEqualTo, 1))), true},
	} {
		f, err := Compile(c.profile)
		if err != nil {
			t.Fatal(err)
		}
		if f.Joins != c.want {
			t.Errorf("%s: Joins is %v", name, f.Joins)
		}
	}
}
