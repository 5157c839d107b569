package pause

import "golang.org/x/sys/unix"

// machine is EM_X86_64.
const machine = 62

// For the filter: the architecture, and the call that the program sleeps in.
const (
	architecture = unix.AUDIT_ARCH_X86_64
	sleep        = unix.SYS_PAUSE
)

// code ignores SIGCHLD and pauses. The struct sigaction is on the stack:
// handler SIG_IGN, the rest 0.
func code() []byte {
	return []byte{
		0x31, 0xd2, // xor edx, edx        no old action
		0x52,       // push rdx            mask
		0x52,       // push rdx            restorer
		0x52,       // push rdx            flags
		0x6a, 0x01, // push 1              handler SIG_IGN
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0x6a, 0x11, 0x5f, // push 17; pop rdi    SIGCHLD
		0x6a, 0x08, 0x41, 0x5a, // push 8; pop r10     size of the mask
		0x6a, 0x0d, 0x58, // push 13; pop rax    rt_sigaction
		0x0f, 0x05, // syscall
		0x6a, 0x22, 0x58, // push 34; pop rax    pause
		0x0f, 0x05, // syscall
		0xeb, 0xf9, // jmp to the pause
	}
}
