package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/keeper/client"
	"crisp/runtime/plan"
	"crisp/test/testkit"
)

// links prints where the container's namespaces lead.
const links = "for n in user mnt net ipc uts pid cgroup; do echo $n $(readlink /proc/self/ns/$n); done"

func readLinks(t testing.TB, text string) map[string]string {
	t.Helper()
	m := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		name, link, ok := strings.Cut(line, " ")
		if !ok || link == "" {
			t.Fatalf("no namespace in %q", line)
		}
		m[name] = link
	}
	return m
}

func linkOf(f *os.File) string {
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err.Error()
	}
	return link
}

// TestNamespaces takes each namespace from the host, from the pod and for the
// container alone.
func TestNamespaces(t *testing.T) {
	tests := []struct {
		name   string
		pod    plan.SandboxOptions
		change func(*specs.Spec)
		// where each namespace is to come from: host, pod or new
		want string
	}{
		{"all of the pod", usual(), nil, "user=host mnt=new net=pod ipc=pod uts=pod pid=new cgroup=new"},
		{"all of the host", plan.SandboxOptions{}, func(s *specs.Spec) {
			setNamespace(s, specs.PIDNamespace)
			setNamespace(s, specs.CgroupNamespace)
		}, "user=host mnt=new net=host ipc=host uts=host pid=host cgroup=host"},
		{"user namespace", usersOwn(), nil, "user=pod mnt=new net=pod ipc=pod uts=pod pid=new cgroup=new"},
		{"user namespace in the host's network", func() plan.SandboxOptions {
			o := usersOwn()
			o.NewNet, o.NewUTS = false, false
			return o
		}(), nil, "user=pod mnt=new net=host ipc=pod uts=host pid=new cgroup=new"},
		{"user namespace and all else of the host", plan.SandboxOptions{NewUser: true, UIDMap: planMap(podMap), GIDMap: planMap(podMap)},
			func(s *specs.Spec) {
				setNamespace(s, specs.PIDNamespace)
				setNamespace(s, specs.CgroupNamespace)
				// Not every host has one to bind.
				s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "mqueue" })
			}, "user=pod mnt=new net=host ipc=host uts=host pid=host cgroup=host"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(tt.pod)
			s := b.spec(links)
			if tt.change != nil {
				tt.change(s)
			}

			got := readLinks(t, b.run(s))
			for _, w := range strings.Fields(tt.want) {
				name, from, _ := strings.Cut(w, "=")
				host, err := os.Readlink("/proc/self/ns/" + name)
				if err != nil {
					t.Fatal(err)
				}

				switch pod := b.pod["ns/"+name]; from {
				case "host":
					if got[name] != host {
						t.Errorf("%s namespace is not the host's", name)
					}
				case "pod":
					if pod == nil || got[name] != linkOf(pod) {
						t.Errorf("%s namespace is not the pod's", name)
					}
				case "new":
					if got[name] == host || pod != nil && got[name] == linkOf(pod) {
						t.Errorf("%s namespace is not the container's own", name)
					}
				}
			}
		})
	}
}

func TestUserNamespaceMaps(t *testing.T) {
	b := newLab(t)
	b.sandbox(usersOwn())
	s := b.spec("cat /proc/self/uid_map /proc/self/gid_map | xargs; stat -c %u / /bin/busybox /dev/shm /dev/mqueue; touch /f && chown 1000 /f && stat -c %u /f; cat /proc/1/setgroups; id -u")
	b.want(s, "0 100000 65536 0 100000 65536\n0\n0\n0\n0\n1000\nallow\n0")
	s = b.spec(status("Uid", "Gid", "Groups"))
	s.Process.User = specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{7, 8}}
	b.want(s, "Uid: 5 5 5 5\nGid: 6 6 6 6\nGroups: 7 8 ")
}

// TestSysInUserNamespace mounts a new sysfs, or binds the host's with the host's network.
func TestSysInUserNamespace(t *testing.T) {
	b := newLab(t)
	b.sandbox(usersOwn())
	b.want(b.spec("ls /sys/class/net; touch /sys/x 2>&1 | sed 's/.*: //'; stat -c %u /sys/class/net/lo/"), "lo\nRead-only file system\n0")

	b = newLab(t)
	o := usersOwn()
	o.NewNet = false
	b.sandbox(o)
	s := b.spec("grep -c ' - sysfs ' /proc/self/mountinfo; ls -d /sys/kernel; touch /sys/kernel/x 2>&1 | sed 's/.*: //'")
	b.want(s, "1\n/sys/kernel\nRead-only file system")
}

