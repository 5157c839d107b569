package launch

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/capability"
	"crisp/runtime/plan"
	"crisp/runtime/seccomp"
)

// status prints lines of /proc/self/status, the tabs replaced.
func status(names ...string) string {
	return "grep -E '^(" + strings.Join(names, "|") + "):' /proc/self/status | tr '\\t' ' '"
}

func TestUserAndGroups(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	s := b.spec("id -u; id -g; id -G; umask; touch /tmp/f; ls -ln /tmp/f | cut -c1-10; echo $HOME")
	mask := uint32(0o027)
	s.Process.User = specs.User{UID: 1000, GID: 2000, AdditionalGids: []uint32{2000, 3000, 4000}, Umask: &mask}

	root := b.rootfs(func(upper string) {
		if err := os.Mkdir(upper+"/tmp", 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(upper+"/tmp", 0o777); err != nil {
			t.Fatal(err)
		}
	})

	if got, want := b.runWith(s, Held{"rootfs": root}), "1000\n2000\n2000 3000 4000\n0027\n-rw-r-----\n/"; got != want {
		t.Errorf("container printed\n%s\nwant\n%s", got, want)
	}
}

func TestCapabilitySets(t *testing.T) {
	net := []string{"CAP_NET_BIND_SERVICE", "CAP_NET_RAW"}
	one := []string{"CAP_NET_BIND_SERVICE"}
	tests := []struct {
		name string
		uid  uint32
		caps *specs.LinuxCapabilities
		want string
	}{
		{"none", 0, nil, "0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000"},
		{
			"root", 0, &specs.LinuxCapabilities{Bounding: net, Effective: net, Permitted: net},
			"0000000000000000 0000000000002400 0000000000002400 0000000000002400 0000000000000000",
		},
		{
			"user without ambient", 1000, &specs.LinuxCapabilities{Bounding: net, Effective: net, Permitted: net},
			"0000000000000000 0000000000000000 0000000000000000 0000000000002400 0000000000000000",
		},
		{
			"user with ambient", 1000,
			&specs.LinuxCapabilities{Bounding: net, Effective: one, Permitted: one, Inheritable: one, Ambient: one},
			"0000000000000400 0000000000000400 0000000000000400 0000000000002400 0000000000000400",
		},
	}

	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(usual())
			s := b.spec("grep ^Cap /proc/self/status | cut -f2 | xargs echo")
			s.Process.User.UID, s.Process.Capabilities = tt.uid, tt.caps
			b.want(s, tt.want)
		})
	}
}

// TestAllCapabilities requests all capabilities: those that the machine cannot
// grant are ignored.
func TestAllCapabilities(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	s := b.spec("grep ^CapEff /proc/self/status | cut -f2")
	var all []string
	for n := range facts().LastCap + 1 {
		all = append(all, capability.Name(n))
	}
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	b.want(s, fmt.Sprintf("%016x", uint64(facts().Capabilities)))
}

func TestNoNewPrivileges(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	for _, nnp := range []bool{false, true} {
		s := b.spec(status("NoNewPrivs"))
		s.Process.NoNewPrivileges = nnp
		b.want(s, map[bool]string{false: "NoNewPrivs: 0", true: "NoNewPrivs: 1"}[nnp])
	}
}

func TestSeccomp(t *testing.T) {
	errno := uint(13)
	custom := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno}},
	}

	tests := []struct {
		name    string
		profile *specs.LinuxSeccomp
		script  string
		want    string
	}{
		{"unconfined", nil, status("Seccomp"), "Seccomp: 0"},
		{"own profile", custom, status("Seccomp") + "; mkdir /tmp/x 2>&1 | sed 's/.*: //'", "Seccomp: 2\nPermission denied"},
		{"default", seccomp.RuntimeDefault(defaultCaps), status("Seccomp") + "; unshare -U true 2>&1 | sed 's/.*: //'", "Seccomp: 2\nOperation not permitted"},
	}

	for _, tt := range tests {
		for _, nnp := range []bool{false, true} {
			for _, uid := range []uint32{0, 1000} {
				t.Run(fmt.Sprintf("%s, no new privileges %v, user %d", tt.name, nnp, uid), func(t *testing.T) {
					b := newLab(t)
					b.sandbox(map[bool]plan.SandboxOptions{false: usual(), true: usersOwn()}[uid != 0])
					s := b.spec(tt.script)
					s.Linux.Seccomp, s.Process.NoNewPrivileges, s.Process.User.UID = tt.profile, nnp, uid
					b.want(s, tt.want)
				})
			}
		}
	}
}

