package seccompdiff

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"crisp/runtime/seccomp"
)

const noSuchCall = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)

// armPrivate begins the calls of ARM that have numbers far above the rest.
const armPrivate = 0xf0000

// pair is one profile compiled both ways.
type pair struct {
	goarch       string
	profile      *specs.LinuxSeccomp
	ours, theirs program
	newest       map[abi]uint32 // the highest number that the profile names
}

func newPair(t testing.TB, goarch string, p *specs.LinuxSeccomp) pair {
	t.Helper()
	abis := machines[goarch]
	p.Architectures = nil
	for _, a := range abis {
		p.Architectures = append(p.Architectures, a.spec)
	}

	f, err := seccomp.CompileFor(goarch, p)
	if err != nil {
		t.Fatal(err)
	}

	out := pair{goarch: goarch, profile: p, ours: newProgram(t, f.Prog), theirs: oracle(t, abis, p), newest: map[abi]uint32{}}
	for _, a := range abis {
		for _, s := range p.Syscalls {
			for _, name := range s.Names {
				if nr, ok := number(a, name); ok && nr%x32Bit < armPrivate {
					out.newest[a] = max(out.newest[a], nr)
				}
			}
		}
	}

	return out
}

const x32Bit = 0x40000000

// number returns the number of a call as libseccomp has it. Negative numbers
// stand for calls that an ABI lacks or multiplexes.
func number(a abi, name string) (uint32, bool) {
	nr, err := libseccomp.GetSyscallFromNameByArch(name, a.lib)
	if err != nil || int32(nr) < 0 {
		return 0, false
	}
	return uint32(nr), true
}

// compare runs one call through both filters.
func (p pair) compare(t testing.TB, a abi, e event) {
	t.Helper()
	ours, theirs := p.ours.run(t, e), p.theirs.run(t, e)
	if ours == theirs {
		return
	}

	if a == x32 && e.nr < x32Bit {
		a = amd64
	} else if a == amd64 && e.nr >= x32Bit && e.nr != math.MaxUint32 {
		a = x32
	}

	// runc, not libseccomp, adds that calls newer than the profile are unknown.
	if e.nr > p.newest[a] && ours == noSuchCall {
		return
	}
	t.Fatalf("%s: call %#x(%#x): ours %#x, libseccomp's %#x\nprofile: %+v", a.spec, e.nr, e.args, ours, theirs, p.profile)
}

