package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crisp/runtime/cgroup"
	"crisp/runtime/host"
	"crisp/runtime/keeper/client"
	"crisp/runtime/plan"
	"crisp/runtime/spawn"
	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// runner is a keeper inside the test: it runs plans as children of the test.
type runner struct {
	// change, if set, may alter a plan before it runs.
	change func(*plan.Plan)
	// gate, if set, is called at the first gate of a plan whose request has none.
	gate func(int) error
	// asked, if set, sees a process that waits for a hook.
	asked func(client.Waiting)
}

func (k runner) Start(ctx context.Context, r client.Request) (_ *client.Started, err error) {
	if k.change != nil {
		k.change(r.Plan)
	}
	decoded, err := plan.Decode(r.Plan.Encode())
	if err != nil {
		return nil, err
	}

	fds := make([]int, len(r.Files))
	for i, f := range r.Files {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return nil, err
		}
	}

	child, err := spawn.Start(decoded, fds, spawn.Options{})
	if err != nil {
		return nil, err
	}

	if r.Gate == nil {
		r.Gate = k.gate
	}
	run := &running{k: k, ctx: ctx, r: r, plan: decoded, child: child, pids: []int{child.Pid}, s: &client.Started{StartedAt: time.Now()}}
	defer child.Close()
	defer context.AfterFunc(ctx, child.Abort)()

	if err := run.follow(); err != nil {
		run.end()
		return nil, err
	}

	if r.Hold && !r.Pause {
		run.end()
		return run.s, nil
	}

	for _, pid := range run.pids[:len(run.pids)-1] {
		reap(pid)
	}
	if len(run.pids) > 1 {
		unix.Close(child.PidFD)
		fd, err := unix.PidfdOpen(run.pids[len(run.pids)-1], 0)
		if err != nil {
			return nil, err
		}
		child.PidFD = fd
	}

	run.s.Pid, run.s.PidFD = run.pids[len(run.pids)-1], os.NewFile(uintptr(child.PidFD), "pidfd")
	return run.s, nil
}

type running struct {
	k     runner
	ctx   context.Context
	plan  *plan.Plan
	r     client.Request
	child *spawn.Child
	pids  []int
	gates int
	s     *client.Started
}

func (run *running) follow() error {
	if err := run.child.WriteIDMaps(); err != nil {
		return err
	}
	for {
		ev, err := run.child.Next()
		if err != nil {
			return err
		}

		switch ev.Kind {
		case spawn.Forked:
			run.pids = append(run.pids, ev.Pid)
		case spawn.Passed:
			run.s.Terminal = os.NewFile(uintptr(ev.FD), "terminal")
		case spawn.Executed:
			return nil
		case spawn.Ended:
			return errors.New("plan ended")
		case spawn.Waiting:
			run.gates++
			done, err := run.gate(ev.Step)
			if err != nil && !run.plan.Steps[ev.Step].Asks() {
				// The child may have failed meanwhile.
				var failed *spawn.StepError
				if _, why := run.child.Next(); errors.As(why, &failed) {
					return why
				}
			}
			if done || err != nil {
				return err
			}

			// A child that has exited reported why.
			_ = run.child.Release()
		}
	}
}

func (run *running) gate(step int) (done bool, err error) {
	pid := run.pids[len(run.pids)-1]
	if run.plan.Steps[step].Asks() {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return false, err
		}
		pidfd := os.NewFile(uintptr(fd), "pidfd")
		defer pidfd.Close()
		w := client.Waiting{Step: step, Pid: pid, PidFD: pidfd}
		if run.k.asked != nil {
			run.k.asked(w)
		}
		return false, run.r.Ask(run.ctx, w)
	}
	if run.gates == 1 && run.r.Gate != nil {
		if err := run.r.Gate(pid); err != nil {
			return false, err
		}
	}
	if !run.r.Hold || !strings.HasPrefix(run.r.Plan.Steps[step].Name, "let the keeper hold") {
		return false, nil
	}

	run.s.Namespaces = map[string]*os.File{}
	for _, name := range []string{"user", "net", "ipc", "uts", "mnt", "pid"} {
		path := fmt.Sprintf("/proc/%d/ns/%s", pid, name)
		theirs, err1 := os.Readlink(path)
		ours, err2 := os.Readlink("/proc/self/ns/" + name)
		if err := errors.Join(err1, err2); err != nil {
			return false, err
		}

		if theirs == ours {
			continue
		}
		if run.s.Namespaces[name], err = os.Open(path); err != nil {
			return false, err
		}
	}

	return !run.r.Pause, nil
}

