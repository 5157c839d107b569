package seccomp

import (
	"encoding/binary"
	"fmt"

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

func newMachine(prog []byte) (machine, error) {
	var raw []bpf.RawInstruction
	for b := prog; len(b) >= insnSize; b = b[insnSize:] {
		raw = append(raw, bpf.RawInstruction{
			Op: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:]),
		})
	}

	insns, ok := bpf.Disassemble(raw)
	if !ok {
		return machine{}, fmt.Errorf("%w: unknown instructions", ErrInvalid)
	}

	vm, err := bpf.NewVM(insns)
	if err != nil {
		return machine{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}

	return machine{vm}, nil
}

// run returns the filter's action. The interpreter reads big-endian words.
func (m machine) run(e event) (action, error) {
	data := binary.BigEndian.AppendUint32(nil, e.nr)
	data = binary.BigEndian.AppendUint32(data, e.arch)
	data = append(data, make([]byte, 8)...) // the instruction pointer
	for _, arg := range e.args {
		data = binary.BigEndian.AppendUint32(data, uint32(arg))
		data = binary.BigEndian.AppendUint32(data, uint32(arg>>32))
	}

	out, err := m.vm.Run(data)
	if err != nil {
		return 0, fmt.Errorf("run filter: %w", err)
	}

	return action(uint32(out)), nil
}

// joins reports whether a filter for this machine permits the calls of a
// process that joins the PID namespace of others, see [Filter.Joins].
func joins(prog []byte, own abi) (bool, error) {
	m, err := newMachine(prog)
	if err != nil {
		return false, err
	}

	for _, e := range passCalls() {
		e.arch = own.audit
		a, err := m.run(e)
		if err != nil || !a.permits() {
			return false, err
		}
	}

	return true, nil
}
