package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
)

// confined is the default label of a container.
var confined = regexp.MustCompile(`^system_u:system_r:container_t:(s0:c\d+,c\d+)$`)

// TestSELinux runs containers where SELinux enforces its policy.
func TestSELinux(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		testkit.Skip(t, "selinux", "it is not switched on")
	}

	// The machine has the module for other tests, but here the package must
	// load it.
	if out, err := exec.CommandContext(t.Context(), "semodule", "--priority=100", "--remove=crisp").CombinedOutput(); err != nil {
		t.Fatalf("semodule: %v: %s", err, out)
	}

	m := install(t)
	modules := func() string { return m.run("semodule", "--list-modules=full") }
	if list := modules(); !strings.Contains(list, "400 crisp ") {
		t.Errorf("the package has not loaded its module: %s", list)
	}

	must(m, m.images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}})
	for _, test := range []struct {
		name string
		do   func(t *testing.T, m *machine)
	}{
		{"domain", testDomain},
		{"labels", testLabels},
		{"volumes", testVolumes},
		{"the node's files", testNodeFiles},
		{"not confined", testNotConfined},
		{"what is asked for", testAskedFor},
		{"refused", testRefused},
		{"restart", testLabelsAfterRestart},
	} {
		t.Run(test.name, func(t *testing.T) {
			m.t = t
			test.do(t, m)
		})
	}

	m.t = t
	m.purge()
	if list := modules(); strings.Contains(list, " crisp ") {
		t.Errorf("the package has left its module: %s", list)
	}
}

// labelled is a pod in the machine's network.
type labelled struct {
	m   *machine
	id  string
	cfg *runtimeapi.PodSandboxConfig
	n   int
}

func podConfig(m *machine, name string, security *runtimeapi.LinuxSandboxSecurityContext) *runtimeapi.PodSandboxConfig {
	if security.NamespaceOptions == nil {
		security.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	}
	security.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "selinux", Uid: m.t.Name() + name},
		LogDirectory: m.t.TempDir(),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: security},
	}
}

// pod runs one until the test ends.
func (m *machine) pod(name string, security *runtimeapi.LinuxSandboxSecurityContext) *labelled {
	m.t.Helper()
	p := &labelled{m: m, cfg: podConfig(m, name, security)}
	p.id = must(m, m.runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: p.cfg}).PodSandboxId
	m.t.Cleanup(func() {
		must(m, m.runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		must(m, m.runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
	})
	return p
}

// create is the request for a container that sleeps.
func (p *labelled) create(security *runtimeapi.LinuxContainerSecurityContext, mounts ...*runtimeapi.Mount) *runtimeapi.CreateContainerRequest {
	p.n++
	if security == nil {
		security = &runtimeapi.LinuxContainerSecurityContext{}
	}
	security.NamespaceOptions = p.cfg.Linux.SecurityContext.NamespaceOptions
	return &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.cfg, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c" + strconv.Itoa(p.n)},
		Image:    &runtimeapi.ImageSpec{Image: busybox},
		Command:  []string{"sleep", "100000"},
		LogPath:  "log" + strconv.Itoa(p.n),
		Mounts:   mounts,
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: security},
	}}
}

func (p *labelled) container(security *runtimeapi.LinuxContainerSecurityContext, mounts ...*runtimeapi.Mount) *counter {
	p.m.t.Helper()
	c := &counter{m: p.m, pod: p.id}
	c.id = must(p.m, p.m.runtime.CreateContainer, p.create(security, mounts...)).ContainerId
	must(p.m, p.m.runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id})
	return c
}

