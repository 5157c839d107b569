package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// TestHostile has containers misuse everything that they control: names,
// directories, links, output.
func TestHostile(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "interface name", func(t *testing.T) { testInterfaceName(t, n, nil) })
	n.run(t, "interface name in a user namespace", func(t *testing.T) { testInterfaceName(t, n, userNamespace(200000)) })
	n.run(t, "deep directories", func(t *testing.T) { testDeepDirectories(t, n) })
	n.run(t, "layer in use", func(t *testing.T) { testLayerInUse(t, n) })
	n.run(t, "CVE-2022-31030", func(t *testing.T) { testEndlessOutput(t, n) })
	n.run(t, "CVE-2022-23471 and CVE-2025-64329", func(t *testing.T) { testAbortedSessions(t, n) })
	n.run(t, "CVE-2026-53495", func(t *testing.T) { testLeftBehind(t, n) })
	n.run(t, "CVE-2024-5154", func(t *testing.T) { testLinkedEtc(t, n) })
	n.run(t, "CVE-2021-41103", func(t *testing.T) { testNothingForOthers(t, n) })
	n.run(t, "CVE-2023-6476 and CVE-2024-3154", func(t *testing.T) { testAnnotations(t, n) })
}

// userNamespace gives a pod one that starts at a user of the host.
func userNamespace(first uint32) func(*runtimeapi.PodSandboxConfig) {
	mapping := []*runtimeapi.IDMapping{{HostId: first, ContainerId: 0, Length: 65536}}
	return func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
			Mode: runtimeapi.NamespaceMode_POD, Uids: mapping, Gids: mapping,
		}
	}
}

// testInterfaceName gives an interface a name that no message can contain, and
// makes all calls that report it.
func testInterfaceName(t *testing.T, n *node, in func(*runtimeapi.PodSandboxConfig)) {
	good := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "good" })
	good.start(t)
	changes := []func(*runtimeapi.PodSandboxConfig){func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "bad" }}
	if in != nil {
		changes = append(changes, in)
	}

	bad := n.pod(t, changes...)
	c := bad.start(t, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	})

	c.sh(t, `ip link set eth0 down; ip link set eth0 name "$(printf 'e\377\033[2J')"`)
	const name = `e\xff\u001b[2J`

	stats := call(t, n.Runtime.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{}).Stats
	if len(stats) != 2 {
		t.Errorf("there are statistics of %d pods, want 2", len(stats))
	}

	one := call(t, n.Runtime.PodSandboxStats, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: bad.id}).Stats
	if got := one.GetLinux().GetNetwork().GetDefaultInterface().GetName(); got != name {
		t.Errorf("the interface is called %q, want %q", got, name)
	}

	if got := call(t, n.Runtime.ListPodSandboxMetrics, &runtimeapi.ListPodSandboxMetricsRequest{}).PodMetrics; len(got) != 2 {
		t.Errorf("there are metrics of %d pods, want 2", len(got))
	}
	streamed := receive(t, n.Runtime.StreamPodSandboxStats, &runtimeapi.StreamPodSandboxStatsRequest{},
		func(a *runtimeapi.StreamPodSandboxStatsResponse) []*runtimeapi.PodSandboxStats {
			return a.PodSandboxStats
		})

	if len(streamed) != 2 {
		t.Errorf("%d pods' statistics are streamed, want 2", len(streamed))
	}
	call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	call(t, n.Runtime.ListContainers, &runtimeapi.ListContainersRequest{})
	call(t, n.Runtime.ListContainerStats, &runtimeapi.ListContainerStatsRequest{})
	call(t, n.Images.ListImages, &runtimeapi.ListImagesRequest{})
	call(t, n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: bad.id, Verbose: true})
	call(t, n.Runtime.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	call(t, n.Runtime.Status, &runtimeapi.StatusRequest{Verbose: true})
}