// edges are values next to all that the profile compares arguments with.
func (p pair) edges() []uint64 {
	out := []uint64{0, 1, math.MaxInt32, math.MaxUint32, 1 << 32, math.MaxUint64}
	for _, s := range p.profile.Syscalls {
		for _, arg := range s.Args {
			for _, v := range []uint64{arg.Value, arg.ValueTwo, arg.Value & arg.ValueTwo} {
				out = append(out, v-1, v, v+1, ^v, v|1<<32, v|1<<63, uint64(uint32(v)))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestNumbers compares the tables of system calls through one filter for
// each call: a wrong number allows another call.
func TestNumbers(t *testing.T) {
	known := 0
	for goarch, abis := range machines {
		for _, a := range abis {
			for nr := range uint32(460) {
				name, err := libseccomp.ScmpSyscall(lib(a, nr)).GetNameByArch(a.lib)
				if err != nil {
					continue
				}

				known++
				f, err := seccomp.CompileFor(goarch, &specs.LinuxSeccomp{
					DefaultAction: specs.ActKillProcess,
					Architectures: []specs.Arch{a.spec},
					Syscalls:      []specs.LinuxSyscall{{Names: []string{name}, Action: specs.ActAllow}},
				})
				if err != nil {
					t.Fatal(err)
				}

				if got := newProgram(t, f.Prog).run(t, event{audit: a.audit, nr: lib(a, nr)}); got != unix.SECCOMP_RET_ALLOW {
					t.Errorf("%s: %s is not number %d: %#x", a.spec, name, nr, got)
				}
			}
		}
	}

	if known < 1500 {
		t.Errorf("libseccomp named %d calls only", known)
	}
}

// lib returns the number of a call with the bit that marks x32.
func lib(a abi, nr uint32) uint32 {
	if a.spec == specs.ArchX32 {
		return nr | x32Bit
	}
	return nr
}

func TestRuntimeDefault(t *testing.T) {
	sets := [][]string{
		nil,
		{"CAP_SYS_ADMIN"},
		{"CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_TIME", "CAP_SYSLOG", "CAP_BPF", "CAP_PERFMON"},
		{"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_RAWIO", "CAP_SYS_PACCT", "CAP_DAC_READ_SEARCH"},
	}
	for goarch, abis := range machines {
		for _, caps := range sets {
			profile := seccomp.RuntimeDefault(caps)
			dropUnknown(profile)
			p := newPair(t, goarch, profile)
			t.Logf("%s: %d instructions, libseccomp %d", goarch, p.ours.length, p.theirs.length)

			edges := p.edges()
			for _, a := range abis {
				for nr := range uint32(520) {
					for _, v := range edges {
						p.compare(t, a, event{audit: a.audit, nr: lib(a, nr), args: [6]uint64{v, v, v, v, v, v}})
					}
				}
			}
		}
	}
}

// dropUnknown takes the names out of a profile that libseccomp is too old for.
func dropUnknown(p *specs.LinuxSeccomp) {
	for i, s := range p.Syscalls {
		p.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(s.Names), func(name string) bool {
			_, err := libseccomp.GetSyscallFromName(name)
			return err != nil
		})
	}
	p.Syscalls = slices.DeleteFunc(p.Syscalls, func(s specs.LinuxSyscall) bool { return len(s.Names) == 0 })
}

func TestRandomProfiles(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 600 {
		goarch := pick(r, []string{"amd64", "arm64"})
		p := newPair(t, goarch, randomProfile(r))
		edges := p.edges()
		for range 400 {
			a := pick(r, machines[goarch])
			e := event{audit: a.audit, nr: randomNumber(r, a)}
			for i := range e.args {
				e.args[i] = pick(r, edges)
				if r.IntN(4) == 0 {
					e.args[i] = r.Uint64()
				}
			}
			p.compare(t, a, e)
		}
	}
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// someNames are calls that all ABIs have, some of them multiplexed by i386.
// With calls that an ABI lacks, libseccomp forgets other rules at times.
var someNames = []string{
	"read", "write", "openat", "close", "clone", "personality", "dup3", "umask", "execve", "futex", "clone3",
	"connect", "semget", "shmat", "socketpair", "openat2", "mlock2", "setxattr", "sysinfo", "waitid",
}

// multiplexed calls get no conditions: libseccomp drops them where they
// cannot be looked at, crisp drops the rule then if it would allow more.
var multiplexed = []string{"connect", "semget", "shmat", "socketpair"}

var someValues = []uint64{0, 1, 5, 0x7fffffff, 0x80000000, math.MaxUint32, 1 << 32, 1<<32 + 5, math.MaxUint64 - 1, math.MaxUint64}

var (
	actions = []specs.LinuxSeccompAction{
		specs.ActAllow, specs.ActErrno, specs.ActLog, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActTrace,
	}
	operators = []specs.LinuxSeccompOperator{
		specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual,
		specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual,
	}
)

// randomProfile makes a profile for which libseccomp does what it says. All
// rules of a call have the same action, since the order in which it tries
// different ones is its own affair. Where there are several rules they test
// for equality: of "less than a or less than b" it loses a part.
func randomProfile(r *rand.Rand) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{DefaultAction: pick(r, actions)}
	for _, name := range someNames {
		action := pick(r, actions)
		switch r.IntN(4) {
		case 0:
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: action})
		case 1:
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: action, Args: conjunction(r, name)})
		case 2:
			for range r.IntN(6) {
				p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: action, Args: alternatives(r, name)})
			}
		}
	}

	return p
}

// conjunction makes conditions on several arguments, all of which must hold.
func conjunction(r *rand.Rand, name string) []specs.LinuxSeccompArg {
	if slices.Contains(multiplexed, name) {
		return nil
	}
	var out []specs.LinuxSeccompArg
	for i := range uint(6) {
		if r.IntN(3) == 0 {
			out = append(out, specs.LinuxSeccompArg{Index: i, Op: pick(r, operators), Value: pick(r, someValues), ValueTwo: pick(r, someValues)})
		}
	}
	return out
}

// alternatives makes conditions on one argument, one of which must hold.
func alternatives(r *rand.Rand, name string) []specs.LinuxSeccompArg {
	if slices.Contains(multiplexed, name) {
		return nil
	}
	var out []specs.LinuxSeccompArg
	for range 1 + r.IntN(3) {
		out = append(out, specs.LinuxSeccompArg{Index: uint(len(name) % 6), Op: specs.OpEqualTo, Value: pick(r, someValues)})
	}
	return out
}

func randomNumber(r *rand.Rand, a abi) uint32 {
	switch r.IntN(8) {
	case 0:
		return pick(r, []uint32{0, 1, x32Bit - 1, x32Bit, 1<<31 - 1, 1 << 31, math.MaxUint32 - 1, math.MaxUint32, 0xf0005})
	case 1:
		return lib(a, uint32(r.IntN(600)))
	}
	for {
		if nr, ok := number(a, pick(r, append(someNames, "socketcall", "ipc"))); ok {
			return nr
		}
	}
}