// sh runs a command in a container and returns its output and exit code.
func (c *counter) sh(command string) (string, int32) {
	c.m.t.Helper()
	r := must(c.m, c.m.runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", command}})
	return strings.Trim(string(r.Stdout)+string(r.Stderr), "\n\x00"), r.ExitCode
}

func (c *counter) can(command string) {
	c.m.t.Helper()
	if said, code := c.sh(command); code != 0 {
		c.m.t.Errorf("%s: exit code %d: %s", command, code, said)
	}
}

func (c *counter) cannot(command string) {
	c.m.t.Helper()
	if said, code := c.sh(command); code == 0 || !strings.Contains(said, "ermission denied") {
		c.m.t.Errorf("%s: exit code %d, want it to be denied: %s", command, code, said)
	}
}

// label is that of the container's first process, which every command has too.
func (c *counter) label() string {
	c.m.t.Helper()
	first := processLabel(c.m.t, c.pid())
	if own, _ := c.sh("cat /proc/self/attr/current"); own != first {
		c.m.t.Errorf("the container's label is %q, that of a command in it %q", first, own)
	}
	return first
}

// level is that of a confined container.
func (c *counter) level() string {
	c.m.t.Helper()
	parts := confined.FindStringSubmatch(c.label())
	if parts == nil {
		c.m.t.Fatalf("the container's label is %q", c.label())
	}
	return parts[1]
}

func processLabel(t *testing.T, pid int) string {
	t.Helper()
	label, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/attr/current")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(string(label), "\n\x00")
}

func fileLabel(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Lgetxattr(path, "security.selinux", buf)
	if err != nil {
		t.Fatalf("label of %s: %v", path, err)
	}
	return strings.Trim(string(buf[:n]), "\x00")
}

func fileOf(level string) string { return "system_u:object_r:container_file_t:" + level }

func testDomain(t *testing.T, m *machine) {
	if mode, err := os.ReadFile("/sys/fs/selinux/enforce"); err != nil || string(mode) != "1" {
		t.Errorf("the policy is not enforced: %q, %v", mode, err)
	}
	c := m.pod("one", &runtimeapi.LinuxSandboxSecurityContext{}).container(nil)
	c.can("true")
	for _, unit := range []string{"crisp.service", "crisp-keeper.service"} {
		if got, want := processLabel(t, m.pid(unit)), "system_u:system_r:container_engine_t:s0"; got != want {
			t.Errorf("%s runs as %s, want %s", unit, got, want)
		}
	}
}

func testLabels(t *testing.T, m *machine) {
	one := m.pod("one", &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}})
	two := m.pod("two", &runtimeapi.LinuxSandboxSecurityContext{})
	a, b, other := one.container(nil), one.container(nil), two.container(nil)
	level := a.level()
	if b.level() != level || other.level() == level {
		t.Errorf("levels %s and %s in one pod, %s in another", level, b.level(), other.level())
	}

	if said, _ := a.sh("cat /proc/1/attr/current"); said != a.label() {
		t.Errorf("the pod's first process is %q", said)
	}
	mounts, _ := a.sh("cat /proc/self/mountinfo")
	for _, at := range []string{"/", "/dev", "/dev/pts", "/dev/shm"} {
		if !regexp.MustCompile(` / ` + regexp.QuoteMeta(at) + ` .*context="` + fileOf(level) + `"`).MatchString(mounts) {
			t.Errorf("the mount on %s has another label:\n%s", at, mounts)
		}
	}

	for _, name := range []string{"hosts", "resolv.conf", "hostname"} {
		if got := fileLabel(t, filepath.Join("/var/lib/crisp/pods", one.id, name)); got != fileOf(level) {
			t.Errorf("%s has label %s", name, got)
		}
	}

	a.can("cat /etc/hosts /etc/resolv.conf && touch /file /dev/shm/file && echo >/dev/null && mkfifo /dev/fifo && ls /dev/mqueue /sys /proc/self")
	b.can("test -e /dev/shm/file")
}

