#include "textflag.h"

// func fork(args unsafe.Pointer, size, entry uintptr, m *interpreter) int
TEXT ·fork(SB), NOSPLIT, $0-40
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	entry+16(FP), R19
	MOVD	m+24(FP), R20
	MOVD	$435, R8	// clone3
	SVC
	CBZ	R0, child
	MOVD	R0, ret+32(FP)
	RET
child:
	// Runs on its own stack. The function is called by the Go ABI, with its
	// argument in R0: the assembly-to-Go wrapper would read the thread's
	// memory, which the child lacks.
	MOVD	ZR, R29
	MOVD	R20, R0
	CALL	(R19)
	BRK
