package launch

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/cgroup"
	"crisp/runtime/plan"
	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// inGroup creates a group, as the daemon does, and returns a request for a start in it.
func (b *lab) inGroup(n *cgroup.Node) Request {
	b.t.Helper()
	path, err := n.Path("", "c"+strconv.Itoa(b.n))
	if err != nil {
		b.t.Fatal(err)
	}

	b.n++
	all := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	g, err := n.Create(b.t.Context(), path, all)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), pace.Scale(20*time.Second))
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			b.t.Error(err)
		}
	})

	return Request{Group: g, Hierarchies: n.Hierarchies()}
}

// gated is a group with a gate, whose Attach does nothing.
type gated struct{ Group }

func (gated) NeedsGate() bool                   { return true }
func (gated) Attach(context.Context, int) error { return nil }

// unified is a directory of the unified hierarchy.
type unified struct{ dir *os.File }

func (g unified) NeedsGate() bool                    { return false }
func (g unified) Attach(context.Context, int) error  { return nil }
func (g unified) EntryOf(int) (*cgroup.Entry, error) { return g.Entry() }
func (g unified) Entry() (*cgroup.Entry, error) {
	fd, err := unix.FcntlInt(g.dir.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return &cgroup.Entry{Unified: os.NewFile(uintptr(fd), g.dir.Name())}, nil
}

// leftOut is a group of which the hierarchy with a device number is not joined.
type leftOut struct {
	Group
	dev uint64
}

func (g leftOut) Entry() (*cgroup.Entry, error) {
	e, err := g.Group.Entry()
	if err != nil {
		return nil, err
	}

	for i, f := range e.Tasks {
		var its unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &its); err != nil {
			return nil, err
		}
		if its.Dev != g.dev {
			continue
		}

		f.Close()
		// Writing "0" there joins nothing.
		if e.Tasks[i], err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// groups is a node with a default parent of the test's own.
func (b *lab) groups() *cgroup.Node {
	b.t.Helper()
	n, err := cgroup.New(cgroup.Cgroupfs, "/"+testkit.Name(b.t))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if err := n.Close(); err != nil {
			b.t.Error(err)
		}
	})
	return n
}

// TestCgroups joins a group in every hierarchy before the container sees any:
// it can see only its own group in each.
func TestCgroups(t *testing.T) {
	b := newLab(t)
	n := b.groups()
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		b.sandbox(o)
		r := b.inGroup(n)
		s := b.spec(`grep -v ':/$' /proc/self/cgroup
find /sys/fs/cgroup -name tasks -o -name cgroup.procs | xargs cat | sort -u | wc -l
find /sys/fs/cgroup -mindepth 2 -name release_agent
find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d | wc -l
for d in $(find /sys/fs/cgroup -type d); do mkdir $d/x 2>&1; done | grep -vc 'Read-only'`)

		c, err := b.start(s, nil, r)
		if err != nil {
			t.Fatal(err)
		}

		out, _ := c.wait()
		f := strings.Fields(out)
		// One of several controllers has links with their names, too.
		shown := len(r.Hierarchies)
		if n.V2() {
			shown = 0 // there are files only
		}

		// The script is a handful of processes.
		if len(f) != 3 || len(f[0]) > 1 || f[1] != strconv.Itoa(shown) || f[2] != "0" {
			t.Errorf("%s: container printed %q with %d hierarchies", name, out, shown)
		}
	}
}

// remount tries to reach the root group of each hierarchy with CAP_SYS_ADMIN:
// by a writable remount of the container's mount, a new mount, and a change of
// the superblock options.
const remount = `
mount -o remount,rw,bind /sys/fs/cgroup 2>/dev/null
for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do
	mount -o remount,rw,bind $d
	umount -l $d
done 2>/dev/null
mkdir -p /tmp/agent; mount -t tmpfs none /tmp/agent
IFS=:
while read id controllers path; do
	at=/tmp/agent/$id
	mkdir $at
	case $controllers in
	"") mount -t cgroup2 none $at ;;
	name=*) mount -t cgroup -o none,$controllers none $at ;;
	*) mount -t cgroup -o $controllers none $at ;;
	esac || { echo "not mounted: $controllers"; continue; }
	[ -e $at/release_agent ] && { echo "agent of $controllers: $(cat $at/release_agent)"; echo /evil > $at/release_agent && echo "set agent of $controllers"; }
	mount -o remount,release_agent=/evil $at && echo "remounted $controllers"
	for opt in "none,$controllers" $controllers; do
		mount -t cgroup -o $opt,release_agent=/evil none /tmp/agent && umount /tmp/agent
	done
	echo 1 > $at/notify_on_release
	IFS=' '
	ls -d $at/*/ 2>/dev/null
	find $at -name cgroup.procs | xargs cat | grep -w 0 && echo "foreign processes in $controllers"
	IFS=:
done < /proc/self/cgroup 2>/dev/null
mount -t cgroup -o none,name=crispmade none /tmp/agent 2>/dev/null && echo "made a hierarchy"
for c in rdma misc net_cls net_prio perf_event hugetlb debug; do
	grep -qw $c /proc/self/cgroup && continue # one that exists is mounted, the option ignored
	mount -t cgroup -o $c,release_agent=/evil none /tmp/agent 2>/dev/null && echo "made hierarchy $c"
done
echo done`