// testVolumes relabels a pod's volume, and checks that another pod has no
// access.
func testVolumes(t *testing.T, m *machine) {
	volume := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	for _, err := range []error{
		os.WriteFile(outside, []byte("outside"), 0o644), os.Symlink(outside, filepath.Join(volume, "link")),
		os.MkdirAll(filepath.Join(volume, "a/b"), 0o777), os.WriteFile(filepath.Join(volume, "a/b/secret"), []byte("secret"), 0o666),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}

	before := fileLabel(t, outside)
	mount := &runtimeapi.Mount{HostPath: volume, ContainerPath: "/data", SelinuxRelabel: true}
	one := m.pod("one", &runtimeapi.LinuxSandboxSecurityContext{})
	a := one.container(nil, mount)
	a.can(`test "$(cat /data/a/b/secret)" = secret && echo more >>/data/a/b/secret && touch /data/new`)

	want := fileOf(a.level())
	for _, name := range []string{"", "a", "a/b", "a/b/secret", "link", "new"} {
		if got := fileLabel(t, filepath.Join(volume, name)); got != want {
			t.Errorf("%s in the volume has label %s, want %s", name, got, want)
		}
	}

	if got := fileLabel(t, outside); got != before {
		t.Errorf("a link had a file outside labelled %s", got)
	}
	asIs := &runtimeapi.Mount{HostPath: volume, ContainerPath: "/data"}
	one.container(nil, asIs).can("cat /data/a/b/secret")

	thief := m.pod("two", &runtimeapi.LinuxSandboxSecurityContext{}).container(nil, asIs)
	thief.cannot("cat /data/a/b/secret")
	thief.cannot("touch /data/planted")
	thief.cannot("ls /data")
}

// testNodeFiles mounts files of the node, which keep their label. One has the
// label of crisp's files in /run, which the policy denies to containers; files
// below /var/lib/containers are allowed.
func testNodeFiles(t *testing.T, m *machine) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the node's"), 0o666); err != nil {
		t.Fatal(err)
	}

	if err := unix.Lsetxattr(secret, "security.selinux", []byte("system_u:object_r:container_runtime_t:s0\x00"), 0); err != nil {
		t.Fatal(err)
	}
	paths := []string{secret, "/etc/hosts", "/etc/passwd"}
	var mounts []*runtimeapi.Mount
	var before []string
	for i, path := range paths {
		mounts = append(mounts, &runtimeapi.Mount{HostPath: path, ContainerPath: "/node/" + strconv.Itoa(i)})
		before = append(before, fileLabel(t, path))
	}

	one := m.pod("one", &runtimeapi.LinuxSandboxSecurityContext{})
	c := one.container(nil, mounts...)
	c.cannot("cat /node/0")
	c.cannot("echo x >/node/1")
	c.cannot("echo x >/node/2")

	for i, path := range paths {
		if got := fileLabel(t, path); got != before[i] {
			t.Errorf("%s has label %s, had %s", path, got, before[i])
		}
	}

	kept := &runtimeapi.Mount{HostPath: "/etc/shadow", ContainerPath: "/shadow"}
	if _, err := call(m, m.runtime.CreateContainer, one.create(nil, kept)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("mount of what the policy keeps from crisp: %v", err)
	}
}

// testNotConfined checks containers that SELinux does not confine.
func testNotConfined(t *testing.T, m *machine) {
	const super = "system_u:system_r:spc_t:s0"
	privileged := m.pod("privileged", &runtimeapi.LinuxSandboxSecurityContext{Privileged: true})
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the node's"), 0o600); err != nil {
		t.Fatal(err)
	}

	c := privileged.container(&runtimeapi.LinuxContainerSecurityContext{Privileged: true}, &runtimeapi.Mount{HostPath: secret, ContainerPath: "/secret"})
	if got := c.label(); got != super {
		t.Errorf("a privileged container has label %s", got)
	}

	c.can("cat /secret && touch /file && mkdir -p /mnt && mount -t tmpfs tmpfs /mnt")
	confined := privileged.container(nil)
	confined.level()
	for name, options := range map[string]*runtimeapi.NamespaceOption{
		"pid": {Pid: runtimeapi.NamespaceMode_NODE}, "ipc": {Pid: runtimeapi.NamespaceMode_CONTAINER, Ipc: runtimeapi.NamespaceMode_NODE},
	} {
		p := m.pod(name, &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options})
		if got := p.container(nil).label(); got != super {
			t.Errorf("%s of the node: label %s", name, got)
		}
		asks := p.container(&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "container_t"}})
		asks.level()
	}
}