// nest creates nested directories.
func nest(t *testing.T, dir string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { unix.Close(fd) }()

	for range depth {
		if err := unix.Mkdirat(fd, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
}

// testDeepDirectories nests directories deeper than the daemon may have descriptors,
// in the writable layer and in the container's part of the pod's directory.
func testDeepDirectories(t *testing.T, n *node) {
	const depth = 30_000
	p := n.pod(t)
	c := p.start(t)
	nest(t, fmt.Sprintf("/proc/%d/root", c.pid(t)), 2_000)

	volumes := n.path("root", "pods", p.id, c.id, "volumes", "0")
	if err := os.MkdirAll(volumes, 0o700); err != nil {
		t.Fatal(err)
	}

	nest(t, volumes, depth)
	limit := unix.Rlimit{Cur: 4096, Max: 4096}
	if err := unix.Prlimit(n.PID(), unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}

	eventually(t, "all directories are counted", func() bool {
		u := call(t, n.Runtime.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: c.id}).Stats.GetWritableLayer()
		return u.GetInodesUsed().GetValue() >= 2_000
	})

	p.remove(t)
	for _, path := range []string{n.path("root", "pods", p.id), n.path("root", "image", "containers", c.id)} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
}

// changed lists the lines that only one of two texts has.
func changed(before, after string) string {
	var b strings.Builder
	for _, side := range []struct{ mark, text, other string }{{"-", before, after}, {"+", after, before}} {
		for line := range strings.Lines(side.text) {
			if !strings.Contains("\n"+side.other, "\n"+line) {
				b.WriteString("\n" + side.mark + strings.TrimSpace(line))
			}
		}
	}
	return b.String()
}

// testLayerInUse removes a pod in a user namespace while a file of its image is
// held open, with which containerd once removed the image's layers through a
// mount that could not be unmounted (containerd#10704).
func testLayerInUse(t *testing.T, n *node) {
	digest := func() string {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "cd "+n.path("root", "image", "layers")+" && find . -printf '%p %m %U %G %s\\n' | sort && find . -type f -exec cat {} + | sha256sum").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}

	// Their records say so until the layers are on the disk, some time after the pull.
	eventually(t, "the layers are on the disk", func() bool {
		records, err := filepath.Glob(n.path("root", "image", "layers", "*", "layer.json"))
		if err != nil || len(records) == 0 {
			t.Fatalf("records of layers: %q, %v", records, err)
		}
		return !slices.ContainsFunc(records, func(path string) bool {
			text, err := os.ReadFile(path)
			return err != nil || strings.Contains(string(text), `"unsynced"`)
		})
	})
	before := digest()
	for _, in := range []func(*runtimeapi.PodSandboxConfig){userNamespace(400000), func(*runtimeapi.PodSandboxConfig) {}} {
		p := n.pod(t, in)
		c := p.start(t)
		root := fmt.Sprintf("/proc/%d/root", c.pid(t))
		var held []*os.File
		for _, name := range []string{"/bin/busybox", "/bin", "/"} {
			f, err := os.Open(root + name)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, f)
		}

		if err := unix.Kill(c.pid(t), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		p.remove(t)

		if after := digest(); after != before {
			t.Errorf("the layers of the image have changed: %s", changed(before, after))
		}
		for _, f := range held {
			f.Close()
		}
	}
}

// testEndlessOutput runs a command that never stops writing.
func testEndlessOutput(t *testing.T, n *node) {
	c := n.pod(t).start(t)
	for range 3 {
		c.exec(t, "head", "-c", "1000", "/dev/zero")
	}

	before := statusField(t, n.PID(), "VmRSS")
	stop := make(chan struct{})
	most := begin(func() int {
		most := 0
		for {
			select {
			case <-stop:
				return most
			case <-time.After(10 * time.Millisecond):
				most = max(most, statusField(t, n.PID(), "VmRSS"))
			}
		}
	})

	err := failure(t, n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"yes"}, Timeout: 3})
	close(stop)
	grown := (<-most - before) / 1024
	t.Logf("the daemon grew by %d MiB", grown)
	wantCode(t, err, codes.DeadlineExceeded)

	if grown >= 32 {
		t.Errorf("the daemon grew by %d MiB", grown)
	}
}

// testAbortedSessions starts sessions with a terminal that fail, and attaches
// to a container for a moment. Package stream does so 10,000 times.
func testAbortedSessions(t *testing.T, n *node) {
	c := n.pod(t).start(t, sh("while :; do echo x; sleep 0.01; done"), func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true })
	usual := n.inventory(t)
	o := remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard, Tty: true, TerminalSizeQueue: &sizes{{Width: 1, Height: 2}}}
	for range 300 {
		if err := dialer(dialSPDY).session(t, c.execURL(t, o, "/nope"), o); err == nil {
			t.Fatal("a command that does not exist ran")
		}
		u, err := url.Parse(c.attachURL(t, o))
		if err != nil {
			t.Fatal(err)
		}

		client, err := dialSPDY(&rest.Config{}, u)
		if err != nil {
			t.Fatal(err)
		}

		// The server waits half a minute for a client that disconnects before
		// it has opened its streams, so this one disconnects after the first
		// one.
		ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(callTime))
		attached := o
		attached.Stdout = onWrite(cancel)
		_ = client.StreamWithContext(ctx, attached) // it ends with its context
		cancel()
	}

	eventually(t, "there is no more than before", func() bool { return len(n.inventory(t)) <= len(usual) })
	time.Sleep(time.Second) // in which the server closes connections
	if got := n.goroutines(t); got > 60 {
		t.Errorf("the daemon has %d goroutines:\n%s", got, n.Log())
	}
}

