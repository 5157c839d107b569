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
	JZ	child
	MOVQ	AX, ret+32(FP)
	RET
child:
	// Runs on its own stack. The function is called by the Go ABI, with its
	// argument in AX and X15 zero: the assembly-to-Go wrapper would read the
	// thread's memory, which the child lacks.
	XORL	BP, BP
	XORPS	X15, X15
	MOVQ	R13, AX
	CALL	R12
	INT	$3
