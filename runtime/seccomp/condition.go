package seccomp

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxArg is the highest argument index of a system call.
const maxArg = 5

// target is the jump target of a test.
type target uint8

const (
	next target = iota // the following test
	pass               // the condition holds
	fail               // the condition does not hold
)

// test is an instruction of a condition whose jumps are not resolved yet. The
// targets of an instruction that does not jump are next.
type test struct {
	code   uint16
	k      uint32
	jt, jf target
}

// checkCondition refuses invalid conditions.
func checkCondition(c specs.LinuxSeccompArg) error {
	if c.Index > maxArg {
		return fmt.Errorf("%w: argument %d", ErrInvalid, c.Index)
	}
	switch c.Op {
	case specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual,
		specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual:
		return nil
	}
	return fmt.Errorf("%w: operator %q", ErrInvalid, c.Op)
}

// tests compares an argument. A wide argument is compared by halves, the high
// one first; of a narrow one and its operand only the low half is compared.
func tests(c specs.LinuxSeccompArg, wide bool) []test {
	op, yes, no := opEq, pass, fail
	switch c.Op {
	case specs.OpNotEqual:
		yes, no = fail, pass
	case specs.OpGreaterThan:
		op = opGt
	case specs.OpGreaterEqual:
		op = opGe
	case specs.OpLessThan: // not greater or equal
		op, yes, no = opGe, fail, pass
	case specs.OpLessEqual: // not greater
		op, yes, no = opGt, fail, pass
	}

	operand, mask := c.Value, ^uint64(0)
	if c.Op == specs.OpMaskedEqual {
		mask = c.Value
		operand = c.ValueTwo & mask
	}

	var out []test
	if wide && mask>>32 != 0 {
		high := uint32(operand >> 32)
		out = load(c.Index, highHalf, uint32(mask>>32))
		if op != opEq {
			out = append(out, test{opGt, high, yes, next})
		}
		out = append(out, test{opEq, high, next, no})
	}

	out = append(out, load(c.Index, 0, uint32(mask))...)
	return append(out, test{uint16(op), uint32(operand), yes, no})
}

func load(arg uint, half, mask uint32) []test {
	out := []test{{code: opLoad, k: offsetArgs + uint32(arg)*argSize + half}}
	if mask != ^uint32(0) {
		out = append(out, test{code: opAnd, k: mask})
	}
	return out
}

// lay turns tests into instructions. Pass jumps to the instruction after the
// last, fail to the one distance further.
func lay(tests []test, distance int) []insn {
	out := make([]insn, 0, len(tests))
	for i, t := range tests {
		remaining := len(tests) - i - 1
		jump := func(to target) uint8 {
			switch to {
			case pass:
				return uint8(remaining)
			case fail:
				return uint8(remaining + distance)
			}
			return 0
		}
		out = append(out, insn{code: t.code, jt: jump(t.jt), jf: jump(t.jf), k: t.k})
	}

	return out
}

// when is code that takes the action if all conditions hold and falls through
// otherwise. There is at most one condition per argument, so its jumps are
// short.
func when(conditions []specs.LinuxSeccompArg, wide bool, a action) []insn {
	out := []insn(give(a))
	for _, c := range slices.Backward(conditions) {
		out = append(lay(tests(c, wide), len(out)), out...)
	}
	return out
}
