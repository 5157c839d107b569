package launch

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// forbidding is a profile that kills for the calls that join the PID namespace
// of others, and for everything else that a program does not need. runc needs
// capset and prctl after the filter unless no_new_privs is set.
func forbidding(nnp bool) *specs.LinuxSeccomp {
	killed := []string{
		"clone", "clone3", "fork", "vfork", "setsid", "setns", "unshare", "seccomp", "setresuid", "setresgid",
		"setgroups", "openat2", "fchdir", "close_range", "keyctl",
	}

	if nnp {
		killed = append(killed, "capset", "prctl")
	}
	with := func(name string, arg uint, value uint64) specs.LinuxSyscall {
		return specs.LinuxSyscall{
			Names: []string{name}, Action: specs.ActKillProcess,
			Args: []specs.LinuxSeccompArg{{Index: arg, Value: value, Op: specs.OpEqualTo}},
		}
	}

	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{
			{Names: killed, Action: specs.ActKillProcess},
			// Every program needs some of these with other arguments.
			with("ioctl", 1, unix.TIOCSCTTY), with("prlimit64", 1, unix.RLIMIT_NPROC),
		},
	}
}

// TestProfilesThatForbidToFork starts commands and containers in a shared PID
// namespace under profiles that forbid the calls to join it. The profile must
// be in force for their program, with any arguments.
func TestProfilesThatForbidToFork(t *testing.T) {
	for _, users := range []bool{false, true} {
		for _, nnp := range []bool{false, true} {
			for _, terminal := range []bool{false, true} {
				t.Run(fmt.Sprint("own users ", users, ", no new privileges ", nnp, ", terminal ", terminal), func(t *testing.T) {
					b := newSharing(t, users)
					change := func(s *specs.Spec) {
						setNamespace(s, specs.PIDNamespace, "ns/pid")
						s.Process.NoNewPrivileges = nnp
						s.Process.User = specs.User{UID: 1000, GID: 1001}
						s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Soft: 100, Hard: 200}}
					}

					c, s := b.running(change)
					s.Linux.Seccomp = forbidding(nnp)
					const script = "read a b c d pid e </proc/self/stat; [ $pid = $$ ] && echo session; while read a b c d; do [ $b = processes ] && echo $c $d; done </proc/self/limits; /bin/true; echo forked"
					p := *s.Process
					p.Args, p.Terminal = []string{"sh", "-c", script}, terminal

					e, err := b.exec(c, s, &p, Request{})
					if err != nil {
						t.Fatalf("exec: %v", err)
					}

					forbids(t, e, terminal)

					second := b.spec(script)
					change(second)
					second.Linux.Seccomp, second.Process.Terminal = forbidding(nnp), terminal
					e, err = b.start(second, nil, Request{})
					if err != nil {
						t.Fatalf("start second container: %v", err)
					}
					forbids(t, e, terminal)
				})
			}
		}
	}
}

// TestOnlyJoiningFiltersHaveAPass: a filter has an exception only if its
// process needs it, and each a different one.
func TestOnlyJoiningFiltersHaveAPass(t *testing.T) {
	b := newLab(t)
	seen := map[[2]uint64]bool{}
	for range 2 {
		for _, joins := range []bool{false, true} {
			f, err := b.l.filter(forbidding(true), joins)
			if err != nil {
				t.Fatal(err)
			}

			if has := f.Pass != [2]uint64{}; has != joins {
				t.Errorf("joins others %t: has a pass %t", joins, has)
			}
			if joins && seen[f.Pass] {
				t.Error("two processes have the same pass")
			}
			seen[f.Pass] = true
		}
	}
}

// forbids expects a process to print its session, and to be killed when it forks.
func forbids(t *testing.T, e *started, terminal bool) {
	t.Helper()
	if terminal {
		// Its output is in the terminal.
		if ws := reap(e.Pid); !ws.Signaled() || ws.Signal() != syscall.SIGSYS {
			t.Errorf("exit status %#x, want SIGSYS", ws)
		}
		e.Pid = 0
		return
	}
	out, code := e.wait()
	if code != 128+int(syscall.SIGSYS) || !strings.HasPrefix(out, "session\n100 200 processes") || strings.Contains(out, "forked") {
		t.Errorf("printed %q, exit code %d, want SIGSYS when it forks", out, code)
	}
}

// TestProcessesOfTheUserDoNotStopAStart has more processes of the container's
// user on the machine than its limit: it starts, but cannot fork.
func TestProcessesOfTheUserDoNotStopAStart(t *testing.T) {
	const uid = 54321
	for range 3 {
		other := exec.Command("sleep", "1000")
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if os.Getuid() == 0 {
			must(t, other.Start())
			t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
		}
	}

	for _, shared := range []bool{false, true} {
		for _, nnp := range []bool{false, true} {
			t.Run(fmt.Sprint("shared PIDs ", shared, ", no new privileges ", nnp), func(t *testing.T) {
				b := newLab(t)
				pod := usual()
				pod.PidNS = shared
				b.sandbox(pod)

				change := func(s *specs.Spec) {
					if shared {
						setNamespace(s, specs.PIDNamespace, "ns/pid")
					}
					s.Process.User = specs.User{UID: uid, GID: uid}
					s.Process.NoNewPrivileges = nnp
					s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Soft: 1, Hard: 2}}
				}

				c, s := b.running(change)
				const script = "echo begun; ulimit -u; ulimit -Hu; /bin/true; echo forked"
				out, code := b.execute(c, s, "sh", "-c", script)
				if !strings.HasPrefix(out, "begun\n1\n2\n") || code == 0 || strings.Contains(out, "forked") {
					t.Errorf("command printed %q, exit code %d, want it to start and not to fork", out, code)
				}
			})
		}
	}
}