func TestProcCanBeMountedAgain(t *testing.T) {
	b := newLab(t)
	b.sandbox(usersOwn())
	all := []string{"CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID"}
	s := b.spec("mount -t proc proc /tmp && ls /tmp/self/status")
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	b.want(s, "/tmp/self/status")
}

func TestProcOptions(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	s := b.spec(mountLine("/proc") + "; ls /proc | grep -c '^1$'")
	s.Process.User.UID = 1000
	s.Mounts[0].Options = append(s.Mounts[0].Options, "hidepid=2")
	s.Process.Args = []string{"/bin/sh", "-c", s.Process.Args[2]}
	got := b.run(s)
	if !strings.Contains(got, "hidepid=invisible") {
		t.Errorf("container printed %q", got)
	}
}

func TestHostPID(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	s := b.spec("echo $$; sleep 100")
	setNamespace(s, specs.PIDNamespace)
	c, err := b.start(s, nil, Request{})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(c.until("\n")); got != strconv.Itoa(c.Pid) {
		t.Errorf("container has PID %s in its own /proc, %d on the host", got, c.Pid)
	}
}

// TestPodPID shares a PID namespace whose init is pause, which must reap zombies.
func TestPodPID(t *testing.T) {
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			o.PidNS = true
			pause := b.sandbox(o)
			script := "ls -A /proc/1/root; touch /proc/1/root/x 2>/dev/null && echo writable; cat /proc/1/cmdline; echo; grep -E '^(Cap|NoNew|Seccomp:)' /proc/1/status | tr '\\t' ' '; " +
				"(sh -c '(sleep 0.05; exit 3) & exit 0'); sleep 0.2; ps -o stat,comm | grep -c '^Z'; ls /proc/1/fd 2>/dev/null | xargs"

			s := b.spec(script)
			setNamespace(s, specs.PIDNamespace, "ns/pid")
			s.Process.Args[2] += "; exit 0"
			want := "pause\x00\nCapInh: 0000000000000000\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\nCapBnd: "
			got := b.run(s)
			if !strings.HasPrefix(got, want) || !strings.Contains(got, "NoNewPrivs: 1\nSeccomp: 2\n0") {
				t.Errorf("container printed %q", got)
			}

			var st unix.Stat_t
			if err := unix.Stat(fmt.Sprintf("/proc/%d", pause.Pid), &st); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestTargetPID joins another container's PID namespace.
func TestTargetPID(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	other := b.spec("")
	other.Process.Args = []string{"/bin/sleep", "4321"}

	target, err := b.start(other, nil, Request{})
	if err != nil {
		t.Fatal(err)
	}

	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", target.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()

	s := b.spec("tr '\\0' ' ' </proc/1/cmdline")
	setNamespace(s, specs.PIDNamespace, "ns/pid")
	held := Held{"ns/pid": ns, "target": target.PidFD}
	c, err := b.start(s, held, Request{Procfs: true})
	if err != nil {
		t.Fatal(err)
	}

	if got, code := c.wait(); got != "/bin/sleep 4321 " || code != 0 {
		t.Errorf("process 1 is %q, exit code %d", got, code)
	}

	// As on a kernel that cannot mount a procfs of another PID namespace.
	id, err := identityOf(ns)
	if err != nil {
		t.Fatal(err)
	}

	own, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()

	wrong, err := identityOf(own)
	if err != nil {
		t.Fatal(err)
	}

	byTarget := func(id *plan.File) (*started, error) {
		return b.launch(b.inPod(s, held, Request{}), func(ctx context.Context, r Request) (*client.Started, error) {
			o, err := b.l.options(&r, s.Process)
			o.Target = id
			if err != nil {
				return nil, err
			}
			return b.l.container(ctx, &r, o)
		})
	}
	c, err = byTarget(id)
	if err != nil {
		t.Fatal(err)
	}

	if got, code := c.wait(); got != "/bin/sleep 4321 " || code != 0 {
		t.Errorf("by the target's /proc: process 1 is %q, exit code %d", got, code)
	}
	if _, err := byTarget(wrong); !errors.Is(err, unix.EBADMSG) {
		t.Errorf("a /proc of another namespace: error %v", err)
	}
}

func TestTimeNamespace(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	s := b.spec("cut -d. -f1 /proc/uptime")
	setNamespace(s, specs.TimeNamespace, "")
	const day = 86400
	s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 30 * day}, "monotonic": {Secs: day}}

	up, err := strconv.Atoi(b.run(s))
	if err != nil {
		t.Fatal(err)
	}

	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	if own := int(ts.Sec) + 30*day; up < own-60 || up > own+1 {
		t.Errorf("up for %d s, want about %d", up, own)
	}
}

