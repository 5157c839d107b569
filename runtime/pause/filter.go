package pause

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Filter is the seccomp filter of the program, an array of struct sock_filter
// in native byte order. Containers of the pod may trace the program, which runs
// as their user, and use its system calls: so it may only make the calls that
// it needs, that execute it, and that report that this failed. None of them is
// useful without a descriptor. Other calls return EPERM.
func Filter() []byte {
	calls := []uint32{
		sleep, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGRETURN, unix.SYS_RESTART_SYSCALL,
		unix.SYS_EXECVEAT, unix.SYS_WRITE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	}

	// The number and the architecture are the first two words of the data.
	const load, equal, result = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	refused := len(calls)
	program := []unix.SockFilter{
		{Code: load, K: 4},
		{Code: equal, K: architecture, Jf: uint8(refused + 1)},
		{Code: load, K: 0},
	}

	for i, number := range calls {
		program = append(program, unix.SockFilter{Code: equal, K: number, Jt: uint8(refused - i)})
	}
	program = append(program,
		unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ALLOW})

	var b []byte
	for _, f := range program {
		b = binary.NativeEndian.AppendUint16(b, f.Code)
		b = append(b, f.Jt, f.Jf)
		b = binary.NativeEndian.AppendUint32(b, f.K)
	}

	return b
}