// TestCVE_2022_0492 has containers with CAP_SYS_ADMIN try to set release_agent,
// a program that the kernel runs as root on the host, in every hierarchy. They
// see their own group as the root of each, which has no such file. One of the
// hierarchies is the test's own, with an agent and mounted at an unusual place.
func TestCVE_2022_0492(t *testing.T) {
	b := newLab(t)
	canary := canaryHierarchy(t)
	n := b.groups()
	try := func(t *testing.T, o plan.SandboxOptions, change func(Group) Group) string {
		b := b.with(t)
		before := agents(t)
		b.sandbox(o)
		r := b.inGroup(n)
		r.Group = change(r.Group)

		s := b.spec(remount)
		admin := append([]string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"}, defaultCaps...)
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: admin, Effective: admin, Permitted: admin}
		c, err := b.start(s, nil, r)
		if err != nil {
			t.Fatal(err)
		}

		out, _ := c.wait()
		after := agents(t)
		if before[canary] != "/canary\n" {
			t.Fatalf("release agents before are %v", before)
		}

		delete(before, canary)
		if changed := after[canary] != "/canary\n"; changed != strings.Contains(out, "set agent") {
			t.Errorf("the canary is %q", after[canary])
		}

		delete(after, canary)
		if !maps.Equal(after, before) {
			t.Errorf("release agents were\n%v\nand are\n%v", before, after)
		}
		return out
	}

	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		t.Run(name, func(t *testing.T) {
			if out := try(t, o, func(g Group) Group { return g }); out != "done\n" {
				t.Errorf("container printed\n%s", out)
			}
		})
	}

	// The attack works in a hierarchy that was not joined.
	t.Run("left out", func(t *testing.T) {
		out := try(t, usual(), func(g Group) Group {
			var theirs unix.Stat_t
			if err := unix.Stat(canary, &theirs); err != nil {
				t.Fatal(err)
			}
			return leftOut{g, theirs.Dev}
		})

		if !strings.Contains(out, "agent of name=crisp-canary: /canary\nset agent of") {
			t.Errorf("container printed\n%s", out)
		}
	})
}

// canaryHierarchy creates a hierarchy with a release agent for the duration of the test.
func canaryHierarchy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	const options = "none,name=crisp-canary,release_agent=/canary"
	if err := unix.Mount("none", dir, "cgroup", 0, options); err != nil {
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
			testkit.Skip(t, "cgroup1", err.Error())
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The kernel destroys a hierarchy a little after its last unmount, once
		// it has released removed groups.
		for range 20 {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Fatal(err)
			}
			for range 20 {
				if own, err := os.ReadFile("/proc/self/cgroup"); err != nil || !strings.Contains(string(own), "name=crisp-canary") {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}

			if err := unix.Mount("none", dir, "cgroup", 0, options); err != nil {
				t.Fatal(err)
			}
		}

		_ = unix.Unmount(dir, 0)
		t.Log("the test's hierarchy is in use by another process")
	})

	return dir
}

// agents reads the release agent of each hierarchy of the host.
func agents(t *testing.T) map[string]string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup"))
	if err != nil {
		t.Fatal(err)
	}

	list := map[string]string{}
	for _, m := range mounts {
		data, err := os.ReadFile(filepath.Join(m.Mountpoint, "release_agent"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		list[m.Mountpoint] = string(data)
	}

	return list
}

// TestCVE_2023_25809 covers the host's cgroups in an unprivileged container
// without a cgroup namespace: they must be read-only, also in a user namespace.
func TestCVE_2023_25809(t *testing.T) {
	b := newLab(t)
	n := b.groups()
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		b.sandbox(o)
		r := b.inGroup(n)
		s := b.spec(`find /sys/fs/cgroup -type d | while read d; do mkdir "$d/x" && echo "made $d/x"; echo $$ > "$d/cgroup.procs" && echo "joined $d"; done 2>/dev/null; echo done`)
		setNamespace(s, specs.CgroupNamespace)

		c, err := b.start(s, nil, r)
		if err != nil {
			t.Fatal(err)
		}
		if out, _ := c.wait(); out != "done\n" {
			t.Errorf("%s: container printed\n%s", name, out)
		}
	}
}

// A launcher never selects hierarchies to show: it does not know which are joined.
func TestHierarchiesAreNamed(t *testing.T) {
	b := newLab(t)
	if b.l.unified {
		testkit.Skip(t, "cgroup1", "the machine has the unified hierarchy")
	}

	b.sandbox(usual())
	_, err := b.start(b.spec("true"), nil, Request{Hierarchies: []plan.Hierarchy{}})
	if err == nil || !strings.Contains(err.Error(), "joined") {
		t.Errorf("a container started with a cgroup mount but no named hierarchies: %v", err)
	}

	s := b.spec("exit 3")
	setNamespace(s, specs.CgroupNamespace)
	c, err := b.start(s, nil, Request{Hierarchies: []plan.Hierarchy{}})
	if err != nil {
		t.Fatal(err)
	}

	if _, code := c.wait(); code != 3 {
		t.Errorf("exit code %d", code)
	}
}