func TestRlimits(t *testing.T) {
	b := newLab(t)
	for _, o := range []plan.SandboxOptions{usual(), usersOwn()} {
		b.sandbox(o)
		s := b.spec("ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -Su; ulimit -Hs")
		s.Process.Rlimits = []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"},
			{Type: "RLIMIT_NPROC", Soft: 1000, Hard: 1 << 40}, {Type: "RLIMIT_STACK", Soft: 8 << 20, Hard: 16 << 20},
		}
		b.want(s, "100\n200\n0\n1000\n16384")
	}
}

func TestOOMScore(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	for _, tt := range []struct{ ask, want int }{{500, 500}, {1000, 1000}, {-999, -999}} {
		if !facts().SysResource.OK() {
			tt.want = max(tt.want, facts().OOMScoreAdj)
		}
		s := b.spec("cat /proc/self/oom_score_adj")
		s.Process.OOMScoreAdj = &tt.ask
		b.want(s, fmt.Sprint(tt.want))
	}
}

func TestScheduling(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	s := b.spec("cut -d' ' -f19,41 /proc/self/stat; ionice -p $$")
	s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 7}
	s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	b.want(s, "7 3\nbest-effort: prio 6")
}

func TestPersonality(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	s := b.spec("uname -m")
	s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	if got := b.run(s); strings.HasSuffix(got, "64") {
		t.Errorf("uname -m printed %s", got)
	}
}

// TestKeyrings has each process see one session keyring, its own, though others
// of the same user have some, too.
func TestKeyrings(t *testing.T) {
	b := newLab(t)
	keys, err := os.ReadFile("/proc/keys")
	if err != nil {
		t.Fatal(err)
	}
	// A keyring that a service of the node's root left accessible to its user.
	theirs := sessionKeyrings(string(keys))
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		b.sandbox(o)
		s := b.spec("cat /proc/keys; echo --; sleep 100")
		s.Linux.MaskedPaths = nil
		c, err := b.start(s, nil, Request{})
		if err != nil {
			t.Fatal(err)
		}

		p := *s.Process
		p.Args = []string{"cat", "/proc/keys"}
		e, err := b.exec(c, s, &p, Request{})
		if err != nil {
			t.Fatal(err)
		}

		out, _ := e.wait()
		first, second := sessionKeyrings(c.until("--\n")), sessionKeyrings(out)
		known := func(id string) bool { return slices.Contains(theirs, id) }
		first, second = slices.DeleteFunc(first, known), slices.DeleteFunc(second, known)
		if len(first) != 1 || len(second) != 1 || first[0] == second[0] {
			t.Errorf("%s: the container's first process sees keyrings %q, a command %q", name, first, second)
		}
	}
}

// sessionKeyrings returns the session keyrings in /proc/keys by number.
func sessionKeyrings(keys string) (list []string) {
	for line := range strings.Lines(keys) {
		f := strings.Fields(line)
		if len(f) > 8 && f[7] == "keyring" && f[8] == "_ses:" {
			list = append(list, f[0])
		}
	}
	return list
}

// TestOnlyStandardDescriptors looks for descriptors that a plan left open. The
// dynamic loader has one for a moment.
func TestOnlyStandardDescriptors(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	c, s := b.running(nil)
	e, err := b.exec(c, s, s.Process, Request{})
	if err != nil {
		t.Fatal(err)
	}

	for _, p := range []*started{c, e} {
		var list []os.DirEntry
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if list, err = os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid)); err != nil {
				t.Fatal(err)
			}
			if len(list) == 3 {
				break
			}
		}

		if len(list) != 3 {
			t.Errorf("process has descriptors %v", list)
		}
	}
}

// TestStreamsCanBeReopened has a user open its own stdout by name.
func TestStreamsCanBeReopened(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	s := b.spec("echo out >/dev/stdout; echo err >/dev/stderr; cat </dev/stdin")
	s.Process.User.UID = 1000
	b.want(s, "out\nerr")
}
