package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/plan"
)

// TestLimitsDoNotLimitTheStart starts containers, and commands in them, with
// limits that the start itself would exceed.
func TestLimitsDoNotLimitTheStart(t *testing.T) {
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		for _, l := range []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: 42, Hard: 42}, {Type: "RLIMIT_NOFILE", Soft: 4, Hard: 4}, {Type: "RLIMIT_NOFILE", Soft: 10, Hard: 5000},
			{Type: "RLIMIT_FSIZE", Soft: 0, Hard: 0}, {Type: "RLIMIT_CORE", Soft: 1, Hard: 2}, {Type: "RLIMIT_MEMLOCK", Soft: 0, Hard: 0},
			{Type: "RLIMIT_SIGPENDING", Soft: 1, Hard: 1}, {Type: "RLIMIT_CPU", Soft: 1, Hard: 2}, {Type: "RLIMIT_NPROC", Soft: 500, Hard: 500},
		} {
			t.Run(fmt.Sprint(name, " ", l), func(t *testing.T) {
				b := newLab(t)
				b.sandbox(o)
				s := b.spec("echo started")
				s.Process.Cwd = "/some/where"
				s.Process.Rlimits = []specs.POSIXRlimit{l}
				b.want(s, "started")
			})
		}
	}
}

// TestManyMounts starts a container with more mounts than the usual limit on open files.
func TestManyMounts(t *testing.T) {
	const count = 1100
	dir := t.TempDir()
	b := newLab(t)
	b.sandbox(usual())

	s := b.spec("grep -c ' /m/' /proc/self/mountinfo; ulimit -n")
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 256, Hard: 1024}}
	for i := range count {
		name := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		s.Mounts = append(s.Mounts, bind(name, fmt.Sprintf("/m/%d", i)))
	}
	b.want(s, fmt.Sprintf("%d\n256", count))
}