// onWrite is called when something is written to it.
type onWrite func()

func (f onWrite) Write(p []byte) (int, error) {
	f()
	return len(p), nil
}

// testLeftBehind runs probes that leave a process with their output open, one
// that is silent and one that never stops writing.
func testLeftBehind(t *testing.T, n *node) {
	many := 10_000
	if testing.Short() {
		many = 200
	}

	// The first process reaps: this is not about zombies.
	c := n.pod(t).start(t, sh("while :; do sleep 1; done"))
	c.exec(t, "true")
	usual := n.inventory(t)
	began, slowest := time.Now(), time.Duration(0)
	for i := range many {
		script := "sleep 1d & echo done"
		if i%2 == 1 {
			script = "yes & echo done"
		}

		at := time.Now()
		r := call(t, n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", script}, Timeout: 5})
		slowest = max(slowest, time.Since(at))
		if !strings.Contains(string(r.Stdout), "done\n") {
			t.Fatalf("probe %d says %.20q", i, r.Stdout)
		}

		if i%20 == 19 {
			c.exec(t, "killall", "-9", "sleep", "yes")
		}
		if time.Since(began) > pace.Scale(40*time.Second) {
			t.Logf("%d probes of %d are enough", i, many)
			break
		}
	}

	c.exec(t, "killall", "-9", "sleep", "yes")
	t.Logf("the slowest probe took %v", slowest)
	if slowest > pace.Scale(5*time.Second) {
		t.Errorf("a probe with a time-out of 5s took %v", slowest)
	}

	eventually(t, "there is no more than before", func() bool { return len(n.inventory(t)) <= len(usual) })
	eventually(t, "the daemon has few goroutines", func() bool { return n.goroutines(t) <= 60 })
}

// testLinkedEtc runs containers whose /etc, or a mount target in it, is a link
// to the node's: in their image, or created before a start (CVE-2024-5154).
func testLinkedEtc(t *testing.T, n *node) {
	// The images' links point there.
	const canary = "/tmp/crisp-linked-etc"
	if err := os.Mkdir(canary, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(canary); err != nil {
			t.Error(err)
		}
	})

	for _, name := range []string{"hosts", "hostname", "resolv.conf", "mtab", "passwd"} {
		if err := os.WriteFile(filepath.Join(canary, name), []byte("canary"), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	check := func(t *testing.T, c *container) {
		_, err := try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id})
		t.Logf("start: %v", err)
		if err == nil {
			_, _ = try(t, n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", "echo spoilt > /etc/hosts; echo spoilt > /etc/mtab"}, Timeout: 5})
		}

		left, err := os.ReadDir(canary)
		if err != nil || len(left) != 5 {
			t.Errorf("the node's directory has %v, %v", left, err)
		}

		for _, f := range left {
			if got := slurp(filepath.Join(canary, f.Name())); got != "canary" {
				t.Errorf("the node's %s has %q", f.Name(), got)
			}
		}
		c.p.remove(t)
	}

	for _, tag := range []string{"root", "dots", "process"} {
		t.Run("image, "+tag, func(t *testing.T) {
			ref := "registry.k8s.io/e2e-test-images/linked-etc:" + tag
			n.pull(t, ref)
			check(t, n.pod(t).create(t, image(ref)))
		})
	}

	for name, spoil := range map[string]func(upper string) error{
		"directory": func(upper string) error { return os.Symlink(canary, upper+"/etc") },
		"root":      func(upper string) error { return os.Symlink("/", upper+"/etc") },
		"process":   func(upper string) error { return os.Symlink("/proc/1/root"+canary, upper+"/etc") },
		"files": func(upper string) error {
			err := os.Mkdir(upper+"/etc", 0o755)
			for _, name := range []string{"hosts", "hostname", "resolv.conf", "mtab"} {
				err = errors.Join(err, os.Symlink(filepath.Join(canary, name), filepath.Join(upper, "etc", name)))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := n.pod(t).create(t)
			upper := n.path("root", "image", "containers", c.id, "upper")
			if err := errors.Join(os.RemoveAll(upper+"/etc"), spoil(upper)); err != nil {
				t.Fatal(err)
			}
			check(t, c)
		})
	}
}

// testNothingForOthers walks the daemon's directories as an unprivileged user.
func testNothingForOthers(t *testing.T, n *node) {
	const first = 300000
	n.pod(t, userNamespace(first)).start(t)
	n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "plain" }).start(t)
	for _, top := range []string{n.path("root"), n.path("state")} {
		if info, err := os.Stat(top); err != nil || info.Mode().Perm()&^0o711 != 0 {
			t.Errorf("%s has mode %v, %v", top, info.Mode(), err)
		}
		// The user nobody, and root of a pod's user namespace.
		for _, uid := range []uint32{65534, first} {
			find := exec.CommandContext(t.Context(), "find", top, "-mindepth", "1")
			find.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			out, err := find.Output()
			var exit *exec.ExitError
			if len(out) > 0 || !errors.As(err, &exit) || !strings.Contains(string(exit.Stderr), "Permission denied") {
				t.Errorf("user %d finds in %s: %v, %.300s", uid, top, err, out)
			}

			// Known names give no access.
			for _, known := range []string{"image/layers", "image/containers", "pods", "keeper.sock", "admin.sock"} {
				stat := exec.CommandContext(t.Context(), "stat", filepath.Join(top, known))
				stat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
				if out, err := stat.CombinedOutput(); err == nil {
					t.Errorf("user %d can stat: %s", uid, out)
				}
			}
		}
	}
}

