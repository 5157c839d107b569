package launch

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// The tests below cover settings of OCI bundles that a pod's containers never have.

// rootDir is a root file system for one bundle, in a directory of its own.
func rootDir(t *testing.T) string {
	t.Helper()
	low, err := lower()
	if err != nil {
		testkit.Skip(t, "busybox", err.Error())
	}
	dir := filepath.Join(t.TempDir(), "rootfs")
	if out, err := exec.Command("cp", "-a", low, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// bundleIn is an ordinary bundle's spec with every capability, and a root of its own.
func bundleIn(t *testing.T, script string, mounts ...specs.Mount) *specs.Spec {
	s := bundleSpec(t, script)
	caps := append([]string{"CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"}, defaultCaps...)
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	s.Root = &specs.Root{Path: rootDir(t)}
	s.Mounts = append(s.Mounts, mounts...)
	return s
}

func newFS(at string, options ...string) specs.Mount {
	return specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: options}
}

func TestTmpfsTakesTheModeOfItsTarget(t *testing.T) {
	for name, c := range map[string]struct {
		mounts []specs.Mount
		want   string
	}{
		"target's":         {[]specs.Mount{newFS("/kept")}, "2751"},
		"asked for":        {[]specs.Mount{newFS("/kept", "mode=0710")}, "710"},
		"nothing there":    {[]specs.Mount{newFS("/kept/new"), newFS("/kept")}, "2751"},
		"over another":     {[]specs.Mount{newFS("/kept", "mode=0711"), newFS("/kept")}, "711"},
		"through a link":   {[]specs.Mount{newFS("/link")}, "2751"},
		"read-only":        {[]specs.Mount{newFS("/kept", "ro")}, "2751"},
		"a bind's content": {[]specs.Mount{{Destination: "/data", Type: "bind", Source: "BIND", Options: []string{"rbind"}}, newFS("/data/kept")}, "2751"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			bind := t.TempDir()
			for i := range c.mounts {
				c.mounts[i].Source = strings.Replace(c.mounts[i].Source, "BIND", bind, 1)
			}

			s := bundleIn(t, "stat -c %a /kept /data/kept 2>/dev/null | tail -n 1", c.mounts...)
			for _, dir := range []string{filepath.Join(s.Root.Path, "kept"), filepath.Join(bind, "kept")} {
				must(t, os.Mkdir(dir, 0o755), unix.Chmod(dir, 0o2751))
			}

			must(t, os.Symlink("kept", filepath.Join(s.Root.Path, "link")))
			if got := b.bundle(s); got != c.want+"\n" {
				t.Errorf("mode is %q, want %q", got, c.want)
			}
		})
	}
}

func TestTmpfsCopiesUp(t *testing.T) {
	for name, c := range map[string]struct {
		options []string
		want    string
	}{
		"plain":     {nil, "/full 1770 5 6\n/full/file 640 7 8\n/full/dir 755 0 0\nfile\ncontent\nwritten\n"},
		"read-only": {[]string{"ro"}, "/full 1770 5 6\n/full/file 640 7 8\n/full/dir 755 0 0\nfile\ncontent\n"},
		"asked for": {[]string{"mode=0701", "uid=9", "gid=10"}, "/full 701 9 10\n/full/file 640 7 8\n/full/dir 755 0 0\nfile\ncontent\nwritten\n"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			s := bundleIn(t, `stat -c "%n %a %u %g" /full /full/file /full/dir; readlink /full/link; cat /full/file
				(echo 1 >/full/new) 2>/dev/null && echo written; grep "^tmpfs /full tmpfs" /proc/mounts >/dev/null || echo no tmpfs`,
				newFS("/full", append(c.options, "tmpcopyup")...))

			full := filepath.Join(s.Root.Path, "full")
			file := filepath.Join(full, "file")
			must(t, os.MkdirAll(filepath.Join(full, "dir"), 0o755), os.WriteFile(file, []byte("content\n"), 0o640),
				os.Chown(file, 7, 8), os.Symlink("file", filepath.Join(full, "link")), os.Chown(full, 5, 6), unix.Chmod(full, 0o1770))

			if got := b.bundle(s); got != c.want {
				t.Errorf("printed %q, want %q", got, c.want)
			}
			if _, err := os.Stat(filepath.Join(full, "new")); err == nil {
				t.Error("the root file system was written to")
			}
		})
	}
	t.Run("nothing there", func(t *testing.T) {
		b := newLab(t)
		s := bundleIn(t, "ls -A /none | wc -l; grep -c ' /none tmpfs' /proc/mounts", newFS("/none", "tmpcopyup"))
		if got := b.bundle(s); got != "0\n1\n" {
			t.Errorf("printed %q", got)
		}
	})
}