func (run *running) end() {
	run.child.Abort()
	for _, pid := range run.pids {
		_ = unix.Kill(pid, unix.SIGKILL)
		reap(pid)
	}
	unix.Close(run.child.PidFD)
}

func reap(pid int) unix.WaitStatus {
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			return ws
		}
	}
}

// lab is the environment in which a test starts containers.
type lab struct {
	t testing.TB
	l *Launcher
	k *runner
	// pod are the namespaces of the current pod.
	pod Held
	// upper is the upper directory of the next container.
	n int
}

var facts = sync.OnceValue(host.Probe)

// shown are the cgroup hierarchies that containers see. Containers of most
// tests stay in the test's cgroups.
var shown = sync.OnceValues(func() ([]plan.Hierarchy, error) {
	// The library keeps a descriptor from its first read on.
	_, _ = cgroups.ReadFile(cgroupRoot, "cgroup.controllers")
	n, err := cgroup.New(cgroup.Cgroupfs, "/crisp-launch-test")
	if err != nil {
		return nil, err
	}
	defer n.Close()
	return n.Hierarchies(), nil
})

func newLab(t testing.TB) *lab {
	testkit.Root(t)
	if _, err := shown(); err != nil {
		t.Fatal(err)
	}
	testkit.Leaks(t)
	k := &runner{}
	lab := &lab{t: t, k: k, l: New(k, facts()), pod: Held{}}
	t.Cleanup(func() { lab.l.Close() })
	return lab
}

// newSharing is a lab with a pod whose containers can share its PID namespace,
// and which has a user namespace or none.
func newSharing(t testing.TB, userns bool) *lab {
	t.Helper()
	pod := usual()
	if userns {
		pod = usersOwn()
	}
	pod.PidNS = true
	b := newLab(t)
	b.sandbox(pod)
	return b
}

// with is the lab for a subtest.
func (b *lab) with(t testing.TB) *lab {
	sub := *b
	sub.t = t
	return &sub
}

// sandbox makes the lab's pod.
func (b *lab) sandbox(o plan.SandboxOptions) *client.Started {
	b.t.Helper()
	if o.Name == "" {
		o.Name = "make namespaces of test"
	}

	s, err := b.l.Sandbox(b.t.Context(), SandboxRequest{ID: "pod", Options: o})
	if err != nil {
		b.t.Fatal(err)
	}

	b.pod = Held{}
	for name, f := range s.Namespaces {
		b.pod["ns/"+name] = f
	}
	b.t.Cleanup(func() {
		if s.PidFD != nil {
			_ = unix.Kill(s.Pid, unix.SIGKILL)
			reap(s.Pid)
		}
		s.Close()
	})

	return s
}

// usual is a pod with its own namespaces.
func usual() plan.SandboxOptions {
	return plan.SandboxOptions{Hostname: "pod", NewNet: true, NewIPC: true, NewUTS: true}
}

// lower is a root file system with busybox and nothing else.
var lower = sync.OnceValues(func() (string, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "crisp-launch-rootfs-")
	if err != nil {
		return "", err
	}
	copyFile := func(from, to string) error {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o755)
	}
	for _, sub := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "data"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "root"), 0o700); err != nil {
		return "", err
	}
	if err := copyFile(busybox, filepath.Join(dir, "bin/busybox")); err != nil {
		return "", err
	}
	libs, err := exec.Command("ldd", busybox).Output()
	if err == nil {
		for _, word := range strings.Fields(string(libs)) {
			if strings.HasPrefix(word, "/") {
				if err := copyFile(word, filepath.Join(dir, word)); err != nil {
					return "", err
				}
			}
		}
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return "", err
	}
	for _, a := range strings.Fields(string(applets)) {
		_ = os.Symlink("busybox", filepath.Join(dir, "bin", a)) // busybox itself is there
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	os.Exit(testkit.Main(m, func() {
		if dir, err := lower(); err == nil {
			os.RemoveAll(dir)
		}
	}))
}

