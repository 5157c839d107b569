package seccomp

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// dockerCaps is the usual bounding set of an unprivileged container.
var dockerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

func TestRuntimeDefault(t *testing.T) {
	admin := append(slices.Clone(dockerCaps), "CAP_SYS_ADMIN")
	profiles := map[string]testMachine{
		"usual":  compile(t, "amd64", forAMD64(RuntimeDefault(dockerCaps))),
		"admin":  compile(t, "amd64", forAMD64(RuntimeDefault(admin))),
		"no cap": compile(t, "amd64", forAMD64(RuntimeDefault(nil))),
	}

	for _, tt := range []struct {
		profile string
		e       event
		want    action
	}{
		{"usual", at(t, amd64, "read"), allow},
		{"usual", at(t, amd64, "ptrace"), allow},
		{"usual", at(t, i386, "openat"), allow},
		{"usual", at(t, x32, "execve"), allow},
		{"usual", at(t, amd64, "chroot"), allow},
		{"no cap", at(t, amd64, "chroot"), eperm},
		{"usual", at(t, amd64, "mount"), eperm},
		{"admin", at(t, amd64, "mount"), allow},
		{"usual", at(t, amd64, "unshare", unix.CLONE_NEWUSER), eperm},
		{"admin", at(t, amd64, "unshare", unix.CLONE_NEWUSER), allow},
		{"usual", at(t, amd64, "setns"), eperm},
		{"usual", at(t, amd64, "keyctl"), eperm},
		{"usual", at(t, amd64, "io_uring_setup"), eperm},
		{"usual", at(t, amd64, "userfaultfd"), eperm},
		{"usual", at(t, amd64, "bpf"), eperm},
		{"admin", at(t, amd64, "reboot"), eperm},
		{"usual", at(t, amd64, "init_module"), eperm},
		{"usual", at(t, amd64, "settimeofday"), eperm},

		{"usual", at(t, amd64, "clone", unix.CLONE_VM|unix.CLONE_THREAD|unix.CLONE_SIGHAND), allow},
		{"usual", at(t, amd64, "clone", uint64(unix.SIGCHLD)), allow},
		{"usual", at(t, amd64, "clone", unix.CLONE_NEWUSER), eperm},
		{"usual", at(t, amd64, "clone", unix.CLONE_VM|unix.CLONE_NEWNET), eperm},
		{"usual", at(t, i386, "clone", unix.CLONE_NEWNS), eperm},
		{"admin", at(t, amd64, "clone", unix.CLONE_NEWUSER), allow},
		{"usual", at(t, amd64, "clone3"), noSuchCall},
		{"admin", at(t, amd64, "clone3"), allow},

		{"usual", at(t, amd64, "personality", 0), allow},
		{"usual", at(t, amd64, "personality", 0x20008), allow},
		{"usual", at(t, amd64, "personality", 0xffffffff), allow},
		{"usual", at(t, amd64, "personality", 0x40000), eperm}, // ADDR_NO_RANDOMIZE

		{"usual", at(t, amd64, "socket", unix.AF_UNIX), allow},
		{"usual", at(t, amd64, "socket", unix.AF_INET6), allow},
		{"usual", at(t, amd64, "socket", unix.AF_NFC), allow},
		{"usual", at(t, amd64, "socket", unix.AF_XDP), allow},
		{"usual", at(t, amd64, "socket", unix.AF_MCTP), allow},
		{"usual", at(t, amd64, "socket", unix.AF_ALG), eperm},
		{"usual", at(t, amd64, "socket", unix.AF_VSOCK), eperm},
		{"admin", at(t, amd64, "socket", unix.AF_VSOCK), eperm},
		// The kernel would see AF_ALG and AF_VSOCK.
		{"usual", at(t, amd64, "socket", 1<<32|unix.AF_ALG), eperm},
		{"usual", at(t, amd64, "socket", 1<<63|unix.AF_VSOCK), eperm},
		{"usual", at(t, i386, "socket", unix.AF_VSOCK), eperm},

		{"usual", event{arch: amd64.audit, nr: 5000}, noSuchCall},
		{"usual", event{arch: i386.audit, nr: 5000}, noSuchCall},
		{"usual", event{arch: arm64.audit, nr: 0}, killThread},
	} {
		if got := profiles[tt.profile].run(t, tt.e); got != tt.want {
			t.Errorf("%s: call %d(%#x) of ABI %#x: %#x, want %#x", tt.profile, tt.e.nr, tt.e.args, tt.e.arch, got, tt.want)
		}
	}
}

// forAMD64 makes the tests independent of the machine that they run on.
func forAMD64(p *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	return p
}

func TestRuntimeDefaultOnARM(t *testing.T) {
	p := RuntimeDefault(dockerCaps)
	p.Architectures = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	m := compile(t, "arm64", p)

	for _, tt := range []struct {
		e    event
		want action
	}{
		{at(t, arm64, "openat"), allow},
		{at(t, arm, "open"), allow},
		{at(t, arm, "set_tls"), allow},
		{at(t, arm, "cacheflush"), allow},
		{at(t, arm, "sync_file_range2"), allow},
		{at(t, arm64, "clone", unix.CLONE_NEWUSER), eperm},
		{at(t, arm, "clone3"), noSuchCall},
		{at(t, arm64, "mount"), eperm},
	} {
		if got := m.run(t, tt.e); got != tt.want {
			t.Errorf("call %d of ABI %#x: %#x, want %#x", tt.e.nr, tt.e.arch, got, tt.want)
		}
	}
}

// A misspelled name would silently allow nothing.
func TestDefaultNamesExist(t *testing.T) {
	lists := []string{always}
	for _, g := range withCapability {
		lists = append(lists, g.calls)
	}

	seen := map[string]bool{}
	for _, list := range lists {
		for _, name := range strings.Fields(list) {
			exists := false
			for _, a := range []abi{amd64, x32, i386, arm64, arm} {
				_, ok := a.number(name)
				_, _, multiplexed := a.multiplexed(name)
				exists = exists || ok || multiplexed
			}

			if !exists {
				t.Errorf("no ABI has %s", name)
			}
		}
	}

	for _, name := range strings.Fields(always) {
		if seen[name] {
			t.Errorf("%s is listed twice", name)
		}
		seen[name] = true
	}
}

func TestDefaultIsSmall(t *testing.T) {
	f, err := CompileFor("amd64", forAMD64(RuntimeDefault(dockerCaps)))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(f.Prog)/insnSize)
	if n := len(f.Prog) / insnSize; n > 1000 {
		t.Errorf("the default profile takes %d instructions", n)
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	p := RuntimeDefault(dockerCaps)
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCache(b *testing.B) {
	c := NewCache()
	for b.Loop() {
		if _, err := c.Compile(RuntimeDefault(dockerCaps)); err != nil {
			b.Fatal(err)
		}
	}
}
