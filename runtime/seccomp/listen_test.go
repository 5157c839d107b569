package seccomp

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestListen compiles profiles with an agent, and those that cannot have one.
func TestListen(t *testing.T) {
	const listener, killable = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	ask := func(names ...string) []specs.LinuxSyscall {
		return []specs.LinuxSyscall{{Names: names, Action: specs.ActNotify}}
	}
	for name, tt := range map[string]struct {
		profile specs.LinuxSeccomp
		flags   uint32
		err     error
	}{
		"agent":           {specs.LinuxSeccomp{ListenerPath: "/run/agent", ListenerMetadata: "x", Syscalls: ask("mkdir")}, listener, nil},
		"killable":        {specs.LinuxSeccomp{ListenerPath: "/run/agent", Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}, Syscalls: ask("mkdir")}, listener | killable, nil},
		"nothing to ask":  {specs.LinuxSeccomp{ListenerPath: "/run/agent", Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}}, 0, nil},
		"no agent":        {specs.LinuxSeccomp{Syscalls: ask("mkdir")}, 0, ErrInvalid},
		"metadata alone":  {specs.LinuxSeccomp{ListenerMetadata: "x"}, 0, ErrInvalid},
		"relative path":   {specs.LinuxSeccomp{ListenerPath: "run/agent", Syscalls: ask("mkdir")}, 0, ErrInvalid},
		"long path":       {specs.LinuxSeccomp{ListenerPath: "/" + strings.Repeat("x", maxSocketPath), Syscalls: ask("mkdir")}, 0, ErrInvalid},
		"NUL":             {specs.LinuxSeccomp{ListenerPath: "/run/a\x00", Syscalls: ask("mkdir")}, 0, ErrInvalid},
		"default":         {specs.LinuxSeccomp{DefaultAction: specs.ActNotify, ListenerPath: "/run/agent"}, 0, ErrUnsupported},
		"a call of start": {specs.LinuxSeccomp{ListenerPath: "/run/agent", Syscalls: ask("mkdir", "write")}, 0, ErrUnsupported},
		"errno":           {specs.LinuxSeccomp{ListenerPath: "/run/agent", Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify, ErrnoRet: new(uint)}}}, 0, ErrInvalid},
	} {
		if tt.profile.DefaultAction == "" {
			tt.profile.DefaultAction = specs.ActAllow
		}
		if tt.profile.Flags == nil {
			tt.profile.Flags = []specs.LinuxSeccompFlag{}
		}

		f, err := CompileFor("amd64", &tt.profile)
		if !errors.Is(err, tt.err) || f.Flags != tt.flags {
			t.Errorf("%s: flags %#x, %v, want %#x, %v", name, f.Flags, err, tt.flags, tt.err)
		}
		if tt.flags&listener == 0 || err != nil {
			continue
		}
		const mkdir = 83
		if got := newTestMachine(t, f).run(t, event{nr: mkdir, arch: amd64.audit}); got != notify {
			t.Errorf("%s: %#x, want %#x", name, got, notify)
		}
	}
}

// TestCacheKnowsAgents expects profiles that differ in their agent not to share a
// filter.
func TestCacheKnowsAgents(t *testing.T) {
	c := NewCache()
	p := specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/run/agent", Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdirat"}, Action: specs.ActNotify}}}
	if _, err := c.Compile(&p); err != nil {
		t.Fatal(err)
	}
	p.ListenerPath = ""
	if _, err := c.Compile(&p); !errors.Is(err, ErrInvalid) {
		t.Errorf("without an agent: %v, want %v", err, ErrInvalid)
	}
}
