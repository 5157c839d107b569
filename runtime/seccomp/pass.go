package seccomp

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Pass is a secret that marks a call for the filter as the start's, not the
// program's: it is in arguments 4 and 5, which these calls do not use. Reading
// a filter takes more privileges than a container has; a process that sees the
// arguments of a call, by CAP_SYS_PTRACE, gains exactly these calls and no
// others.
type Pass [2]uint64

// passCalls are the calls of a process that joins the PID namespace of others
// after it has loaded its filter, see [Filter.Joins]: the fork into the
// namespace, what only the new process can do, and the limit that must not
// apply to the fork. Arguments 0 and 1 are compared, too: a clone with other
// flags would create namespaces.
func passCalls() []event {
	return []event{
		{nr: unix.SYS_CLONE, args: [6]uint64{unix.CLONE_PARENT | uint64(unix.SIGCHLD)}},
		{nr: unix.SYS_SETSID},
		{nr: unix.SYS_IOCTL, args: [6]uint64{0, unix.TIOCSCTTY}},
		{nr: unix.SYS_PRLIMIT64, args: [6]uint64{0, unix.RLIMIT_NPROC}},
	}
}

// WithPass returns the filter's program with an exception for the calls of
// [Filter.Joins] that carry the pass. The profile decides all others, and these
// without it.
func (f Filter) WithPass(p Pass) ([]byte, error) {
	abis, err := abisOf(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	head := passHead(abis[0].audit, p).bytes()
	if len(head)+len(f.Prog) > maxLength*insnSize {
		return nil, fmt.Errorf("%w: %d instructions, limit %d", ErrTooLarge, (len(head)+len(f.Prog))/insnSize, maxLength)
	}
	return slices.Concat(head, f.Prog), nil
}

// passHead allows the calls, and otherwise falls through.
func passHead(audit uint32, p Pass) block {
	var out block
	for _, c := range passCalls() {
		c.args[4], c.args[5] = p[0], p[1]
		out = append(out, allowOnly(audit, c)...)
	}
	return out
}

// allowOnly allows one call with these arguments 0, 1, 4 and 5, and otherwise
// falls through.
func allowOnly(audit uint32, c event) block {
	var out block
	mustBe := func(offset, value uint32) {
		out = append(out, insn{code: opLoad, k: offset}, insn{code: opEq, k: value, jf: 1})
	}

	// The number comes first: for most calls nothing else is compared.
	mustBe(offsetNumber, c.nr)
	mustBe(offsetArch, audit)
	for _, i := range []int{0, 1, 4, 5} {
		at := uint32(offsetArgs + i*argSize)
		mustBe(at, uint32(c.args[i]))
		mustBe(at+highHalf, uint32(c.args[i]>>32))
	}

	out = append(out, insn{code: opRet, k: uint32(unix.SECCOMP_RET_ALLOW)})

	for i := range out {
		if out[i].jf != 0 {
			out[i].jf = uint8(len(out) - 1 - i)
		}
	}

	return out
}

// NewPass makes a pass of random bytes.
func NewPass(random [16]byte) Pass {
	return Pass{binary.LittleEndian.Uint64(random[:8]), binary.LittleEndian.Uint64(random[8:])}
}