// control are annotations and labels that some runtime has interpreted, with an
// effect visible in a container. Package spec tests more of them.
var control = map[string]string{
	"io.kubernetes.cri-o.UnifiedCgroup.main":             "pids.max=7;memory.max=12345678",
	"io.kubernetes.cri-o.Devices":                        "/dev/kmsg:/dev/hostile:rwm",
	"io.kubernetes.cri-o.umask":                          "0123",
	"seccomp-profile.kubernetes.cri-o.io":                "unconfined",
	"org.systemd.property.ExecStartPre":                  "[('/bin/touch', ['touch', '/tmp/hostile'], false)]",
	"org.systemd.property.MemoryMax":                     "uint64 12345678",
	"run.oci.systemd.subgroup":                           "hostile",
	"run.oci.hooks.stderr":                               "/tmp/hostile",
	"containerd.io/restart.loguri":                       "binary:///bin/touch?id=/tmp/hostile",
	"container.seccomp.security.alpha.kubernetes.io/pod": "unconfined",
	"security.alpha.kubernetes.io/sysctls":               "kernel.shm_rmid_forced=1",
}

// testAnnotations gives a pod and its container annotations and labels that
// request what only fields of the request may, and compares the result with a
// pod that has none.
func testAnnotations(t *testing.T, n *node) {
	const look = `grep -e Seccomp -e Cap -e NoNewPrivs -e Groups /proc/self/status; umask; ulimit -a; ls /dev; cat /proc/mounts | cut -d, -f1 | sed 's/[0-9a-f]\{20,\}/ID/g'
cut -d: -f2 /proc/self/cgroup; cat /proc/self/uid_map /proc/self/attr/current 2>&1; for f in pids.max memory.max cpu.max; do cat /sys/fs/cgroup/$f /sys/fs/cgroup/*/$f 2>/dev/null; done; true`
	config := func(name string, extra map[string]string) *container {
		p := n.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name, c.Annotations, c.Labels = name, extra, extra })
		return p.start(t, func(c *runtimeapi.ContainerConfig) { c.Annotations, c.Labels = extra, extra })
	}

	plain, ordered := config("plain", nil), config("ordered", control)
	want, got := plain.sh(t, look), ordered.sh(t, look)
	if got != want {
		t.Errorf("annotations change what a container gets.\nwithout:\n%s\nwith:\n%s", want, got)
	}

	if !reflect.DeepEqual(plain.limits(t), ordered.limits(t)) {
		t.Errorf("annotations change limits from %v to %v", plain.limits(t), ordered.limits(t))
	}
	if _, err := os.Lstat("/tmp/hostile"); err == nil {
		t.Error("something was run or written on the node")
	}
}
