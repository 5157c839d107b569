package seccomp

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// Pass is a secret by which a process tells its filter that a call is still the
// start's, not the program's: it is in arguments 4 and 5, which these calls have
// no use for. Nobody can read a filter without more rights than a container's;
// who sees the arguments of a call under way, by CAP_SYS_PTRACE, has won these
// calls as they are here and no others.
type Pass [2]uint64

// passCalls are what a process does that joins others in their PID namespace
// after it has loaded its filter, see [Filter.Joins]: the fork into the
// namespace, what only the process in there can do, and the limit that the fork
// must not meet. Arguments 0 and 1 are part of it: a clone with other flags would
// make namespaces.
func passCalls() []event {
	return []event{
		{nr: unix.SYS_CLONE, args: [6]uint64{unix.CLONE_PARENT | uint64(unix.SIGCHLD)}},
		{nr: unix.SYS_SETSID},
		{nr: unix.SYS_IOCTL, args: [6]uint64{0, unix.TIOCSCTTY}},
		{nr: unix.SYS_PRLIMIT64, args: [6]uint64{0, unix.RLIMIT_NPROC}},
	}
}

// WithPass returns the filter's program with an exception for the calls that
// [Filter.Joins] is about, if they carry the pass. The profile decides on all
// others, and on these without it.
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

// passHead allows the calls, and else goes on with what comes after it.
func passHead(audit uint32, p Pass) block {
	var out block
	for _, c := range passCalls() {
		c.args[4], c.args[5] = p[0], p[1]
		out = append(out, allowOnly(audit, c)...)
	}
	return out
}

// allowOnly allows one call with these arguments 0, 1, 4 and 5, and else goes on
// with what comes after it.
func allowOnly(audit uint32, c event) block {
	var out block
	mustBe := func(offset, value uint32) {
		out = append(out, insn{code: opLoad, k: offset}, insn{code: opEq, k: value, jf: 1})
	}

	// The number comes first: of most calls nothing else is looked at.
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
