package seccomp

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// TestKernelFiltersOtherABIs has the kernel enforce the default filter on the
// machine's 32-bit system calls: by programs that make one call and exit with
// its error, and, on amd64, by the numbers of x32. chroot without a path ends
// with EFAULT if it is not filtered.
func TestKernelFiltersOtherABIs(t *testing.T) {
	narrow := narrowABI(t)
	all, none := RuntimeDefault(nil), RuntimeDefault(nil)
	none.Architectures = nil

	filter, err := Compile(all)
	if err != nil {
		t.Fatal(err)
	}
	native, err := Compile(none)
	if err != nil {
		t.Fatal(err)
	}

	if got := filtered(t, Filter{}, program32(t, narrow, "chroot")); got.ExitStatus() != int(unix.EFAULT) {
		t.Fatalf("chroot without a filter: status %#x, want exit %d", got, unix.EFAULT)
	}
	for name, want := range map[string]unix.Errno{"chroot": unix.EPERM, "mount": unix.EPERM, "clone3": unix.ENOSYS, "sched_yield": 0} {
		if got := filtered(t, filter, program32(t, narrow, name)); !got.Exited() || got.ExitStatus() != int(want) {
			t.Errorf("%s of %s: status %#x, want exit %d", name, narrow.arch, got, want)
		}
	}

	if got := filtered(t, native, program32(t, narrow, "sched_yield")); got.Signal() != unix.SIGSYS {
		t.Errorf("%s without being listed: status %#x, want %v", narrow.arch, got, unix.SIGSYS)
	}
}

func TestKernelFiltersX32(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		testkit.Skip(t, "amd64", "x32 is an ABI of amd64")
	}
	filter, err := Compile(RuntimeDefault(nil))
	if err != nil {
		t.Fatal(err)
	}

	nr, _ := x32.number("chroot")
	withFilter(t, filter, func() {
		if _, _, err := unix.Syscall(uintptr(x32.base+nr), 0, 0, 0); err != unix.EPERM {
			t.Errorf("chroot of x32: %v, want %v: a kernel without it says %v", err, unix.EPERM, unix.ENOSYS)
		}
	})
}

// narrowABI is the machine's 32-bit ABI.
func narrowABI(t *testing.T) abi {
	t.Helper()
	abis, err := abisOf(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	a := abis[len(abis)-1]
	if err := exec.Command(program32(t, a, "sched_yield")).Run(); errors.Is(err, unix.ENOEXEC) {
		testkit.Skip(t, "32-bit programs", err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	return a
}

// filtered runs a program with a filter and returns how it ended.
func filtered(t *testing.T, f Filter, program string) (status syscall.WaitStatus) {
	t.Helper()
	withFilter(t, f, func() {
		cmd := exec.Command(program)
		err := cmd.Run()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Errorf("run %s: %v", program, err)
			return
		}
		status = cmd.ProcessState.Sys().(syscall.WaitStatus)
	})
	return status
}

// withFilter calls do on a thread that has the filter and exits afterwards.
func withFilter(t *testing.T, f Filter, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if len(f.Prog) > 0 {
			if err := install(f); err != nil {
				t.Error(err)
				return
			}
		}
		do()
	}()
	<-done
}

// program32 writes an executable for a 32-bit ABI: it makes a call whose
// arguments are 0 and exits with its error, negated as exit codes are positive.
func program32(t *testing.T, a abi, call string) string {
	t.Helper()
	nr, ok := a.number(call)
	if !ok {
		t.Fatalf("%s has no %s", a.arch, call)
	}

	code, machine, flags := codeI386(nr), uint16(3), uint32(0)
	if a.audit == arm.audit {
		code, machine, flags = codeARM(nr), 40, 0x05000000 // EABI 5
	}

	const base, header, programHeader = 0x10000000, 52, 32
	size := uint32(header + programHeader + len(code))
	var b []byte
	u16 := func(values ...uint16) {
		for _, v := range values {
			b = binary.LittleEndian.AppendUint16(b, v)
		}
	}
	u32 := func(values ...uint32) {
		for _, v := range values {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
	}

	b = append(b, "\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	u16(2, machine)
	u32(1, base+header+programHeader, header, 0, flags)
	u16(header, programHeader, 1, 40, 0, 0)
	u32(1, 0, base, base, size, size, 5, 0x10000) // loaded at once, to read and execute
	b = append(b, code...)

	file := filepath.Join(t.TempDir(), call)
	if err := os.WriteFile(file, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func codeI386(nr uint32) []byte {
	b := []byte{0x31, 0xdb, 0x31, 0xc9, 0x31, 0xd2} // xor ebx, ebx; xor ecx, ecx; xor edx, edx
	b = append(b, 0xb8)                             // mov eax, nr
	b = binary.LittleEndian.AppendUint32(b, nr)
	return append(b,
		0xcd, 0x80, // int 0x80
		0xf7, 0xd8, // neg eax
		0x89, 0xc3, // mov ebx, eax
		0xb8, 1, 0, 0, 0, // mov eax, exit
		0xcd, 0x80)
}

func codeARM(nr uint32) (b []byte) {
	for _, insn := range []uint32{
		0xe3a00000, 0xe3a01000, 0xe3a02000, // mov r0, #0; mov r1, #0; mov r2, #0
		0xe3007000 | nr>>12<<16 | nr&0xfff, // movw r7, nr
		0xef000000,                         // svc 0
		0xe2600000,                         // rsb r0, r0, #0
		0xe3a07001,                         // mov r7, exit
		0xef000000,
	} {
		b = binary.LittleEndian.AppendUint32(b, insn)
	}
	return b
}
