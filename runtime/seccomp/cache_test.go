package seccomp

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Profiles that differ in anything have different filters.
func TestCacheTellsProfilesApart(t *testing.T) {
	variants := []func(*specs.LinuxSeccomp){
		func(p *specs.LinuxSeccomp) {},
		func(p *specs.LinuxSeccomp) { p.DefaultAction = specs.ActKill; p.DefaultErrnoRet = nil },
		func(p *specs.LinuxSeccomp) { *p.DefaultErrnoRet = 2 },
		func(p *specs.LinuxSeccomp) { p.DefaultErrnoRet = nil },
		func(p *specs.LinuxSeccomp) { p.Architectures = []specs.Arch{specs.ArchX86} },
		func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{} },
		func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog} },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names[0] = "write" },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names = []string{"read", "write"} },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Action = specs.ActLog },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Index = 1 },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Value = 9 },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].ValueTwo = 9 },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Op = specs.OpNotEqual },
		func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args = nil },
		func(p *specs.LinuxSeccomp) { p.Syscalls = nil },
	}

	keys := map[string]int{}
	for i, vary := range variants {
		p := &specs.LinuxSeccomp{
			DefaultAction: specs.ActErrno, DefaultErrnoRet: ptr(uint(1)),
			Syscalls: []specs.LinuxSyscall{entry("read", specs.ActAllow, arg(0, specs.OpEqualTo, 1))},
		}

		vary(p)
		key := string(appendProfile(nil, p))
		if other, ok := keys[key]; ok {
			t.Errorf("variants %d and %d are taken for one", i, other)
		}
		keys[key] = i
	}
}

func TestCache(t *testing.T) {
	c := NewCache()
	first, err := c.Compile(RuntimeDefault(nil))
	if err != nil {
		t.Fatal(err)
	}

	again, err := c.Compile(RuntimeDefault(nil))
	if err != nil || &first.Prog[0] != &again.Prog[0] {
		t.Errorf("an equal profile was compiled again, %v", err)
	}

	other, err := c.Compile(RuntimeDefault([]string{"CAP_SYS_ADMIN"}))
	if err != nil || slices.Equal(first.Prog, other.Prog) {
		t.Errorf("another profile has the same filter, %v", err)
	}
	if _, err := c.Compile(&specs.LinuxSeccomp{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("invalid profile: %v", err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	abis, err := abisOf(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}

	c := NewCache()
	var filters [4 * maxCached]Filter
	var errs [len(filters)]error
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := worker; i < len(filters); i += 4 {
				errno := uint(i)
				filters[i], errs[i] = c.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &errno})
			}
		})
	}
	wg.Wait()

	for i, f := range filters {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		want := unix.SECCOMP_RET_ERRNO | action(i)
		if got := newTestMachine(t, f).run(t, event{arch: abis[0].audit}); got != want {
			t.Errorf("filter %d returns %#x, want %#x", i, got, want)
		}
	}

	if len(c.filters) > maxCached {
		t.Errorf("%d filters kept", len(c.filters))
	}
}
