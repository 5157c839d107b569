package seccompdiff

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// abi is a way to call the kernel, in the words of all parties.
type abi struct {
	spec  specs.Arch
	lib   libseccomp.ScmpArch
	audit uint32
}

var (
	amd64 = abi{specs.ArchX86_64, libseccomp.ArchAMD64, unix.AUDIT_ARCH_X86_64}
	x32   = abi{specs.ArchX32, libseccomp.ArchX32, unix.AUDIT_ARCH_X86_64}
	i386  = abi{specs.ArchX86, libseccomp.ArchX86, unix.AUDIT_ARCH_I386}
	arm64 = abi{specs.ArchAARCH64, libseccomp.ArchARM64, unix.AUDIT_ARCH_AARCH64}
	arm   = abi{specs.ArchARM, libseccomp.ArchARM, unix.AUDIT_ARCH_ARM}

	// machines are the ABIs of each, its own first.
	machines = map[string][]abi{"amd64": {amd64, x32, i386}, "arm64": {arm64, arm}}
)

// event is a call as a filter sees it.
type event struct {
	audit, nr uint32
	args      [6]uint64
}

// program is a filter that can be run.
type program struct {
	vm     *bpf.VM
	length int
}

func newProgram(t testing.TB, code []byte) program {
	t.Helper()
	var raw []bpf.RawInstruction
	for ; len(code) >= 8; code = code[8:] {
		raw = append(raw, bpf.RawInstruction{
			Op: binary.NativeEndian.Uint16(code), Jt: code[2], Jf: code[3], K: binary.NativeEndian.Uint32(code[4:]),
		})
	}

	insns, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("unknown instructions")
	}

	vm, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	return program{vm, len(insns)}
}

func (p program) run(t testing.TB, e event) uint32 {
	t.Helper()
	data := binary.BigEndian.AppendUint32(nil, e.nr)
	data = binary.BigEndian.AppendUint32(data, e.audit)
	data = append(data, make([]byte, 8)...)
	for _, arg := range e.args {
		data = binary.BigEndian.AppendUint32(data, uint32(arg))
		data = binary.BigEndian.AppendUint32(data, uint32(arg>>32))
	}
	out, err := p.vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(out)
}

// oracle makes the filter of a profile with libseccomp, used the way that
// runc uses it.
func oracle(t testing.TB, abis []abi, p *specs.LinuxSeccomp) program {
	t.Helper()
	fallback := libAction(t, p.DefaultAction, p.DefaultErrnoRet)
	filter, err := libseccomp.NewFilter(fallback)
	if err != nil {
		t.Fatal(err)
	}
	defer filter.Release()

	for _, a := range abis {
		if err := filter.AddArch(a.lib); err != nil {
			t.Fatal(err)
		}
	}

	if native, _ := libseccomp.GetNativeArch(); !slices.ContainsFunc(abis, func(a abi) bool { return a.lib == native }) {
		if err := filter.RemoveArch(native); err != nil {
			t.Fatal(err)
		}
	}

	for _, s := range p.Syscalls {
		if a := libAction(t, s.Action, s.ErrnoRet); a != fallback {
			for _, name := range s.Names {
				addRule(t, filter, name, a, s.Args)
			}
		}
	}

	return newProgram(t, export(t, filter))
}

func addRule(t testing.TB, filter *libseccomp.ScmpFilter, name string, a libseccomp.ScmpAction, args []specs.LinuxSeccompArg) {
	t.Helper()
	nr, err := libseccomp.GetSyscallFromName(name)
	if err != nil {
		return // unknown names mean nothing
	}

	if len(args) == 0 {
		if err := filter.AddRule(nr, a); err != nil {
			t.Fatalf("add %s: %v", name, err)
		}
		return
	}

	var conditions []libseccomp.ScmpCondition
	var seen [6]bool
	repeated := false
	for _, arg := range args {
		c, err := libseccomp.MakeCondition(arg.Index, libOps[arg.Op], arg.Value, arg.ValueTwo)
		if err != nil {
			t.Fatal(err)
		}
		conditions = append(conditions, c)
		repeated = repeated || seen[arg.Index]
		seen[arg.Index] = true
	}

	rules := [][]libseccomp.ScmpCondition{conditions}
	if repeated {
		rules = nil
		for _, c := range conditions {
			rules = append(rules, []libseccomp.ScmpCondition{c})
		}
	}

	for _, rule := range rules {
		if err := filter.AddRuleConditional(nr, a, rule); err != nil {
			t.Fatalf("add %s: %v", name, err)
		}
	}
}

var libOps = map[specs.LinuxSeccompOperator]libseccomp.ScmpCompareOp{
	specs.OpEqualTo: libseccomp.CompareEqual, specs.OpNotEqual: libseccomp.CompareNotEqual,
	specs.OpGreaterThan: libseccomp.CompareGreater, specs.OpGreaterEqual: libseccomp.CompareGreaterEqual,
	specs.OpLessThan: libseccomp.CompareLess, specs.OpLessEqual: libseccomp.CompareLessOrEqual,
	specs.OpMaskedEqual: libseccomp.CompareMaskedEqual,
}

func libAction(t testing.TB, a specs.LinuxSeccompAction, errno *uint) libseccomp.ScmpAction {
	t.Helper()
	n := int16(unix.EPERM)
	if errno != nil {
		n = int16(*errno)
	}

	switch a {
	case specs.ActKill, specs.ActKillThread:
		return libseccomp.ActKillThread
	case specs.ActKillProcess:
		return libseccomp.ActKillProcess
	case specs.ActTrap:
		return libseccomp.ActTrap
	case specs.ActErrno:
		return libseccomp.ActErrno.SetReturnCode(n)
	case specs.ActTrace:
		return libseccomp.ActTrace.SetReturnCode(n)
	case specs.ActLog:
		return libseccomp.ActLog
	case specs.ActAllow:
		return libseccomp.ActAllow
	}

	t.Fatalf("no action %s", a)
	return 0
}

// export returns the program of a filter.
func export(t testing.TB, filter *libseccomp.ScmpFilter) []byte {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "filter")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = filter.ExportBPF(f)
	code, err2 := os.ReadFile(f.Name())
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return code
}
