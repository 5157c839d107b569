package launch

import (
	"fmt"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/plan"
)

// TestProfilesAllowNothingForTheStart loads filters that kill for calls that
// only the start makes, other than those that every runtime makes after its
// filter.
func TestProfilesAllowNothingForTheStart(t *testing.T) {
	killed := []string{
		"setresuid", "setresgid", "setgroups", "openat2", "fchdir", "close_range", "personality", "mount", "umount2",
		"pivot_root", "chroot", "unshare", "setns", "seccomp", "keyctl", "move_mount", "open_tree", "mount_setattr", "fsopen", "fsmount",
		"fsconfig", "mknodat", "sched_setaffinity", "sched_setattr", "ioprio_set", "set_mempolicy", "sethostname", "setsid",
	}
	for _, o := range []plan.SandboxOptions{usual(), usersOwn()} {
		for _, nnp := range []bool{false, true} {
			for _, uid := range []uint32{0, 1000} {
				t.Run(fmt.Sprint("own users ", o.NewUser, ", no new privileges ", nnp, ", user ", uid), func(t *testing.T) {
					b := newLab(t)
					b.sandbox(o)
					s := b.spec("grep -E '^(Seccomp|NoNewPrivs|CapEff|CapAmb):' /proc/self/status | tr -s '\\t' ' '; id -u; id -g; id -G; pwd")
					s.Process.User = specs.User{UID: uid, GID: uid + 1, AdditionalGids: []uint32{uid + 1, 7}}
					s.Process.NoNewPrivileges, s.Process.Cwd = nnp, "/work"
					s.Linux.Seccomp = &specs.LinuxSeccomp{
						DefaultAction: specs.ActAllow,
						Syscalls:      []specs.LinuxSyscall{{Names: killed, Action: specs.ActKillProcess}},
					}

					caps := "00000000a80425fb"
					if uid != 0 {
						caps = "0000000000000000"
					}
					flag := map[bool]int{true: 1}[nnp]
					b.want(s, fmt.Sprintf("CapEff: %s\nCapAmb: 0000000000000000\nNoNewPrivs: %d\nSeccomp: 2\n%d\n%d\n%d 7\n/work", caps, flag, uid, uid+1, uid+1))
				})
			}
		}
	}
}
