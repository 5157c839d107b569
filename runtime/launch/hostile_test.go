package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/runtime/spawn"
	"crisp/test/testkit"
)

// listing lists everything below a directory, to detect changes.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprint(path, info.Mode(), info.Size(), info.ModTime()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// TestLinksForSpecialDirectories has images whose /proc, /sys or /dev are links.
func TestLinksForSpecialDirectories(t *testing.T) {
	canary := t.TempDir()
	for _, directory := range []string{"proc", "sys", "dev"} {
		for _, to := range []string{canary, "../../.." + canary, "/tmp", "dangling", "/proc/self/fd/5"} {
			t.Run(directory+" to "+filepath.Base(to), func(t *testing.T) {
				b := newLab(t)
				b.sandbox(usual())
				before := listing(t, canary)
				root := b.rootfs(func(upper string) {
					if err := os.Symlink(to, filepath.Join(upper, directory)); err != nil {
						t.Fatal(err)
					}
				})

				_, err := b.start(b.spec("true"), Held{"rootfs": root}, Request{})
				if err == nil {
					t.Error("container started")
				}

				if after := listing(t, canary); after != before {
					t.Errorf("host changed from\n%s\nto\n%s", before, after)
				}
				if !errors.Is(err, unix.ELOOP) && !strings.Contains(fmt.Sprint(err), "make mount target /"+directory) {
					t.Errorf("error %v does not name the directory", err)
				}
			})
		}
	}
}