func testAskedFor(t *testing.T, m *machine) {
	p := m.pod("one", &runtimeapi.LinuxSandboxSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Level: "s0:c7,c3"}})
	c := p.container(nil)
	if got := c.level(); got != "s0:c3,c7" {
		t.Errorf("the pod's level is %s", got)
	}
	other := p.container(&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "container_kvm_t", Level: "s0:c4,c5"}})
	if got, want := other.label(), "system_u:system_r:container_kvm_t:s0:c4,c5"; got != want {
		t.Errorf("got label %s, want %s", got, want)
	}
	other.can("touch /file && cat /etc/hosts")
	c.can("cat /etc/hosts")
	m.pod("same level", &runtimeapi.LinuxSandboxSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Level: "s0:c3,c7"}})
}

func testRefused(t *testing.T, m *machine) {
	invalid := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}

	for _, o := range []*runtimeapi.SELinuxOption{{Level: "s0,c1"}, {Type: "made_up_t"}, {User: "nobody_u"}, {Role: "nobody_r"}, {Role: "object_r"}, {Type: "spc_t:s0"}, {Level: "s0:c1,c2\x00"}} {
		_, err := call(m, m.runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: podConfig(m, "wrong", &runtimeapi.LinuxSandboxSecurityContext{SelinuxOptions: o})})
		invalid("pod with "+o.String(), err)
	}

	p := m.pod("one", &runtimeapi.LinuxSandboxSecurityContext{})
	_, err := call(m, m.runtime.CreateContainer, p.create(&runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Level: "s0,c1"}}))
	invalid("container", err)
	etc := fileLabel(t, "/etc")
	_, err = call(m, m.runtime.CreateContainer, p.create(nil, &runtimeapi.Mount{HostPath: "/etc", ContainerPath: "/data", SelinuxRelabel: true}))
	invalid("relabel /etc", err)

	if got := fileLabel(t, "/etc"); got != etc {
		t.Errorf("/etc has label %s, had %s", got, etc)
	}

	// Labels must not be written through what is mounted on /proc.
	for _, at := range []string{"/proc", "/proc/self/attr", "/proc/thread-self/attr/exec"} {
		id, err := call(m, m.runtime.CreateContainer, p.create(nil, &runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: at}))
		if err == nil {
			_, err = call(m, m.runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: id.ContainerId})
		}
		if err == nil {
			t.Errorf("a container started with a mount on %s", at)
		}
	}
}

func testLabelsAfterRestart(t *testing.T, m *machine) {
	one := m.pod("one", &runtimeapi.LinuxSandboxSecurityContext{})
	c := one.container(nil)
	level := c.level()
	m.run("systemctl", "restart", "crisp.service")
	m.answers()

	if got := c.level(); got != level {
		t.Errorf("the container has level %s, had %s", got, level)
	}
	if got := one.container(nil).level(); got != level {
		t.Errorf("a second container of the pod has level %s, want %s", got, level)
	}

	if got := m.pod("two", &runtimeapi.LinuxSandboxSecurityContext{}).container(nil).level(); got == level {
		t.Errorf("another pod has level %s, too", got)
	}
	m.run("systemctl", "kill", "--signal=KILL", "crisp-keeper.service")
	m.eventually("a command in the container", func() bool {
		_, err := call(m, m.runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}})
		return err == nil
	})

	if got := c.level(); got != level {
		t.Errorf("with another keeper the container has level %s, had %s", got, level)
	}
	if got, want := processLabel(t, m.pid("crisp-keeper.service")), "system_u:system_r:container_engine_t:s0"; got != want {
		t.Errorf("the new keeper runs as %s, want %s", got, want)
	}
}