// nameless returns a path of a directory without its name, valid until the test ends.
func (b *lab) nameless(dir string) string {
	b.t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { f.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}

// rootfs creates a detached overlay mount; change may alter its upper directory before.
func (b *lab) rootfs(change func(upper string)) *os.File {
	b.t.Helper()
	low, err := lower()
	if err != nil {
		testkit.Skip(b.t, "busybox", err.Error())
	}

	b.n++
	dir := filepath.Join(b.t.TempDir(), strconv.Itoa(b.n))
	uid := int(plan.HostID(b.userMap(), 0))
	for _, sub := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			b.t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, sub), uid, uid); err != nil {
			b.t.Fatal(err)
		}
	}

	if change != nil {
		change(filepath.Join(dir, "upper"))
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		b.t.Fatal(err)
	}
	defer unix.Close(fs)

	lowerPath := low
	if ns := b.pod["ns/user"]; ns != nil {
		in := b.l.inputs(Held{}, nil)
		f, err := openMount(&plan.Input{Kind: plan.InputMount, Path: filepath.Dir(low), Propagation: unix.MS_PRIVATE})
		if err != nil {
			b.t.Fatal(err)
		}
		defer f.Close()

		if err := in.mapIDs(b.t.Context(), &plan.Input{UIDMap: planMap(b.userMap()), GIDMap: planMap(b.userMap())}, f); err != nil {
			b.t.Fatal(err)
		}

		// Before Linux 6.15 a layer has to be attached somewhere.
		at := filepath.Join(dir, "lower")
		if err := os.Mkdir(at, 0o755); err != nil {
			b.t.Fatal(err)
		}

		if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			b.t.Fatal(err)
		}
		defer unix.Unmount(at, unix.MNT_DETACH)
		lowerPath = filepath.Join(at, filepath.Base(low))
	}

	// Before Linux 6.5 an option may not contain the commas of a test's name.
	for _, kv := range [][2]string{
		{"lowerdir", b.nameless(lowerPath)}, {"upperdir", b.nameless(dir) + "/upper"}, {"workdir", b.nameless(dir) + "/work"}, {"metacopy", "off"},
	} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			b.t.Fatalf("overlay %s: %v", kv[0], err)
		}
	}

	if err := unix.FsconfigCreate(fs); err != nil {
		b.t.Fatalf("overlay: %v", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		b.t.Fatalf("overlay: %v", err)
	}

	f := os.NewFile(uintptr(fd), "rootfs")
	b.t.Cleanup(func() { f.Close() })
	return f
}

func (b *lab) userMap() []specs.LinuxIDMapping {
	if b.pod["ns/user"] == nil {
		return nil
	}
	return podMap
}

// podMap is the ID mapping of the lab's user namespaces.
var podMap = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}

// usersOwn is a pod with a user namespace.
func usersOwn() plan.SandboxOptions {
	o := usual()
	o.NewUser, o.UIDMap, o.GIDMap = true, planMap(podMap), planMap(podMap)
	return o
}

func planMap(list []specs.LinuxIDMapping) []specs.LinuxIDMapping {
	var maps []specs.LinuxIDMapping
	for _, m := range list {
		maps = append(maps, specs.LinuxIDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Size})
	}
	return maps
}

var defaultMounts = []specs.Mount{
	{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
	{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
	{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
	{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	{Destination: "/dev/shm", Type: "shm", Source: "pod", Options: []string{"nosuid", "noexec", "nodev"}},
	{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
}

var (
	defaultMasks = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	defaultCaps     = []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
)

// spec is the spec of an ordinary container in the lab's pod that runs a script.
func (b *lab) spec(script string) *specs.Spec {
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin", "HOME=/"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps},
		},
		Mounts: slices.Clone(defaultMounts),
		Linux: &specs.Linux{
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths: defaultMasks, ReadonlyPaths: defaultReadonly,
		},
	}

	for _, ns := range []struct {
		t    specs.LinuxNamespaceType
		name string
	}{{specs.UserNamespace, "ns/user"}, {specs.NetworkNamespace, "ns/net"}, {specs.IPCNamespace, "ns/ipc"}, {specs.UTSNamespace, "ns/uts"}} {
		if b.pod[ns.name] != nil {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: ns.t, Path: ns.name})
		}
	}

	s.Linux.UIDMappings, s.Linux.GIDMappings = b.userMap(), b.userMap()
	return s
}

// setNamespace replaces a namespace of a spec; without a path it is left out.
func setNamespace(s *specs.Spec, t specs.LinuxNamespaceType, path ...string) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
	for _, p := range path {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: p})
	}
}

// started is a container or process under test.
type started struct {
	*client.Started
	t   testing.TB
	out *os.File
	buf bytes.Buffer
}

