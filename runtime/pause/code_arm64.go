package pause

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// machine is EM_AARCH64.
const machine = 183

// For the filter: the architecture, and the call that the program sleeps in.
const (
	architecture = unix.AUDIT_ARCH_AARCH64
	sleep        = unix.SYS_PPOLL
)

// code ignores SIGCHLD and sleeps in ppoll. The struct sigaction is on the
// stack: handler SIG_IGN, the rest 0.
func code() []byte {
	var b []byte
	for _, instruction := range []uint32{
		0xd10083ff, // sub sp, sp, #32
		0xd2800021, // mov x1, #1           SIG_IGN
		0xa9007fe1, // stp x1, xzr, [sp]
		0xa9017fff, // stp xzr, xzr, [sp, #16]
		0xd2800220, // mov x0, #17          SIGCHLD
		0x910003e1, // mov x1, sp
		0xd2800002, // mov x2, #0
		0xd2800103, // mov x3, #8
		0xd28010c8, // mov x8, #134         rt_sigaction
		0xd4000001, // svc #0
		0xd2800000, // mov x0, #0           no descriptors
		0xd2800001, // mov x1, #0
		0xd2800002, // mov x2, #0           no timeout
		0xd2800003, // mov x3, #0
		0xd2800928, // mov x8, #73          ppoll
		0xd4000001, // svc #0
		0x17fffffa, // b to the mov x0
	} {
		b = binary.LittleEndian.AppendUint32(b, instruction)
	}

	return b
}
