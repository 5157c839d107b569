#include "textflag.h"

// func vfork(m *machine, args unsafe.Pointer, size uintptr) int
TEXT ·vfork(SB), NOSPLIT, $8-32
	MOVQ	args+8(FP), DI
	MOVQ	size+16(FP), SI
	MOVL	$435, AX	// clone3
	SYSCALL
	TESTQ	AX, AX
	JZ	born
	MOVQ	AX, ret+24(FP)
	RET
born:
	// On the parent's stack, below all that the parent goes on to use.
	MOVQ	m+0(FP), AX
	MOVQ	AX, 0(SP)
	CALL	·child(SB)
	INT	$3
