package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
)

// mountLine prints the options of the mount at a path.
func mountLine(path string) string {
	return "grep ' " + path + " ' /proc/self/mounts | tail -n1 | cut -d' ' -f1,3,4 | sed s/,inode64//" // some kernels' default
}

func bind(source, dest string, options ...string) specs.Mount {
	return specs.Mount{Destination: dest, Type: "bind", Source: source, Options: append([]string{"rbind"}, options...)}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// hostMount mounts a tmpfs on a new directory of the test, shared with its peers.
func hostMount(t testing.TB, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	if err := unix.Mount("", path, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
}

func TestDefaultMounts(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	var script, want []string
	for path, line := range map[string]string{
		"/proc": "proc proc rw,nosuid,nodev,noexec,relatime", "/dev": "tmpfs tmpfs rw,nosuid,size=65536k,mode=755",
		"/dev/pts":    "devpts devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666",
		"/dev/mqueue": "mqueue mqueue rw,nosuid,nodev,noexec,relatime", "/sys": "sysfs sysfs ro,nosuid,nodev,noexec,relatime",
		"/dev/shm": "none tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k",
	} {
		script, want = append(script, mountLine(path)), append(want, line)
	}
	b.want(b.spec(strings.Join(script, "\n")), strings.Join(want, "\n"))
}

func TestShmIsThePods(t *testing.T) {
	b := newLab(t)
	o := usual()
	o.ShmSize = 3 << 20
	b.sandbox(o)
	b.want(b.spec("echo shared >/dev/shm/f; df -k /dev/shm | tail -n1 | awk '{print $2}'"), "3072")
	b.want(b.spec("cat /dev/shm/f; ls -ld /dev/shm | cut -c1-10"), "shared\ndrwxrwxrwt")
}

func TestBindOptions(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	dir := t.TempDir()
	hostMount(t, filepath.Join(dir, "vol"))
	hostMount(t, filepath.Join(dir, "vol/sub"))
	write(t, filepath.Join(dir, "vol/prog"), "#!/bin/sh\necho ran\n")
	if err := os.Chmod(filepath.Join(dir, "vol/prog"), 0o755); err != nil {
		t.Fatal(err)
	}

	try := "touch /vol/f 2>/dev/null && echo top; touch /vol/sub/f 2>/dev/null && echo sub; /vol/prog 2>/dev/null; mknod /vol/n c 1 3 2>/dev/null; cat /vol/n 2>/dev/null && echo dev; rm -f /vol/n; "
	tests := []struct {
		options []string
		want    string
	}{
		{nil, "top\nsub\nran\ndev\nrw,relatime rw,relatime"},
		{[]string{"ro"}, "sub\nran\nro,relatime rw,relatime"},
		{[]string{"rro"}, "ran\nro,relatime ro,relatime"},
		{[]string{"ro", "rw"}, "top\nsub\nran\ndev\nrw,relatime rw,relatime"},
		{[]string{"noexec", "nosuid", "nodev"}, "top\nsub\nrw,nosuid,nodev,noexec,relatime rw,relatime"},
		{[]string{"noatime", "rnosuid", "nosymfollow"}, "top\nsub\nran\ndev\nrw,nosuid,noatime,nosymfollow rw,nosuid,relatime"},
	}

	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.options), func(t *testing.T) {
			b := b.with(t)
			s := b.spec(try + "awk '$5 ~ \"^/vol\" {printf \"%s \", $6}' /proc/self/mountinfo")
			s.Mounts = append(s.Mounts, bind(filepath.Join(dir, "vol"), "/vol", tt.options...))
			b.want(s, tt.want+" ")
		})
	}
}

func TestPropagation(t *testing.T) {
	for _, tt := range []struct {
		option           string
		toHost, fromHost bool
	}{{"", false, false}, {"rprivate", false, false}, {"rslave", false, true}, {"rshared", true, true}} {
		t.Run("option "+tt.option, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(usual())
			vol := filepath.Join(t.TempDir(), "vol")
			hostMount(t, vol)

			s := b.spec("mkdir /vol/in; mount -t tmpfs in /vol/in; touch /vol/in/mark; mkdir /vol/out; echo ready; " +
				"while [ ! -e /vol/go ]; do sleep 0.02; done; [ -e /vol/out/mark ] && echo seen || echo unseen; umount /vol/in")
			s.Linux.RootfsPropagation = tt.option
			all := facts().Capabilities.Names()
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}

			m := bind(vol, "/vol")
			if tt.option != "" {
				m = bind(vol, "/vol", tt.option)
			}

			s.Mounts = append(s.Mounts, m)
			c, err := b.start(s, nil, Request{})
			if err != nil {
				t.Fatal(err)
			}

			c.until("ready\n")
			if _, err := os.Stat(filepath.Join(vol, "in/mark")); (err == nil) != tt.toHost {
				t.Errorf("mount made in the container is visible on the host: %v", err == nil)
			}

			hostMount(t, filepath.Join(vol, "out"))
			write(t, filepath.Join(vol, "out/mark"), "")
			write(t, filepath.Join(vol, "go"), "")
			want := map[bool]string{false: "unseen", true: "seen"}[tt.fromHost]
			if out, _ := c.wait(); out != "ready\n"+want+"\n" {
				t.Errorf("container printed %q, want %s", out, want)
			}
		})
	}
}