// TestLinksForTargets has every mount target link to a directory of the host.
func TestLinksForTargets(t *testing.T) {
	canary := t.TempDir()
	write(t, filepath.Join(canary, "file"), "host")
	for name, link := range map[string]string{
		"absolute": canary, "upwards": "../../../../../.." + canary, "through init": "/proc/1/root" + canary,
		"working directory": "/proc/self/cwd", "descriptor": "/proc/self/fd/3",
	} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(usual())
			before := listing(t, canary)
			source := t.TempDir()
			write(t, filepath.Join(source, "mine"), "mine")

			root := b.rootfs(func(upper string) {
				if err := os.Symlink(link, filepath.Join(upper, "vol")); err != nil {
					t.Fatal(err)
				}
			})

			s := b.spec("cat /vol/mine")
			s.Mounts = append(s.Mounts, bind(source, "/vol"), bind(source, "/vol/sub/deeper"))
			s.Process.Cwd = "/vol/work"
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/vol/sub")

			c, err := b.start(s, Held{"rootfs": root}, Request{})
			if err == nil {
				if out, _ := c.wait(); out != "mine" {
					t.Errorf("container printed %q", out)
				}
			}

			if after := listing(t, canary); after != before {
				t.Errorf("host changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// TestTargetsInProcfs has links of an image lead mount targets into /proc.
func TestTargetsInProcfs(t *testing.T) {
	source := t.TempDir()
	write(t, filepath.Join(source, "file"), "mine")
	for _, to := range []string{"/proc/sys/kernel/hostname", "/proc/self/attr/current", "/proc/1/environ", "/proc/self/../version"} {
		t.Run(to, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(usual())
			root := b.rootfs(func(upper string) {
				if err := errors.Join(os.Mkdir(filepath.Join(upper, "etc"), 0o755), os.Symlink(to, filepath.Join(upper, "etc", "hosts"))); err != nil {
					t.Fatal(err)
				}
			})

			s := b.spec("true")
			s.Mounts = append(s.Mounts, bind(filepath.Join(source, "file"), "/etc/hosts"))
			_, err := b.start(s, Held{"rootfs": root}, Request{})
			if !errors.Is(err, ErrInProcfs) || !strings.Contains(err.Error(), "/etc/hosts") {
				t.Errorf("error %v does not refuse the target", err)
			}
		})
	}
}

// TestWorkingDirOutside tries to reach the host through a descriptor that a
// runtime may have left open.
func TestWorkingDirOutside(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	c, running := b.running(nil)
	for fd := range 40 {
		for _, link := range []bool{false, true} {
			dir := fmt.Sprintf("/proc/self/fd/%d", fd)
			var root *os.File
			if link {
				root = b.rootfs(func(upper string) {
					if err := os.Symlink(dir, filepath.Join(upper, "work")); err != nil {
						t.Fatal(err)
					}
				})
				dir = "/work"
			} else {
				root = b.rootfs(nil)
			}

			s := b.spec("pwd")
			s.Process.Cwd = dir
			if _, err := b.start(s, Held{"rootfs": root}, Request{}); err == nil {
				t.Errorf("container started in %s, a link: %v", dir, link)
			}

			if link {
				continue
			}
			p := *running.Process
			p.Cwd = dir

			if _, err := b.exec(c, running, &p, Request{}); err == nil {
				t.Errorf("process executed in %s", dir)
			}
		}
	}
}

func TestWorkingDir(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	tests := []struct {
		cwd  string
		uid  uint32
		want string
	}{
		{"/", 0, "/"}, {"/tmp", 0, "/tmp"}, {"/made/by/us", 0, "/made/by/us"}, {"/made/by/us", 1000, "/made/by/us"},
		{"/root", 1000, "/root"}, {"/proc/sys", 0, "/proc/sys"}, {"/dev/shm/new/dir", 0, "/dev/shm/new/dir"},
		{"/link/below", 0, "/target/below"}, {"/../../tmp/./x/..", 0, "/tmp"},
	}

	for _, tt := range tests {
		s := b.spec("pwd -P")
		s.Process.Cwd, s.Process.User.UID = tt.cwd, tt.uid
		root := b.rootfs(func(upper string) {
			if err := os.Symlink("target", filepath.Join(upper, "link")); err != nil {
				t.Fatal(err)
			}
		})

		if got := b.runWith(s, Held{"rootfs": root}); got != tt.want {
			t.Errorf("working directory %s is %s, want %s", tt.cwd, got, tt.want)
		}
	}

	for _, cwd := range []string{"/bin/busybox", "/proc/no/such"} {
		s := b.spec("pwd")
		s.Process.Cwd = cwd
		if _, err := b.start(s, nil, Request{}); err == nil || !strings.Contains(err.Error(), cwd) {
			t.Errorf("working directory %s: error %v", cwd, err)
		}
	}
}

// TestRaces exchanges the files that a start uses, in a volume shared with a
// container, with a link to the host: the start must succeed confined or fail,
// and nothing on the host may change.
func TestRaces(t *testing.T) {
	for _, race := range []struct {
		name string
		// make creates a and b, which are exchanged, in the volume.
		make func(vol, canary string) error
		// change has a container use them, and want is its output if it started.
		change   func(b *lab, s *specs.Spec, vol string)
		terminal bool
		want     string
	}{
		{
			name: "CVE-2021-30465 and CVE-2024-45310, targets of mounts",
			make: func(vol, canary string) error {
				return errors.Join(os.Mkdir(filepath.Join(vol, "a"), 0o755), os.Symlink(canary, filepath.Join(vol, "b")))
			},
			change: func(b *lab, s *specs.Spec, vol string) {
				source := b.t.TempDir()
				s.Process.Cwd = "/vol/a/work"
				s.Mounts = append(s.Mounts, bind(vol, "/vol"), bind(source, "/vol/a/sub"), bind(source, "/vol/a"))
				s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/vol/a")
			},
		},
		{
			name: "CVE-2023-27561 and CVE-2025-52881, a procfs in a volume",
			make: func(vol, canary string) error {
				return errors.Join(os.Mkdir(filepath.Join(vol, "a"), 0o755), os.Symlink(canary, filepath.Join(vol, "b")))
			},
			change: func(_ *lab, s *specs.Spec, vol string) {
				s.Mounts = append(s.Mounts, bind(vol, "/vol"), specs.Mount{Destination: "/vol/a", Type: "proc", Source: "proc"})
				s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/vol/a/sys")
			},
		},
		{
			name: "CVE-2025-31133, the null device",
			make: func(vol, canary string) error {
				return errors.Join(unix.Mknod(filepath.Join(vol, "a"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
					os.Symlink("/proc/sys/kernel/core_pattern", filepath.Join(vol, "b")), os.Symlink("a", filepath.Join(vol, "null")))
			},
			change: func(_ *lab, s *specs.Spec, vol string) {
				s.Mounts = append(s.Mounts, bind(vol, "/dev"))
				s.Process.Args[2] = "stat -c %t:%T /proc/timer_list"
			},
			want: "1:3\n",
		},
		{
			name: "CVE-2025-52565, the console",
			make: func(vol, canary string) error {
				return errors.Join(os.Mkdir(filepath.Join(vol, "a"), 0o755), os.Symlink(canary, filepath.Join(vol, "b")))
			},
			change: func(_ *lab, s *specs.Spec, vol string) {
				s.Mounts = append(s.Mounts, bind(vol, "/vol"), bind(vol, "/vol/a/pts"))
				s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/vol/a/pts")
			},
			terminal: true,
		},
	} {
		t.Run(race.name, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(usual())
			canary, vol := t.TempDir(), t.TempDir()
			if err := race.make(vol, canary); err != nil {
				t.Fatal(err)
			}

			before, mounts := listing(t, canary), grepFile(t, "/proc/self/mountinfo", canary)
			pattern := grepFile(t, "/proc/sys/kernel/core_pattern", "")
			testkit.Exchange(t, vol, "a", "b")

			started, all := 0, testkit.Rounds(t)
			for range all {
				s := b.spec("exit 0")
				race.change(b, s, vol)
				s.Process.Terminal = race.terminal
				c, err := b.start(s, nil, Request{})
				if err != nil {
					continue
				}

				started++
				if out, code := c.wait(); code == 0 && out != race.want && !race.terminal {
					t.Fatalf("a container printed %q, want %q", out, race.want)
				}
			}

			if after := listing(t, canary); after != before {
				t.Errorf("host changed from\n%s\nto\n%s", before, after)
			}
			if after := grepFile(t, "/proc/self/mountinfo", canary); after != mounts {
				t.Errorf("host has mounts\n%s", after)
			}

			if after := grepFile(t, "/proc/sys/kernel/core_pattern", ""); after != pattern {
				t.Errorf("core_pattern became %q", after)
			}
			t.Logf("%d of %d containers started", started, all)
		})
	}
}

func TestMountsOverProc(t *testing.T) {
	b := newLab(t)
	b.sandbox(usual())
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), "fake\n")

	for _, m := range []specs.Mount{
		bind(dir, "/proc"), bind(dir, "/proc/self/attr"), bind(filepath.Join(dir, "f"), "/proc/self/status"),
		{Destination: "/proc", Type: "tmpfs"}, {Destination: "/proc/sys", Type: "tmpfs"}, {Destination: "/tmp/../proc/1", Type: "tmpfs"},
		{Destination: "/proc", Type: "image", Source: "image/0"},
	} {
		s := b.spec("true")
		s.Mounts = append(s.Mounts, m)
		if _, err := b.start(s, nil, Request{}); !errors.Is(err, plan.ErrSpec) {
			t.Errorf("mount of %s on %s: %v", m.Type, m.Destination, err)
		}
	}

	s := b.spec("cat /proc/cpuinfo")
	s.Mounts = append(s.Mounts, bind(filepath.Join(dir, "f"), "/proc/cpuinfo"))
	b.want(s, "fake")
}

// TestEveryStepFails makes each step of a plan fail in turn.
func TestEveryStepFails(t *testing.T) {
	for name, o := range map[string]plan.SandboxOptions{"host ids": usual(), "own ids": usersOwn()} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			b.sandbox(o)
			dir := t.TempDir()
			s := b.spec("echo started")
			s.Root.Readonly, s.Process.NoNewPrivileges, s.Process.User.UID = true, true, 1000
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}
			s.Mounts = append(s.Mounts, bind(dir, "/vol", "ro"), bind(dir, "/vol2"), specs.Mount{Destination: "/mem", Type: "tmpfs"}, bind(dir, "/mem/sub"))
			failEach(t, b.k, func() (*started, error) { return b.start(s, nil, Request{Group: gated{}}) })
		})
	}
}

