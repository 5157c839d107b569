package seccomp

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// call is a system call by name, with its numbers by [abi.column]. -1 means
// that the ABI lacks it.
type call struct {
	name string
	nr   [5]int32
}

// abi is a system call ABI.
type abi struct {
	arch   specs.Arch
	audit  uint32 // AUDIT_ARCH_*, which a program finds in seccomp_data
	column int    // in the table of calls
	base   uint32 // added to the numbers of the table
	wide   bool   // arguments have 64 bits
}

// x32Bit marks the numbers of x32 calls, which share amd64's AUDIT_ARCH.
const x32Bit = 0x40000000

// armPrivate is the first number of ARM's private range, far above the rest.
const armPrivate = 0xf0000

var (
	amd64 = abi{specs.ArchX86_64, unix.AUDIT_ARCH_X86_64, 0, 0, true}
	x32   = abi{specs.ArchX32, unix.AUDIT_ARCH_X86_64, 1, x32Bit, false}
	i386  = abi{specs.ArchX86, unix.AUDIT_ARCH_I386, 2, 0, false}
	arm64 = abi{specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, 3, 0, true}
	arm   = abi{specs.ArchARM, unix.AUDIT_ARCH_ARM, 4, 0, false}
)

// abisOf returns the ABIs of an architecture, the native one first.
func abisOf(goarch string) ([]abi, error) {
	switch goarch {
	case "amd64":
		return []abi{amd64, x32, i386}, nil
	case "arm64":
		return []abi{arm64, arm}, nil
	}
	return nil, fmt.Errorf("%w: no system call numbers for %s", ErrUnsupported, goarch)
}

// selectABIs returns the ABIs of the machine that the profile lists, and always
// the native one. Those of other machines cannot occur.
func selectABIs(goarch string, listed []specs.Arch) ([]abi, error) {
	abis, err := abisOf(goarch)
	if err != nil {
		return nil, err
	}
	for _, arch := range listed {
		if !strings.HasPrefix(string(arch), "SCMP_ARCH_") {
			return nil, fmt.Errorf("%w: architecture %q", ErrInvalid, arch)
		}
	}
	native := abis[0].arch
	return slices.DeleteFunc(abis, func(a abi) bool {
		return a.arch != native && !slices.Contains(listed, a.arch)
	}), nil
}

// number returns the number of the named call, without base.
func (a abi) number(name string) (nr uint32, ok bool) {
	i, ok := slices.BinarySearchFunc(calls[:], name, func(c call, name string) int {
		return strings.Compare(c.name, name)
	})
	if !ok || calls[i].nr[a.column] < 0 {
		return 0, false
	}
	return uint32(calls[i].nr[a.column]), true
}

// multiplexed returns the i386 call that multiplexes the named call, and the
// first argument that selects it there.
func (a abi) multiplexed(name string) (via string, selector uint64, ok bool) {
	if a.arch != specs.ArchX86 {
		return "", 0, false
	}
	if i := slices.Index(socketCalls[:], name); i >= 0 {
		return "socketcall", uint64(i + 1), true
	}
	if i := slices.IndexFunc(ipcCalls[:], func(c ipcCall) bool { return c.name == name }); i >= 0 {
		return "ipc", ipcCalls[i].selector, true
	}
	return "", 0, false
}

// socketCalls are the calls of socketcall(2); the first is number 1.
var socketCalls = [...]string{
	"socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername",
	"socketpair", "send", "recv", "sendto", "recvfrom", "shutdown", "setsockopt",
	"getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg",
}

type ipcCall struct {
	name     string
	selector uint64
}

// ipcCalls are the calls of ipc(2).
var ipcCalls = [...]ipcCall{
	{"semop", 1}, {"semget", 2}, {"semctl", 3}, {"semtimedop", 4},
	{"msgsnd", 11}, {"msgrcv", 12}, {"msgget", 13}, {"msgctl", 14},
	{"shmat", 21}, {"shmdt", 22}, {"shmget", 23}, {"shmctl", 24},
}
