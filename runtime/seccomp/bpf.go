package seccomp

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data. The low half of an argument comes first:
// all machines here are little-endian.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
	argSize      = 8
	highHalf     = 4
)

const (
	opLoad = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opAnd  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opRet  = unix.BPF_RET | unix.BPF_K
	opJump = unix.BPF_JMP | unix.BPF_JA
	opEq   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opGt   = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	opGe   = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
)

const (
	// maxLength is the longest program that the kernel accepts.
	maxLength = unix.BPF_MAXINSNS
	// maxShort is the reach of a conditional jump.
	maxShort = 255

	insnSize = 8
)

// insn is one instruction, struct sock_filter.
type insn struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// block is position-independent code that ends in a return on every path.
type block []insn

func give(a action) block { return block{{code: opRet, k: uint32(a)}} }

// choose is the block that continues with yes if the value loaded compares
// to k, and with no otherwise.
func choose(op uint16, k uint32, yes, no block) block {
	out := make(block, 0, 2+len(no)+len(yes))
	if len(no) <= maxShort {
		out = append(out, insn{code: op, jt: uint8(len(no)), k: k})
	} else {
		out = append(out, insn{code: op, jf: 1, k: k}, insn{code: opJump, k: uint32(len(no))})
	}
	return append(append(out, no...), yes...)
}

// bytes encodes the block as an array of struct sock_filter.
func (b block) bytes() []byte {
	out := make([]byte, 0, len(b)*insnSize)
	for _, i := range b {
		out = binary.NativeEndian.AppendUint16(out, i.code)
		out = append(out, i.jt, i.jf)
		out = binary.NativeEndian.AppendUint32(out, i.k)
	}
	return out
}
