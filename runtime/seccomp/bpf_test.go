package seccomp

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
)

// event is a system call as a filter sees it.
type event struct {
	arch uint32
	nr   uint32
	args [6]uint64
}

// machine runs compiled filters.
type machine struct{ vm *bpf.VM }

func newMachine(t testing.TB, f Filter) machine {
	t.Helper()
	if len(f.Prog)%insnSize != 0 {
		t.Fatalf("program of %d bytes", len(f.Prog))
	}
	var raw []bpf.RawInstruction
	for b := f.Prog; len(b) > 0; b = b[insnSize:] {
		raw = append(raw, bpf.RawInstruction{
			Op: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:]),
		})
	}
	insns, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("program has unknown instructions")
	}
	vm, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	return machine{vm}
}

// run returns what the filter says. The interpreter reads big-endian words.
func (m machine) run(t testing.TB, e event) action {
	t.Helper()
	data := binary.BigEndian.AppendUint32(nil, e.nr)
	data = binary.BigEndian.AppendUint32(data, e.arch)
	data = append(data, make([]byte, 8)...) // the instruction pointer
	for _, arg := range e.args {
		data = binary.BigEndian.AppendUint32(data, uint32(arg))
		data = binary.BigEndian.AppendUint32(data, uint32(arg>>32))
	}
	out, err := m.vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return action(uint32(out))
}
