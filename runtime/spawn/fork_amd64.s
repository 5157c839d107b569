#include "textflag.h"

// func fork(args unsafe.Pointer, size, entry uintptr, m *interpreter) int
TEXT ·fork(SB), NOSPLIT, $0-40
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	entry+16(FP), R12
	MOVQ	m+24(FP), R13
	MOVL	$435, AX	// clone3
	SYSCALL
	TESTQ	AX, AX
	JZ	born
	MOVQ	AX, ret+32(FP)
	RET
born:
	// On a stack of its own. The function is entered as Go code does, with its
	// argument in AX and X15 zero: the way from assembly to Go would read the
	// thread's memory, which the child does not have.
	XORL	BP, BP
	XORPS	X15, X15
	MOVQ	R13, AX
	CALL	R12
	INT	$3
