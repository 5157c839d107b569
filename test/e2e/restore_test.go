package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
)

// save writes a checkpoint of a pod's containers into a new directory.
func (p *pod) save(t *testing.T, containers ...*container) string {
	t.Helper()
	r := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: t.TempDir()}
	for _, c := range containers {
		r.ContainerIds = append(r.ContainerIds, c.id)
	}
	call(t, p.n.Runtime.CheckpointPod, r)
	return r.OutputPath
}

// again is the request that restores a pod under another UID, with logs of its own.
func (p *pod) again(t *testing.T, dir string, containers ...*container) *runtimeapi.RestorePodRequest {
	t.Helper()
	cfg := proto.Clone(p.cfg).(*runtimeapi.PodSandboxConfig)
	cfg.Metadata.Uid += "-again"
	cfg.LogDirectory += "-again"
	if cfg.Hostname != "" {
		cfg.Hostname += "-again"
	}
	if err := os.MkdirAll(cfg.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	r := &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: cfg}
	for _, c := range containers {
		r.ContainerConfigs = append(r.ContainerConfigs, c.cfg)
	}
	return r
}

// restore restores a pod, and returns its containers, which are not started.
func (n *node) restore(t *testing.T, r *runtimeapi.RestorePodRequest) (*pod, []*container) {
	t.Helper()
	out := call(t, n.Runtime.RestorePod, r)
	p := &pod{n, out.PodSandboxId, r.Config}
	t.Cleanup(func() { p.remove(t) })
	var list []*container
	for i, c := range out.RestoredContainers {
		if want := r.ContainerConfigs[i].Metadata.Name; c.Name != want {
			t.Fatalf("container %d is %q, want %q", i, c.Name, want)
		}
		list = append(list, &container{p, c.ContainerId, r.ContainerConfigs[i]})
	}
	return p, list
}

// countFrom is the first number that was logged, and checks that none is missing after it.
func (c *container) countFrom(t *testing.T) (first, last int) {
	t.Helper()
	lines := strings.Fields(c.logged(t))
	if len(lines) == 0 {
		return -1, -1
	}
	first, err := strconv.Atoi(lines[0])
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range lines {
		if line != strconv.Itoa(first+i) {
			t.Fatalf("line %d of the log is %q, and the first %d", i, line, first)
		}
	}
	return first, first + len(lines) - 1
}

// mountBelowProc gives the node's /proc a mount, as systemd mounts binfmt_misc.
func mountBelowProc(t *testing.T) {
	t.Helper()
	const dir = "/proc/sys/fs/binfmt_misc"
	if err := unix.Mount(t.Name(), dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestRestore restores containers of every kind, each in a new pod, where it goes on.
func TestRestore(t *testing.T) {
	n := withCRIU(t, "")
	mountBelowProc(t)
	n.ofEveryKind(t, func(t *testing.T, p *pod, kind change) {
		c := p.start(t, sh("{ echo kept >/tmp/file; } 2>/dev/null; "+counting), kind)
		eventually(t, "it counts", func() bool { return c.count(t) > 1 })
		dir := p.save(t, c)
		p.remove(t)
		until := c.count(t)

		q, restored := n.restore(t, p.again(t, dir, c))
		d := restored[0]
		if st := d.status(t); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
			t.Fatalf("the restored container is %v", st.State)
		}
		d.start(t)
		eventually(t, "it goes on", func() bool { _, last := d.countFrom(t); return last > until+2 })
		if first, _ := d.countFrom(t); first > until+1 {
			t.Errorf("it goes on with %d, and the last was %d", first, until)
		}
		if st := d.status(t); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the restored container is %v", st.State)
		}
		if q.cfg.Linux.SecurityContext.NamespaceOptions.Network == runtimeapi.NamespaceMode_POD {
			d.sh(t, "test $(hostname) = "+q.cfg.Hostname)
		}
		if !d.cfg.Linux.SecurityContext.ReadonlyRootfs {
			d.sh(t, "grep -q kept /tmp/file && test -O /tmp/file && test $(stat -c %u /tmp) = 0")
		}
		q.remove(t)
	})
}

// TestRestoreAsUsers restores in the ways that users have, and is refused what they get
// wrong.
func TestRestoreAsUsers(t *testing.T) {
	n := withCRIU(t, "")
	n.run(t, "archive", func(t *testing.T) { testRestoreArchive(t, n) })
	n.run(t, "image", func(t *testing.T) { testRestoreImage(t, n) })
	n.run(t, "refusals", func(t *testing.T) { testRestoreRefusals(t, n) })
	n.run(t, "AppArmor", func(t *testing.T) { testRestoreConfined(t, n) })
	// The last one, as it restarts the daemon, which opens some files just once.
	n.run(t, "containers together", func(t *testing.T) { testRestoreTogether(t, n) })
}