func TestReadonlyFileSystemsAreFilledFirst(t *testing.T) {
	b := newLab(t)
	s := bundleIn(t, `: >/dev/null && echo device; ls /ro; for d in /dev /ro; do touch $d/x 2>/dev/null || echo $d closed; done; touch /ro/in/x && echo open; pwd`,
		newFS("/ro", "ro", "mode=755"), newFS("/ro/in"))
	s.Mounts[1].Options = append(s.Mounts[1].Options, "ro")
	s.Process.Cwd = "/ro/cwd"
	if got, want := b.bundle(s), "device\ncwd\nin\n/dev closed\n/ro closed\nopen\n/ro/cwd\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

func TestPathsGivenTwiceAreCoveredOnce(t *testing.T) {
	b := newLab(t)
	s := bundleIn(t, `for p in /proc/keys /proc/driver /proc/sys; do grep -c " $p " /proc/mounts; done`)
	s.Linux.MaskedPaths = []string{"/proc/keys", "/proc/keys", "/proc/./keys", "/proc/driver/", "/proc/driver", "/nothing"}
	s.Linux.ReadonlyPaths = []string{"/proc/sys", "/proc/sys/", "/proc/../proc/sys", "/nothing"}
	if got := b.bundle(s); got != "1\n1\n1\n" {
		t.Errorf("counts are %q", got)
	}
}

// TestRecursiveOptions binds a file system with another one on it: the first is
// mounted as usual, the second nosuid, nodev, noexec and noatime.
func TestRecursiveOptions(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	must(t, unix.Mount("t", dir, "tmpfs", 0, ""), os.Mkdir(sub, 0o755),
		unix.Mount("t", sub, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	const usual, inner = "rw,relatime", "rw,nosuid,nodev,noexec,noatime"
	for options, want := range map[string][2]string{
		"":                     {usual, inner},
		"ro":                   {"ro,relatime", inner},
		"rro":                  {"ro,relatime", "ro,nosuid,nodev,noexec,noatime"},
		"rro,rw":               {"ro,relatime", "ro,nosuid,nodev,noexec,noatime"},
		"ro,rrw":               {usual, inner},
		"rnosuid":              {"rw,nosuid,relatime", inner},
		"rnodev":               {"rw,nodev,relatime", inner},
		"rnoexec":              {"rw,noexec,relatime", inner},
		"rsuid":                {usual, "rw,nodev,noexec,noatime"},
		"rdev":                 {usual, "rw,nosuid,noexec,noatime"},
		"rexec":                {usual, "rw,nosuid,nodev,noatime"},
		"rnoatime":             {"rw,noatime", inner},
		"ratime":               {usual, "rw,nosuid,nodev,noexec,relatime"},
		"rrelatime":            {usual, "rw,nosuid,nodev,noexec,relatime"},
		"rstrictatime":         {"rw", "rw,nosuid,nodev,noexec"},
		"rnostrictatime":       {usual, "rw,nosuid,nodev,noexec,relatime"},
		"rnorelatime":          {usual, "rw,nosuid,nodev,noexec,relatime"},
		"rnodiratime":          {"rw,nodiratime,relatime", "rw,nosuid,nodev,noexec,noatime,nodiratime"},
		"rnodiratime,diratime": {"rw,nodiratime,relatime", "rw,nosuid,nodev,noexec,noatime,nodiratime"},
		"rdiratime":            {usual, inner},
		"rnosymfollow":         {"rw,relatime,nosymfollow", inner + ",nosymfollow"},
		"rsymfollow":           {usual, inner},
		"sync,lazytime,silent": {usual, inner},
		"rro,rnosuid,rnoatime": {"ro,nosuid,noatime", "ro,nosuid,nodev,noexec,noatime"},
	} {
		t.Run(options, func(t *testing.T) {
			b := newLab(t)
			s := bundleIn(t, `grep " /data" /proc/mounts | cut -d " " -f 4`, specs.Mount{
				Destination: "/data", Type: "bind", Source: dir, Options: append([]string{"rbind"}, strings.Split(options, ",")...),
			})

			got := strings.Split(b.bundle(s), "\n")
			for i := range want {
				// The file system's own options come after, such as inode64.
				if have := strings.TrimSuffix(got[i], ",inode64"); have != want[i] {
					t.Errorf("mount %d has %q, want %q", i, have, want[i])
				}
			}
		})
	}
}

func TestPropagationOfOneMount(t *testing.T) {
	testkit.Root(t)
	dir := t.TempDir()
	must(t, unix.Mount("t", dir, "tmpfs", 0, ""), os.Mkdir(filepath.Join(dir, "sub"), 0o755), unix.Mount("t", filepath.Join(dir, "sub"), "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })

	for option, want := range map[string]string{"shared": "shared:\n-\n", "rshared": "shared:\nshared:\n", "unbindable": "unbindable\n-\n", "runbindable": "unbindable\nunbindable\n"} {
		t.Run(option, func(t *testing.T) {
			b := newLab(t)
			s := bundleIn(t, `grep " /data" /proc/self/mountinfo | cut -d " " -f 7 | sed "s/[0-9]*$//"`, specs.Mount{
				Destination: "/data", Type: "bind", Source: dir, Options: []string{"rbind", option},
			})
			if got := b.bundle(s); got != want {
				t.Errorf("propagation is %q, want %q", got, want)
			}
		})
	}
}

func TestTimeNamespaceOfABundle(t *testing.T) {
	for name, users := range map[string]bool{"host ids": false, "own ids": true} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			s := bundleIn(t, "cat /proc/self/timens_offsets | tr -s ' '; echo $$")
			setNamespace(s, specs.TimeNamespace, "")
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1000, Nanosecs: 5}, "boottime": {Secs: 100000}}

			if users {
				setNamespace(s, specs.UserNamespace, "")
				s.Linux.UIDMappings, s.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: 0, Size: 1000}, {ContainerID: 1000, HostID: 100000, Size: 1000}}, podMap
			}
			if got, want := b.bundle(s), "monotonic 1000 5\nboottime 100000 0\n1\n"; got != want {
				t.Errorf("printed %q, want %q", got, want)
			}
		})
	}
}

