package client

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// buildKeeper builds the keeper's real binary, which is smaller than the
// test's. A machine without a compiler has a prebuilt one.
func buildKeeper(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		cache, err := lab.Find()
		if err != nil {
			t.Fatal(err)
		}

		crisp, err := cache.Crisp()
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(filepath.Dir(crisp), binaryName)
	}

	path := filepath.Join(t.TempDir(), binaryName)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "crisp/cmd/crisp-keeper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build keeper: %v\n%s", err, out)
	}
	return path
}

func (p *program) fs(reg plan.Reg, fstype, target string, attr int64, options ...string) {
	r := plan.Arg{Kind: plan.ArgReg, Int: int64(reg)}
	p.do("open "+fstype, unix.SYS_FSOPEN, str(fstype), num(unix.FSOPEN_CLOEXEC)).Save = reg
	for i := 0; i < len(options); i += 2 {
		p.do("set "+options[i], unix.SYS_FSCONFIG, r, num(unix.FSCONFIG_SET_STRING), str(options[i]), str(options[i+1]), num(0))
	}
	p.do("create "+fstype, unix.SYS_FSCONFIG, r, num(unix.FSCONFIG_CMD_CREATE), num(0), num(0), num(0))
	p.do("make mount of "+fstype, unix.SYS_FSMOUNT, r, num(unix.FSMOUNT_CLOEXEC), num(attr)).Save = reg
	p.do("mount "+target, unix.SYS_MOVE_MOUNT, r, str(""), num(unix.AT_FDCWD), str(target), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// fullStart is a complete container start: namespaces, overlay, pseudo file
// systems, device nodes, masks, pivot_root.
func fullStart(t testing.TB, work string) *program {
	const (
		safe  = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
		cloex = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	)

	dirs := map[string]string{}
	for _, d := range []string{"lower", "up", "work", "root"} {
		dirs[d] = filepath.Join(work, d)
		if err := os.MkdirAll(dirs[d], 0o755); err != nil {
			t.Fatal(err)
		}
	}

	for _, d := range []string{"proc", "sys", "dev", "bin", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dirs["lower"], d), 0o755); err != nil {
			t.Fatal(err)
		}
	}

	p := newProgram("start container")
	p.Clone.Flags = cloex
	p.do("make mounts private", unix.SYS_MOUNT, str("none"), str("/"), num(0), num(unix.MS_REC|unix.MS_PRIVATE), num(0))
	p.fs(0, "overlay", dirs["root"], 0, "lowerdir", dirs["lower"], "upperdir", dirs["up"], "workdir", dirs["work"])
	p.do("chdir", unix.SYS_CHDIR, str(dirs["root"]))
	p.fs(1, "proc", "proc", safe)
	p.fs(2, "tmpfs", "dev", unix.MOUNT_ATTR_NOSUID, "mode", "755", "size", "65536k")

	for _, d := range []string{"dev/pts", "dev/shm", "dev/mqueue"} {
		p.do("mkdir "+d, unix.SYS_MKDIRAT, num(unix.AT_FDCWD), str(d), num(0o755))
	}
	for i, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		p.do("mknod "+d, unix.SYS_MKNODAT, num(unix.AT_FDCWD), str("dev/"+d), num(unix.S_IFCHR|0o666), num(int64(unix.Mkdev(1, uint32(3+i)))))
	}

	p.fs(3, "devpts", "dev/pts", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "ptmxmode", "0666", "mode", "0620", "gid", "5")
	p.fs(3, "tmpfs", "dev/shm", safe, "mode", "1777", "size", "65536k")
	p.fs(3, "mqueue", "dev/mqueue", safe)
	p.fs(3, "sysfs", "sys", safe|unix.MOUNT_ATTR_RDONLY)

	for _, m := range []string{"proc/keys", "proc/timer_list"} {
		p.do("mask "+m, unix.SYS_MOUNT, str("/dev/null"), str(m), num(0), num(unix.MS_BIND), num(0))
	}
	for _, m := range []string{"proc/bus", "proc/fs", "proc/irq", "proc/sys"} {
		p.do("bind "+m, unix.SYS_MOUNT, str(m), str(m), num(0), num(unix.MS_BIND|unix.MS_REC), num(0))
		p.do("protect "+m, unix.SYS_MOUNT, num(0), str(m), num(0), num(unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC), num(0))
	}

	p.do("pivot_root", unix.SYS_PIVOT_ROOT, str("."), str("."))
	p.do("detach old root", unix.SYS_UMOUNT2, str("."), num(unix.MNT_DETACH))
	p.do("chdir", unix.SYS_CHDIR, str("/"))
	p.do("set hostname", unix.SYS_SETHOSTNAME, str("pod"), num(3))
	p.do("no new privileges", unix.SYS_PRCTL, num(unix.PR_SET_NO_NEW_PRIVS), num(1), num(0), num(0), num(0))
	return p
}