// testRestoreArchive creates a container of an archive that it names as its image.
func testRestoreArchive(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.start(t, sh("echo new >/etc/made; rm /etc/group; "+counting))
	eventually(t, "it counts", func() bool { return c.count(t) > 1 })
	file := filepath.Join(t.TempDir(), "a.tar")
	call(t, n.Runtime.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: file})
	until := c.count(t)

	d := p.start(t, named("again"), image(file))
	eventually(t, "it goes on", func() bool { _, last := d.countFrom(t); return last > until })
	c.goesOn(t) // the first one, too
	d.sh(t, "test $(cat /etc/made) = new && ! test -e /etc/group")
	if was, is := c.status(t), d.status(t); is.ImageId != was.ImageId || is.ImageId == "" {
		t.Errorf("its image is %q, was %q", is.ImageId, was.ImageId)
	}
	if left, err := os.ReadDir(n.path("root", "checkpoints")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	eventually(t, "its checkpoint is removed", func() bool {
		left, err := filepath.Glob(n.path("root", "pods", "*", d.id, "checkpoint"))
		return err == nil && len(left) == 0
	})

	// It ends, and is ended, like any other.
	call(t, n.Runtime.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: d.id})
	if st := d.status(t); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("after its stop: %v, exit code %d", st.State, st.ExitCode)
	}
	p.remove(t)
}

// testRestoreTogether restores two containers, and has one of them end by itself.
func testRestoreTogether(t *testing.T, n *node) {
	p := n.pod(t)
	dir := t.TempDir()
	a := p.start(t, sh(counting), named("a"))
	b := p.start(t, sh("while ! test -e /volume/stop; do sleep 0.05; done; exit 9"), named("b"), mount(dir, "/volume"))
	eventually(t, "it counts", func() bool { return a.count(t) > 1 })
	saved := p.save(t, a, b)
	p.remove(t)

	q, restored := n.restore(t, p.again(t, saved, b, a)) // in any order
	for _, c := range restored {
		c.start(t)
	}
	if err := os.WriteFile(filepath.Join(dir, "stop"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if st := restored[0].wait(t); st.ExitCode != 9 || st.Reason != "Error" {
		t.Errorf("it ended with %d, %s", st.ExitCode, st.Reason)
	}
	before := restored[1].status(t)
	eventually(t, "the other goes on", func() bool { _, last := restored[1].countFrom(t); return last > 10 })

	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := restored[1].status(t); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.StartedAt != before.StartedAt {
		t.Errorf("after a restart of the daemon it is %v", st.State)
	}
	_, last := restored[1].countFrom(t)
	eventually(t, "it goes on", func() bool { _, now := restored[1].countFrom(t); return now > last })
	q.remove(t)
}

func testRestoreRefusals(t *testing.T, n *node) {
	p := n.pod(t)
	c := p.start(t, sh(counting))
	saved := p.save(t, c)
	p.remove(t)
	call(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: nginx}})
	for name, test := range map[string]struct {
		change func(*runtimeapi.RestorePodRequest)
		code   codes.Code
		says   string
	}{
		"no such directory": {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath += "/none" }, codes.InvalidArgument, "none"},
		"no checkpoint":     {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = t.TempDir() }, codes.InvalidArgument, "pod.dump"},
		"relative":          {func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = "here" }, codes.InvalidArgument, "absolute"},
		"unknown option":    {func(r *runtimeapi.RestorePodRequest) { r.Options = map[string]string{"fast": "yes"} }, codes.InvalidArgument, "fast"},
		"unknown handler":   {func(r *runtimeapi.RestorePodRequest) { r.RuntimeHandler = "kata" }, codes.InvalidArgument, "kata"},
		"no container":      {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = nil }, codes.InvalidArgument, "container"},
		"twice": {func(r *runtimeapi.RestorePodRequest) {
			r.ContainerConfigs = append(r.ContainerConfigs, r.ContainerConfigs[0])
		}, codes.InvalidArgument, "twice"},
		"another name":    {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[0].Metadata.Name = "other" }, codes.InvalidArgument, "other"},
		"another command": {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[0].Command[0] = "ash" }, codes.InvalidArgument, "command"},
		"another image":   {func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[0].Image.Image = nginx }, codes.InvalidArgument, "image"},
		"changed": {func(r *runtimeapi.RestorePodRequest) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(saved)); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(filepath.Join(dir, "container-0.tar"), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte("X"), 4096); err != nil {
				t.Fatal(err)
			}
			r.CheckpointPath = dir
		}, codes.InvalidArgument, ""},
		"not signed": {func(r *runtimeapi.RestorePodRequest) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(saved)); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(dir, "crisp.manifest")); err != nil {
				t.Fatal(err)
			}
			r.CheckpointPath = dir
		}, codes.PermissionDenied, "signed"},
	} {
		r := proto.Clone(p.again(t, saved, c)).(*runtimeapi.RestorePodRequest)
		test.change(r)
		_, err := try(t, n.Runtime.RestorePod, r)
		if wantCode(t, err, test.code, test.says); t.Failed() {
			t.Fatal(name)
		}
	}

	_, err := n.Runtime.RestorePod(context.WithoutCancel(t.Context()), p.again(t, saved, c))
	wantCode(t, err, codes.InvalidArgument, "deadline")
	if left := call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items; len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	// A start that the checkpoint does not fit, in either way.
	with := n.pod(t)
	e := with.start(t, sh(counting), mount(t.TempDir(), "/less"))
	savedWith := with.save(t, e)
	with.remove(t)
	for at, test := range map[string]struct {
		dir    string
		mounts []*runtimeapi.Mount
	}{
		"/more": {saved, []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/more"}}},
		"/less": {savedWith, nil},
	} {
		r := p.again(t, test.dir, c)
		r.ContainerConfigs = []*runtimeapi.ContainerConfig{proto.Clone(c.cfg).(*runtimeapi.ContainerConfig)}
		r.ContainerConfigs[0].Mounts = test.mounts
		q, restored := n.restore(t, r)
		_, err = try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: restored[0].id})
		wantCode(t, err, codes.FailedPrecondition, at)
		if st := restored[0].status(t); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" {
			t.Errorf("it is %v, %s", st.State, st.Reason)
		}
		q.remove(t)
	}
}

