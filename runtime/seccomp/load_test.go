package seccomp

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/host"
	"crisp/runtime/rootpath"
)

var kernel = host.Version{Major: 6, Minor: 12}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	want := RuntimeDefault(dockerCaps)
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Load(write(t, string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(appendProfile(nil, got), appendProfile(nil, want)) {
		t.Errorf("loaded %+v, want %+v", got, want)
	}
}

func TestLoadDockerForm(t *testing.T) {
	text := []byte(`{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
		"archMap": [
			{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
			{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
			{"architecture": "SCMP_ARCH_S390X"}],
		"syscalls": [
			{"name": "read", "action": "SCMP_ACT_ALLOW", "comment": "the oldest form"},
			{"names": ["write"], "action": "SCMP_ACT_ALLOW", "includes": {}, "excludes": {}},
			{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
			{"names": ["umount2"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}},
			{"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_KILL"]}},
			{"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
			{"names": ["dup"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.13"}},
			{"names": ["dup2"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "6.12"}},
			{"names": ["dup3"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["` + runtime.GOARCH + `", "s390x"]}},
			{"names": ["umask"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
			{"names": ["chmod"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["` + runtime.GOARCH + `"]}}
		]}`)
	for _, tt := range []struct {
		caps, want []string
	}{
		{nil, []string{"read", "write", "clone", "ptrace", "dup3"}},
		{[]string{"CAP_SYS_ADMIN"}, []string{"read", "write", "mount", "ptrace", "dup3"}},
		{[]string{"CAP_CHOWN"}, []string{"read", "write", "clone", "ptrace", "dup3"}},
		{[]string{"CAP_SYS_ADMIN", "CAP_CHOWN"}, []string{"read", "write", "mount", "umount2", "ptrace", "dup3"}},
		{[]string{"CAP_KILL"}, []string{"read", "write", "ptrace", "dup3"}},
	} {
		p, err := parseProfile(text, tt.caps, kernel)
		if err != nil {
			t.Fatal(err)
		}

		var got []string
		for _, s := range p.Syscalls {
			got = append(got, s.Names...)
		}

		if !slices.Equal(got, tt.want) {
			t.Errorf("capabilities %v: calls %v, want %v", tt.caps, got, tt.want)
		}
		if len(p.Architectures) != 2 || slices.Contains(p.Architectures, specs.ArchS390X) || *p.DefaultErrnoRet != uint(unix.EACCES) {
			t.Errorf("architectures %v, error number %d", p.Architectures, *p.DefaultErrnoRet)
		}
	}
}

func TestLoadForCapabilities(t *testing.T) {
	path := write(t, `{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
		{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"], "minKernel": "4.8"}}]}`)
	with, err1 := LoadFor(path, []string{"CAP_SYS_ADMIN"})
	without, err2 := Load(path)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if len(with.Syscalls) != 1 || len(without.Syscalls) != 0 {
		t.Errorf("with the capability %+v, without %+v", with.Syscalls, without.Syscalls)
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo, sparse := filepath.Join(dir, "fifo"), filepath.Join(dir, "sparse")
	err := errors.Join(unix.Mkfifo(fifo, 0o644), os.WriteFile(sparse, nil, 0o644))
	if err := errors.Join(err, os.Truncate(sparse, 5<<30)); err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		path string
		want error
	}{
		{filepath.Join(dir, "missing"), fs.ErrNotExist},
		{"profile.json", ErrInvalid},
		{"", ErrInvalid},
		{dir, rootpath.ErrNotRegular},
		{fifo, rootpath.ErrNotRegular},
		{sparse, ErrTooLarge},
		{write(t, ""), ErrInvalid},
		{write(t, "[]"), ErrInvalid},
		{write(t, `{}`), ErrInvalid},
		{write(t, `{"defaultAction": "SCMP_ACT_NONSENSE"}`), ErrInvalid},
		{write(t, `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_EROR"}]}`), ErrInvalid},
		{write(t, `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO"}]}`), ErrInvalid},
		{write(t, `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "new"}}]}`), ErrInvalid},
		{write(t, `{"defaultAction": "SCMP_ACT_NOTIFY"}`), ErrInvalid},
		{write(t, `{"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/agent"}`), ErrUnsupported},
	} {
		if p, err := Load(tt.path); !errors.Is(err, tt.want) {
			t.Errorf("Load(%q) = %v, %v, want %v", tt.path, p, err, tt.want)
		}
	}
}

// Any text is refused or compiles to a program that the interpreter, as strict
// as the kernel about jumps and returns, accepts.
func FuzzProfile(f *testing.F) {
	text, err := json.Marshal(RuntimeDefault(dockerCaps))
	if err != nil {
		f.Fatal(err)
	}

	f.Add(text)
	f.Add([]byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["socket", "semop"], "action": "SCMP_ACT_ERRNO",
		"args": [{"index": 5, "value": 18446744073709551615, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := parseProfile(text, nil, kernel)
		if err != nil {
			return
		}

		for _, goarch := range []string{"amd64", "arm64"} {
			filter, err := CompileFor(goarch, p)
			if err != nil {
				continue
			}

			m := newTestMachine(t, filter)
			for _, nr := range []uint32{0, 41, 359, x32Bit, 1 << 31} {
				for _, a := range []abi{amd64, i386, arm64, arm} {
					m.run(t, event{arch: a.audit, nr: nr})
				}
			}
		}
	})
}
