package seccomp

import (
	"runtime"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestPassLetsOnlyTheStartThrough runs filters with a pass on calls with and
// without it, and with single bits flipped.
func TestPassLetsOnlyTheStartThrough(t *testing.T) {
	deny := &specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess, Syscalls: []specs.LinuxSyscall{entry("write", specs.ActAllow)}}
	f, err := Compile(deny)
	if err != nil {
		t.Fatal(err)
	}

	pass := Pass{0x0123456789abcdef, 0xfedcba9876543210}
	prog, err := f.WithPass(pass)
	if err != nil {
		t.Fatal(err)
	}

	abis, err := abisOf(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}

	own, m := abis[0], must(newMachine(prog))(t)
	permits := func(e event) bool {
		a, err := m.run(e)
		if err != nil {
			t.Fatal(err)
		}
		return a.permits()
	}

	for _, e := range passCalls() {
		e.arch = own.audit
		if permits(e) {
			t.Errorf("call %d is permitted without the pass", e.nr)
		}

		e.args[4], e.args[5] = pass[0], pass[1]
		if !permits(e) {
			t.Errorf("call %d is refused with the pass", e.nr)
		}

		for arg := 4; arg < 6; arg++ {
			for bit := range 64 {
				wrong := e
				wrong.args[arg] ^= 1 << bit
				if permits(wrong) {
					t.Errorf("call %d is permitted with bit %d of argument %d wrong", e.nr, bit, arg)
				}
			}
		}

		for arg := range 2 {
			other := e
			other.args[arg] ^= unix.CLONE_NEWUSER
			if permits(other) {
				t.Errorf("call %d is permitted with the pass and another argument %d", e.nr, arg)
			}
		}

		foreign := e
		foreign.arch = abis[len(abis)-1].audit
		if permits(foreign) {
			t.Errorf("call %d of another ABI is permitted", e.nr)
		}
	}

	with := [6]uint64{4: pass[0], 5: pass[1]}
	if permits(event{nr: unix.SYS_EXECVE, arch: own.audit, args: with}) {
		t.Error("another call is permitted with the pass")
	}
	if !permits(event{nr: unix.SYS_WRITE, arch: own.audit}) || !permits(event{nr: unix.SYS_WRITE, arch: own.audit, args: with}) {
		t.Error("what the profile allows is refused")
	}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