// testRestoreImage makes an image of a checkpoint, and a container of it.
func testRestoreImage(t *testing.T, n *node) {
	p := n.pod(t, podNamed("saved"))
	c := p.start(t, sh(counting), named("app"))
	eventually(t, "it counts", func() bool { return c.count(t) > 1 })
	const name = "registry.example/saved:1"
	if out := n.crisp(t, "checkpoint", "saved/app", "--image", name); out != name+"\n" {
		t.Errorf("it printed %q", out)
	}
	until := c.count(t)

	d := p.start(t, named("again"), image(name))
	eventually(t, "it goes on", func() bool { _, last := d.countFrom(t); return last > until })
	if was, is := c.status(t), d.status(t); is.ImageId != was.ImageId || is.ImageId == "" {
		t.Errorf("its image is %q, was %q", is.ImageId, was.ImageId)
	}
	n.refused(t, 1, "is a pod", "checkpoint", "saved", "--image", name)
	call(t, n.Images.RemoveImage, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	p.remove(t)
}

// testRestoreConfined restores a container with the default profile, and with another one
// than it had, or none: that of the request confines its processes. One that had none is
// refused one.
func testRestoreConfined(t *testing.T, n *node) {
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		testkit.Skip(t, "apparmor", err.Error())
	}
	const other = "crisp-e2e-restored"
	profile := []byte("profile " + other + " flags=(attach_disconnected,mediate_deleted) { file, signal, capability, deny /etc/group r, }")
	loadProfile(t, profile, "--replace")
	defer loadProfile(t, profile, "--remove")
	localhost := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: other}
	}
	unconfined := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	}
	noNewPrivileges := func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.NoNewPrivs = true }

	reads := sh("while true; do read x </etc/group && echo read; sleep 0.1; done 2>&1")
	p := n.pod(t)
	c := p.start(t, reads, noNewPrivileges)
	eventually(t, "it reads", func() bool { return strings.Contains(c.logged(t), "read\n") })
	file := filepath.Join(t.TempDir(), "a.tar")
	call(t, n.Runtime.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: c.id, Location: file})

	for name, test := range map[string]struct {
		as    change
		label string
		says  string
	}{
		"default": {func(*runtimeapi.ContainerConfig) {}, "crisp-default (enforce)", "read\n"},
		"another": {localhost, other + " (enforce)", "Permission denied"},
		"none":    {unconfined, "unconfined", "read\n"},
	} {
		d := p.start(t, named(name), image(file), reads, noNewPrivileges, test.as)
		if got := d.profile(t); got != test.label {
			t.Errorf("%s: its profile is %q, want %q", name, got, test.label)
		}
		eventually(t, name+": it goes on", func() bool { return strings.Contains(d.logged(t), test.says) })
		if name == "another" && strings.Contains(d.logged(t), "read\n") {
			t.Errorf("%s: it still reads", name)
		}
		d.remove(t)
	}

	free := p.start(t, reads, named("free"), unconfined)
	if got := free.profile(t); got != "unconfined" {
		t.Fatalf("its profile is %q", got)
	}
	call(t, n.Runtime.CheckpointContainer, &runtimeapi.CheckpointContainerRequest{ContainerId: free.id, Location: file + "2"})
	d := p.create(t, named("bound"), image(file+"2"), reads)
	_, err := try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: d.id})
	wantCode(t, err, codes.PermissionDenied, "label")
	p.remove(t)
}

// profile is the AppArmor profile of a container's first process.
func (c *container) profile(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/apparmor/current", c.pid(t)))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// loadProfile gives a profile to AppArmor's parser.
func loadProfile(t *testing.T, profile []byte, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "apparmor_parser", args...)
	cmd.Stdin = bytes.NewReader(profile)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apparmor_parser %q: %v: %s", args, err, out)
	}
}
