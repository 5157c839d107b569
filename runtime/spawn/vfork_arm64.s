#include "textflag.h"

// func vfork(m *machine, args unsafe.Pointer, size uintptr) int
TEXT ·vfork(SB), NOSPLIT, $16-32
	MOVD	args+8(FP), R0
	MOVD	size+16(FP), R1
	MOVD	$435, R8	// clone3
	SVC
	CBZ	R0, born
	MOVD	R0, ret+24(FP)
	RET
born:
	// On the parent's stack, below all that the parent goes on to use.
	MOVD	m+0(FP), R0
	MOVD	R0, 8(RSP)
	CALL	·child(SB)
	BRK