func TestTargetsAreMade(t *testing.T) {
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(o)
			dir := t.TempDir()
			write(t, filepath.Join(dir, "file"), "content\n")

			root := b.rootfs(func(upper string) {
				// A link as in images, and a dangling one.
				for link, to := range map[string]string{"run": "/var/run", "dangling": "../../nowhere/deep"} {
					if err := os.Symlink(to, filepath.Join(upper, link)); err != nil {
						t.Fatal(err)
					}
				}
			})

			s := b.spec("cat /new/dir/file /dangling/file /mem/a/file /mem/d/file /dev/file; ls -d /mem/b/c /nowhere/deep; stat -c %u /new /mem/a")
			tmpfs := specs.Mount{Destination: "/mem", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "mode=700"}}
			s.Mounts = append(s.Mounts,
				bind(filepath.Join(dir, "file"), "/new/dir/file", "ro"), bind(filepath.Join(dir, "file"), "/dangling/file"), tmpfs,
				bind(filepath.Join(dir, "file"), "/mem/a/file"), bind(dir, "/mem/b/c"), bind(dir, "/mem/d"), bind(filepath.Join(dir, "file"), "/dev/file"),
			)

			content := strings.Repeat("content\n", 5)
			if got, want := b.runWith(s, Held{"rootfs": root}), content+"/mem/b/c\n/nowhere/deep\n0\n0"; got != want {
				t.Errorf("container printed\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestTmpfs(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	s := b.spec(mountLine("/mem") + "; stat -c '%a %u' /mem; touch /mem/f && echo written")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mem", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "size=2m", "mode=1770", "uid=5"}})
	b.want(s, "tmpfs tmpfs rw,nosuid,noexec,relatime,size=2048k,mode=1770,uid=5\n1770 5\nwritten")
}

func TestImageVolume(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), "from image\n")

	f, err := openMount(&plan.Input{Path: dir, AttrSet: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	s := b.spec("cat /img/sub/f; touch /img/sub/g 2>/dev/null || echo read-only; " + "awk '$5 == \"/img/sub\" {print $6}' /proc/self/mountinfo")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/img/sub", Type: "image", Source: "image/0", Options: []string{"noexec"}})
	if got, want := b.runWith(s, Held{"image/0": f}), "from image\nread-only\nro,noexec,relatime"; got != want {
		t.Errorf("container printed %q, want %q", got, want)
	}
}

func TestIDMappedBind(t *testing.T) {
	b := newLab(t)
	b.sandbox(usersOwn())
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), "x")

	s := b.spec("stat -c '%u %g' /vol/f; touch /vol/new; stat -c '%u' /plain/f")
	m := bind(dir, "/vol")
	m.UIDMappings, m.GIDMappings = podMap, podMap
	other := bind(dir, "/other")
	other.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100007, Size: 10}}
	other.GIDMappings = other.UIDMappings
	s.Mounts = append(s.Mounts, m, bind(dir, "/plain"), other)
	s.Process.Args[2] += "; stat -c '%u' /other/f"
	b.want(s, "0 0\n65534\n7")

	info, err := os.Stat(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}

	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "new"), &st); err != nil || st.Uid != 0 {
		t.Errorf("file made through the mapping belongs to %d (%v, %v)", st.Uid, info, err)
	}
}