func TestEveryStepOfExecFails(t *testing.T) {
	b := newLab(t)
	b.sandbox(usersOwn())
	c, s := b.running(nil)
	p := *s.Process
	p.Args = []string{"/bin/echo", "started"}
	failEach(t, b.k, func() (*started, error) { return b.exec(c, s, &p, Request{}) })
}

func TestEveryStepOfSandboxFails(t *testing.T) {
	b := newLab(t)
	o := usersOwn()
	o.Name, o.PidNS, o.Sysctls = "make namespaces of test", true, map[string]string{"net.ipv4.ip_forward": "1"}
	failEach(t, b.k, func() (*started, error) {
		c, err := b.l.Sandbox(t.Context(), SandboxRequest{ID: "pod", Options: o})
		if err != nil {
			return nil, err
		}

		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Close()

		s := &started{Started: c, t: t, out: r}
		t.Cleanup(s.kill)
		return s, nil
	})
}

// failEach runs start with step after step replaced by one that fails, and
// expects an error that names it.
func failEach(t *testing.T, k *runner, start func() (*started, error)) {
	t.Helper()
	const noSuchCall = 4000
	steps := 1
	for i := 0; i < steps; i++ {
		var broken plan.Step
		want := unix.ENOSYS
		k.change = func(p *plan.Plan) {
			steps = len(p.Steps)
			if slices.ContainsFunc(p.Steps[:i], func(s plan.Step) bool { return s.Call == unix.SYS_SECCOMP }) {
				want = unix.EPERM // the filter sees the call first
			}
			s := &p.Steps[i]
			s.Call, s.Ignore, s.Cond, s.Want = noSuchCall, nil, plan.Always, nil
			broken = *s
		}

		c, err := start()
		if err == nil {
			t.Fatalf("step %d %q failed and the process started (pid %d)", i, broken.Name, c.Pid)
		}

		var failed *spawn.StepError
		if !errors.As(err, &failed) {
			t.Fatalf("step %d %q: error %v names no step", i, broken.Name, err)
		}
		if failed.Index != i || failed.Step != broken.Name || failed.Err != want {
			t.Errorf("step %d %q failed, but the error is %v", i, broken.Name, err)
		}
	}
	if steps < 30 {
		t.Fatalf("plan has %d steps only", steps)
	}

	k.change = nil
	if _, err := start(); err != nil {
		t.Errorf("unbroken plan: %v", err)
	}
}