func TestJoinedMountNamespace(t *testing.T) {
	b := newLab(t)
	holder := exec.Command("unshare", "-m", "--propagation", "private", "sleep", "100")
	must(t, holder.Start())
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })

	name := "/proc/" + strconv.Itoa(holder.Process.Pid) + "/ns/mnt"
	ours, err := os.Readlink("/proc/self/ns/mnt")
	must(t, err)
	theirs := ours
	for range 1000 {
		if theirs, err = os.Readlink(name); err != nil || theirs != ours {
			break
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}

	s := bundleIn(t, "readlink /proc/self/ns/mnt; ls / | grep -c data; grep -c / /proc/mounts")
	setNamespace(s, specs.MountNamespace, name)
	s.Mounts = s.Mounts[:2]
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil

	if got, want := b.bundle(s), theirs+"\n1\n3\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

func TestDevicesThatAreThereAlready(t *testing.T) {
	b := newLab(t)
	s := bundleIn(t, "ls -ln /dev/fuse /opt/d/fuse /etc/there | tr -s ' ' | cut -d ' ' -f 1,3,4; readlink /dev/ptmx")
	owner := uint32(3)
	fuse := specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, UID: &owner}
	there, opt, ptmx := fuse, fuse, fuse
	there.Path, opt.Path, ptmx.Path = "/etc/there", "/opt/d/fuse", "/dev/ptmx"
	s.Linux.Devices = []specs.LinuxDevice{fuse, fuse, opt, opt, there, ptmx}
	must(t, os.WriteFile(filepath.Join(s.Root.Path, "etc/there"), nil, 0o644))
	if got, want := b.bundle(s), "crw-rw-rw- 3 0\n-rw-r--r-- 0 0\ncrw-rw-rw- 3 0\npts/ptmx\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

// TestCgroupsWithoutANamespace shows a container on version 1 only its own cgroups.
func TestCgroupsWithoutANamespace(t *testing.T) {
	b := newLab(t)
	list, err := shown()
	must(t, err)
	if b.l.unified || len(list) == 0 {
		testkit.Skip(t, "cgroup1", "this machine has the unified hierarchy")
	}

	s := bundleIn(t, "cd /sys/fs/cgroup; ls -d */ | wc -l; ls -d memory/*/ 2>/dev/null; mkdir memory/x 2>/dev/null || echo closed; cat memory/notify_on_release")
	setNamespace(s, specs.CgroupNamespace)
	own := filepath.Join("/crisp-launch-test", "own")
	for _, h := range list {
		dir := filepath.Join(cgroupRoot, h.Dir, own)
		must(t, os.MkdirAll(dir, 0o755))
		t.Cleanup(func() { must(t, os.Remove(dir)); _ = os.Remove(filepath.Dir(dir)) })
	}

	r := Request{Name: "start bundle", Spec: s, CgroupDir: own}
	b.show(&r)
	c, err := b.launch(r, b.l.Container)
	must(t, err)
	if got, _ := c.wait(); !strings.HasSuffix(got, "\nclosed\n0\n") || strings.Contains(got, "memory/") {
		t.Errorf("printed %q", got)
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}