func TestMaskedPaths(t *testing.T) {
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(o)
			s := b.spec("stat -c '%F %t:%T' /proc/keys /proc/interrupts /secret; ls -A /proc/driver /sys/firmware /hidden | grep -v :; touch /hidden/x 2>&1 | sed 's/.*: //'; echo y >/secret; cat /secret")
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/proc/driver", "/secret", "/hidden", "/not/there", "/secret/below")

			root := b.rootfs(func(upper string) {
				write(t, filepath.Join(upper, "secret"), "secret")
				if err := os.Mkdir(filepath.Join(upper, "hidden"), 0o777); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(upper, "hidden/f"), "secret")
			})

			null := "character special file 1:3\n"
			if got, want := b.runWith(s, Held{"rootfs": root}), null+null+null+"Read-only file system"; strings.ReplaceAll(got, "\n\n\n", "\n") != want {
				t.Errorf("container printed\n%q\nwant\n%q", got, want)
			}
		})
	}
}

func TestReadonlyPaths(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	s := b.spec("for p in /proc/sys /proc/bus; do awk -v p=$p '$5 == p {print $6}' /proc/self/mountinfo; done; f=/proc/sys/net/ipv4/ip_default_ttl; was=$(cat $f); echo 77 2>&1 >$f | sed 's/.*: //'; test $(cat $f) = $was && echo unchanged; touch /data/x 2>&1 | sed 's/.*: //'")
	s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/data", "/not/there")
	line := "ro,nosuid,nodev,noexec,relatime\n"
	got := b.run(s)
	if !strings.HasPrefix(got, line+line) || !strings.HasSuffix(got, "unchanged\nRead-only file system") {
		t.Errorf("container printed %q", got)
	}
}

func TestReadonlyRoot(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	dir := t.TempDir()
	s := b.spec("touch /x 2>&1 | sed 's/.*: //'; touch /fresh/target/f /dev/f /dev/shm/f && echo writable; pwd")
	s.Root.Readonly = true
	s.Process.Cwd = "/made/for/work"
	s.Mounts = append(s.Mounts, bind(dir, "/fresh/target"))
	b.want(s, "Read-only file system\nwritable\n/made/for/work")
}

func TestDevices(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	id, mode := uint32(7), os.FileMode(0o640)
	s := b.spec("cd /dev; stat -c '%n %A %t:%T %u' null zero full random urandom tty net/tun mem0 /opt/dev/zero; readlink fd; readlink stdin; readlink ptmx; readlink core; echo x >null && head -c2 zero | wc -c")
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200, FileMode: &mode, UID: &id, GID: &id},
		{Path: "/dev/mem0", Type: "b", Major: 7, Minor: 300}, {Path: "/opt/dev/zero", Type: "c", Major: 1, Minor: 5},
	}

	b.want(s, `null crw-rw-rw- 1:3 0
zero crw-rw-rw- 1:5 0
full crw-rw-rw- 1:7 0
random crw-rw-rw- 1:8 0
urandom crw-rw-rw- 1:9 0
tty crw-rw-rw- 5:0 0
net/tun crw-r----- a:c8 7
mem0 brw-rw-rw- 7:12c 0
/opt/dev/zero crw-rw-rw- 1:5 0
/proc/self/fd
/proc/self/fd/0
pts/ptmx
/proc/kcore
2`)
}

// TestDevicesInUserNamespace has the host's nodes bound, also under another path.
func TestDevicesInUserNamespace(t *testing.T) {
	b := newLab(t)
	b.sandbox(usersOwn())
	s := b.spec("cd /dev; stat -c '%n %F %t:%T' null full net/mine; echo x >net/mine; head -c2 zero | wc -c")
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/net/mine", Type: "c", Major: 1, Minor: 3}}
	c, err := b.start(s, nil, Request{})
	if err != nil {
		t.Fatal(err)
	}
	want := "null character special file 1:3\nfull character special file 1:7\nnet/mine character special file 1:3\n2\n"
	if got, _ := c.wait(); got != want {
		t.Errorf("container printed\n%s\nwant\n%s", got, want)
	}
}

// TestBoundDev binds the host's /dev, which must not change.
func TestBoundDev(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	dir := t.TempDir()
	write(t, filepath.Join(dir, "mine"), "")
	s := b.spec("ls /dev")
	s.Mounts = []specs.Mount{defaultMounts[0], bind(dir, "/dev"), defaultMounts[5]}
	b.want(s, "mine")
}

func TestMountOnAnotherKind(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "")
	for _, m := range []specs.Mount{bind(dir, "/bin/busybox"), bind(filepath.Join(dir, "file"), "/tmp")} {
		s := b.spec("true")
		s.Mounts = append(s.Mounts, m)
		_, err := b.start(s, nil, Request{})
		if err == nil || !strings.Contains(err.Error(), `"mount `+m.Destination+`": invalid argument (a directory cannot`) {
			t.Errorf("error %v", err)
		}
	}
}