// start starts a container in the pod; h may add to what is held.
func (b *lab) start(s *specs.Spec, h Held, r Request) (*started, error) {
	b.t.Helper()
	return b.launch(b.inPod(s, h, r), b.l.Container)
}

// inPod completes a request for a container in the pod.
func (b *lab) inPod(s *specs.Spec, h Held, r Request) Request {
	b.t.Helper()
	r.Spec, r.InPod, r.Held = s, true, Held{}
	maps.Copy(r.Held, b.pod)
	maps.Copy(r.Held, h)
	if r.Held["rootfs"] == nil {
		r.Held["rootfs"] = b.rootfs(nil)
	}

	if r.Name == "" {
		r.Name = "start container test"
	}
	b.show(&r)
	return r
}

// show has a container see the cgroup hierarchies, unless the test knows better.
func (b *lab) show(r *Request) {
	if r.Hierarchies == nil && !b.l.unified {
		r.Hierarchies, _ = shown() // newLab has seen that it goes well
	}
}

// exec runs one more process in a container.
func (b *lab) exec(c *started, s *specs.Spec, p *specs.Process, r Request) (*started, error) {
	b.t.Helper()
	r.Spec, r.Process = s, p
	if r.Name == "" {
		r.Name = "exec in container test"
	}

	held := Held{"pidfd": c.PidFD}
	maps.Copy(held, r.Held)
	r.Held = held
	return b.launch(r, b.l.Exec)
}

// launch runs what is asked for with a pipe for its output.
func (b *lab) launch(request Request, start func(context.Context, Request) (*client.Started, error)) (*started, error) {
	b.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}

	process := request.Process
	if process == nil {
		process = request.Spec.Process
	}
	held := Held{}
	maps.Copy(held, request.Held)
	if process == nil || !process.Terminal {
		held["stdout"], held["stderr"] = w, w
	}

	request.ID, request.Held = "test", held
	c, err := start(b.t.Context(), request)
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}

	s := &started{Started: c, t: b.t, out: r}
	b.t.Cleanup(s.kill)
	return s, nil
}

// wait returns the output and the exit code.
func (s *started) wait() (string, int) {
	s.t.Helper()
	if err := s.out.SetReadDeadline(time.Now().Add(pace.Scale(30 * time.Second))); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.Copy(&s.buf, s.out); err != nil {
		s.t.Fatalf("read output: %v (so far %q)", err, s.buf.String())
	}
	ws := reap(s.Pid)
	s.Pid = 0
	if ws.Signaled() {
		return s.buf.String(), 128 + int(ws.Signal())
	}
	return s.buf.String(), ws.ExitStatus()
}

// until returns the output up to a mark, which a process that keeps running prints.
func (s *started) until(mark string) string {
	s.t.Helper()
	if err := s.out.SetReadDeadline(time.Now().Add(pace.Scale(30 * time.Second))); err != nil {
		s.t.Fatal(err)
	}
	chunk := make([]byte, 4096)
	for !strings.HasSuffix(s.buf.String(), mark) {
		n, err := s.out.Read(chunk)
		s.buf.Write(chunk[:n])
		if err != nil {
			s.t.Fatalf("wait for %q: %v (so far %q)", mark, err, s.buf.String())
		}
	}
	return s.buf.String()
}

func (s *started) kill() {
	if s.Pid != 0 {
		_ = unix.PidfdSendSignal(int(s.PidFD.Fd()), unix.SIGKILL, nil, 0)
		reap(s.Pid)
		s.Pid = 0
	}
	s.out.Close()
	s.Close()
}

// run starts a container and returns what it printed, without the last line's end.
func (b *lab) run(s *specs.Spec) string {
	b.t.Helper()
	return b.runWith(s, nil)
}

func (b *lab) runWith(s *specs.Spec, h Held) string {
	b.t.Helper()
	c, err := b.start(s, h, Request{})
	if err != nil {
		b.t.Fatal(err)
	}
	out, code := c.wait()
	if code != 0 {
		b.t.Fatalf("exit code %d: %s", code, out)
	}
	return strings.TrimSuffix(out, "\n")
}

// want checks a container's output.
func (b *lab) want(s *specs.Spec, want string) {
	b.t.Helper()
	if got := b.run(s); got != want {
		b.t.Errorf("container printed\n%s\nwant\n%s", got, want)
	}
}

func signalKill(s *client.Started) error {
	return unix.PidfdSendSignal(int(s.PidFD.Fd()), unix.SIGKILL, nil, 0)
}