// BenchmarkStart measures a complete start through the keeper, of a program
// that ends at once.
func BenchmarkStart(b *testing.B) {
	testkit.Root(b)
	dir := stateDir(b)
	c, err := Connect(testContext(b), dir, buildKeeper(b))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p := fullStart(b, b.TempDir())
	image := pauseImage(b)
	p.do("exec", unix.SYS_EXECVEAT, p.input("program"), str(""), strs("pause"), strs(), num(unix.AT_EMPTY_PATH))
	measureStarts(b, c, Request{Kind: Container, Plan: &p.Plan, Files: []*os.File{image}})
}

// measureStarts runs a request repeatedly, and kills what it started.
func measureStarts(b *testing.B, c *Client, r Request) {
	var times []time.Duration
	for i := 0; b.Loop(); i++ {
		r.ID = fmt.Sprintf("c%d", i)
		begin := time.Now()
		st, err := c.Start(b.Context(), r)
		if err != nil {
			b.Fatal(err)
		}

		times = append(times, time.Since(begin))
		if err := unix.PidfdSendSignal(int(st.PidFD.Fd()), unix.SIGKILL, nil, 0); err != nil {
			b.Fatal(err)
		}
		st.Close()
		awaitExit(b, c, r.ID)
		if err := c.Forget(b.Context(), r.ID); err != nil {
			b.Fatal(err)
		}
	}

	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "start-p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "start-p99-µs")
}

// residentKB returns the resident memory of a process.
func residentKB(t testing.TB, pid int) (kb int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kb, _ = strconv.Atoi(f[1])
		}
	}
	return kb
}

// TestDensity runs 100 containers that log, and looks at the keeper's memory.
func TestDensity(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	c, err := Connect(testContext(t), dir, buildKeeper(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	const count, limitKB = 100, 8 << 10
	var started []*Started
	for i := range count {
		sh := newShell(t, fmt.Sprintf("c%d", i), "echo begin; head -c 100000 /dev/zero; echo; exec sleep 60")
		started = append(started, sh.start(t, c))
	}

	var kb int
	// Memory used for the output is freed when that is idle.
	eventually(t, fmt.Sprintf("the keeper takes at most %d KB", limitKB), func() bool {
		kb = residentKB(t, c.keeper.Process.Pid)
		return kb <= limitKB
	})

	t.Logf("keeper with %d containers: %d KB", count, kb)
	for _, st := range started {
		if err := unix.PidfdSendSignal(int(st.PidFD.Fd()), unix.SIGKILL, nil, 0); err != nil {
			t.Error(err)
		}
	}

	for range started {
		x := <-c.Events()
		if err := c.Forget(testContext(t), x.ID); err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkExec measures what the keeper adds: a plan of one step.
func BenchmarkExec(b *testing.B) {
	testkit.Root(b)
	c, err := Connect(testContext(b), stateDir(b), buildKeeper(b))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p := newProgram("exec")
	image := pauseImage(b)
	p.do("exec", unix.SYS_EXECVEAT, p.input("program"), str(""), strs("pause"), strs(), num(unix.AT_EMPTY_PATH))
	measureStarts(b, c, Request{Kind: Exec, Plan: &p.Plan, Files: []*os.File{image}})
}

// BenchmarkFork starts the same program by os/exec.
func BenchmarkFork(b *testing.B) {
	image := pauseImage(b)
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), image.Fd())
	for b.Loop() {
		p, err := os.StartProcess(path, []string{"pause"}, &os.ProcAttr{})
		if err != nil {
			b.Fatal(err)
		}

		if err := p.Kill(); err != nil {
			b.Fatal(err)
		}
		if _, err := p.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOutput measures how fast a container's output gets into its log.
func BenchmarkOutput(b *testing.B) {
	testkit.Root(b)
	c, err := Connect(testContext(b), stateDir(b), buildKeeper(b))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()

	for name, length := range map[string]int{"short": 12, "usual": 80, "long": 4000} {
		b.Run(name, func(b *testing.B) {
			const size = 32 << 20
			file := filepath.Join(b.TempDir(), "output")
			line := strings.Repeat("x", length-1) + "\n"
			if err := os.WriteFile(file, []byte(strings.Repeat(line, size/length)), 0o600); err != nil {
				b.Fatal(err)
			}

			b.SetBytes(size)
			for i := 0; b.Loop(); i++ {
				id := fmt.Sprintf("%s%d", name, i)
				sh := newShell(b, id, "cat "+file)
				sh.start(b, c)
				awaitExit(b, c, id)
				forget(b, c, id)
				os.Remove(sh.log)
			}
		})
	}
}