func TestSandboxSettings(t *testing.T) {
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			o.Hostname = strings.Repeat("n", 64)
			o.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "net/ipv4/ip_unprivileged_port_start": "0", "kernel.shmmax": "123456789"}
			b.sandbox(o)
			s := b.spec("hostname; cd /proc/sys; cat net/ipv4/ip_forward net/ipv4/ip_unprivileged_port_start kernel/shmmax; cat /sys/class/net/lo/operstate; ifconfig lo | grep -c 127.0.0.1")
			b.want(s, o.Hostname+"\n1\n0\n123456789\nunknown\n1")
			if got, err := os.ReadFile("/proc/sys/kernel/shmmax"); err != nil || string(got) == "123456789\n" {
				t.Errorf("the host's setting is %q (%v)", got, err)
			}
		})
	}
}

// TestSandboxErrors names the failed step, and leaks nothing.
func TestSandboxErrors(t *testing.T) {
	b := newLab(t)
	for _, tt := range []struct {
		change func(*plan.SandboxOptions)
		want   string
	}{
		{func(o *plan.SandboxOptions) { o.Hostname = strings.Repeat("n", 65) }, `"set host name`},
		{func(o *plan.SandboxOptions) { o.Sysctls = map[string]string{"net.no.such": "1"} }, `"open file to set net.no.such=1": no such file`},
		{func(o *plan.SandboxOptions) { o.Sysctls = map[string]string{"net.ipv4.ip_forward": "many"} }, `"set net.ipv4.ip_forward=many": invalid argument`},
		{func(o *plan.SandboxOptions) { o.NewUser = true }, "without id mappings"},
		{func(o *plan.SandboxOptions) {
			o.NewUser, o.UIDMap, o.GIDMap = true, []specs.LinuxIDMapping{{Size: 0}}, []specs.LinuxIDMapping{{Size: 0}}
		}, "write uid_map: invalid argument"},
	} {
		o := usual()
		o.Name = "run pod"
		tt.change(&o)

		_, err := b.l.Sandbox(t.Context(), SandboxRequest{ID: "pod", Options: o})
		if err == nil || !strings.HasPrefix(err.Error(), "run pod: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want %s", err, tt.want)
		}
	}
}

// TestCgroupV2 clones into a cgroup, and must not change the options of the host's mount.
func TestCgroupV2(t *testing.T) {
	b := newLab(t)
	root := cgroupRoot
	if !facts().CgroupV2.OK() {
		root += "/unified"
	}

	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		testkit.Skip(t, "cgroup2", "no unified hierarchy")
	}

	b.l.unified = true
	before := grepFile(t, "/proc/self/mountinfo", " - cgroup2 ")
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		b.sandbox(o)
		dir := root + "/" + testkit.Name(t) + strings.ReplaceAll(name, " ", "-")
		makeCgroup(t, dir)
		f, err := openFile(dir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()

		// With a user namespace the process was forked by one outside its PID namespace,
		// number 0, which may still be exiting.
		const first = `for i in $(seq 50); do p=$(head -n1 /sys/fs/cgroup/cgroup.procs); [ "$p" = 0 ] || break; sleep 0.1; done; echo $p`
		c, err := b.start(b.spec("grep ^0: /proc/self/cgroup; "+first+"; mkdir /sys/fs/cgroup/x 2>&1 | sed 's/.*: //'"),
			nil, Request{Group: unified{f}})
		if err != nil {
			t.Fatal(err)
		}

		if out, _ := c.wait(); out != "0::/\n1\nRead-only file system\n" {
			t.Errorf("%s: container printed %q", name, out)
		}
	}

	if after := grepFile(t, "/proc/self/mountinfo", " - cgroup2 "); after != before {
		t.Errorf("the host's mount changed from %s to %s", before, after)
	}
}

// TestHostCgroups binds the host's cgroup mount where the container has no
// cgroup namespace.
func TestHostCgroups(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	before := grepFile(t, "/proc/self/mountinfo", " - cgroup")
	s := b.spec("ls /sys/fs/cgroup | head -n1 | wc -l; for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/x && echo made $d/x; done 2>/dev/null")
	setNamespace(s, specs.CgroupNamespace)
	s.Process.Args[2] += "; exit 0"
	b.want(s, "1")
	if after := grepFile(t, "/proc/self/mountinfo", " - cgroup"); after != before {
		t.Errorf("the host's mounts changed from %s to %s", before, after)
	}
}

// makeCgroup creates a cgroup that is removed at the end.
func makeCgroup(t testing.TB, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for range 100 {
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error(err)
	})
}

func grepFile(t testing.TB, path, text string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, line := range strings.Split(string(data), "\n") {
		if strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}
