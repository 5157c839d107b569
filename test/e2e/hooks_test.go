package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// hookNode is a daemon with directories for hook definitions and CDI specs.
type hookNode struct {
	*node
	// hooks and cdi are these directories; log is one for what hooks write.
	hooks, cdi, log string
}

func newHookNode(t *testing.T) *hookNode {
	t.Helper()
	dir := t.TempDir()
	h := &hookNode{hooks: filepath.Join(dir, "hooks.d"), cdi: filepath.Join(dir, "cdi"), log: openDir(t)}
	if err := errors.Join(os.Mkdir(h.hooks, 0o755), os.Mkdir(h.cdi, 0o755)); err != nil {
		t.Fatal(err)
	}
	h.node = newNode(t, lab.Options{Config: fmt.Sprintf("hooks_dirs = [%q]\ncdi_spec_dirs = [%q]", h.hooks, h.cdi)})
	return h
}

// openDir is a directory that all users reach and can write to.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "crisp-e2e-open-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// define defines a hook that runs a script for containers with an annotation.
func (h *hookNode) define(t *testing.T, stage, script string, timeout int) {
	t.Helper()
	data, err := json.Marshal(map[string]any{
		"version": "1.0.0", "when": map[string]any{"annotations": map[string]string{"^hooks$": "^on$"}}, "stages": []string{stage},
		"hook": map[string]any{"path": "/bin/sh", "args": []string{"sh", "-c", script}, "env": []string{"PATH=/usr/bin:/bin"}, "timeout": timeout},
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(h.hooks, stage+".json"), data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(filepath.Join(h.hooks, stage+".json")) })
}

// note is a script that notes a word in a file of the log.
func (h *hookNode) note(file, word string) string {
	return fmt.Sprintf("echo %s >>%s; chmod 666 %[2]s 2>/dev/null; true", word, filepath.Join(h.log, file))
}

func hooked(c *runtimeapi.ContainerConfig) { c.Annotations = map[string]string{"hooks": "on"} }

// read is the content of a file of the log, "" if it does not exist.
func (h *hookNode) read(file string) string { return slurp(filepath.Join(h.log, file)) }

// kinds of pods whose hooks differ.
func podKinds() map[string]func(*runtimeapi.PodSandboxConfig) {
	mapping := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: 200000, Length: 65536}}
	userns := func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: mapping, Gids: mapping}
	}
	return map[string]func(*runtimeapi.PodSandboxConfig){
		"plain":          func(*runtimeapi.PodSandboxConfig) {},
		"user namespace": userns,
		"shared PIDs": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		},
	}
}

var hookStages = []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"}

func TestHooks(t *testing.T) {
	h := newHookNode(t)
	for name, change := range podKinds() {
		h.run(t, name, func(t *testing.T) { testHooks(t, h, change) })
	}

	h.run(t, "failing", func(t *testing.T) { testFailingHook(t, h) })
	h.run(t, "after the start", func(t *testing.T) { testFailingLater(t, h) })
	h.run(t, "missing", func(t *testing.T) { testMissingHook(t, h) })
	for _, stage := range hookStages {
		h.run(t, "hanging "+stage, func(t *testing.T) { testHangingHook(t, h, stage) })
	}
	for _, d := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"nothing", func(*testing.T) {}},
		{"keeper killed", func(t *testing.T) { h.killKeeper(t) }}, // while the keeper is the daemon's child, as the next one is
		{"daemon killed", func(t *testing.T) { h.Kill(); h.begin(t) }},
		{"daemon restarted", func(t *testing.T) { stop(t, h.node); h.begin(t) }},
	} {
		h.run(t, "poststop, "+d.name, func(t *testing.T) { testPoststopOnce(t, h, d.do) })
	}
	h.run(t, "lost", func(t *testing.T) { testLostHooks(t, h) })
}

// testHangingHook has crisp why say which hook an operation waits for, and with what
// words it hangs.
func testHangingHook(t *testing.T, h *hookNode, stage string) {
	release := filepath.Join(openDir(t), "release")
	h.define(t, stage, fmt.Sprintf("echo waits for the card; while ! test -e %s; do sleep 0.1; done", release), 60)
	p := h.pod(t, podNamed("hangs"))
	c := p.create(t, hooked, sh("sleep 1000"))
	began := make(chan error, 1)
	go func() {
		_, err := try(t, h.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id})
		if err == nil && stage == "poststop" {
			_, err = try(t, h.Runtime.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: c.id})
		}
		began <- err
	}()

	want := stage + " hook /bin/sh (file " + filepath.Join(h.hooks, stage+".json") + ") runs for "
	var why string
	eventually(t, "the hook is known", func() bool {
		why = h.crisp(t, "why", "hangs")
		return strings.Contains(why, want) && strings.Contains(why, "has printed: waits for the card")
	})
	wantLines(t, why, `^under way: (start|run poststop hooks of) container main, for `, `^    .*, and is killed after 1m0s, and has printed`, `^    process \d+: sh -c `)
	if strings.Contains(why, "nobody has asked") {
		t.Errorf("it contradicts itself:\n%s", why)
	}

	stopped := make(chan error, 1)
	go func() {
		_, err := try(t, h.Runtime.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: c.id})
		stopped <- err
	}()
	if stage != "poststart" && stage != "poststop" {
		select {
		case err := <-stopped:
			t.Errorf("a container that is being started was stopped: %v", err)
		case <-time.After(pace.Scale(200 * time.Millisecond)):
		}
	}
	if err := os.WriteFile(release, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-began, <-stopped); err != nil {
		t.Fatal(err)
	}
	if st := c.status(t); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("the stopped container is %v", st.State)
	}
	eventually(t, "it waits for no hook", func() bool { return !strings.Contains(h.crisp(t, "why", "hangs"), "under way") })
}

func stop(t *testing.T, n *node) {
	t.Helper()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
}

// testHooks runs hooks of all kinds through a container's life.
func testHooks(t *testing.T, h *hookNode, change func(*runtimeapi.PodSandboxConfig)) {
	file := fmt.Sprintf("order-%d", time.Now().UnixNano())
	for _, stage := range hookStages {
		script := h.note(file, stage)
		if stage == "createContainer" {
			script += `; root=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/')/rootfs; echo made >$root/made && test -z "$LD_PRELOAD$SECRET" -a ! -e ` + h.path("state", "lock")
		}
		h.define(t, stage, script, 10)
	}
	h.define(t, "startContainer", "test -r /made && test -d /proc/self && test -z $HOME", 10)

	p := h.pod(t, change)
	c := p.start(t, hooked, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.ReadonlyRootfs = true
		c.Envs = []*runtimeapi.KeyValue{{Key: "LD_PRELOAD", Value: []byte("made")}, {Key: "SECRET", Value: []byte("x")}}
	})
	if got := c.sh(t, "cat /made"); got != "made" {
		t.Errorf("the file of the hook has %q", got)
	}
	if got, want := h.read(file), strings.Join(hookStages[:4], "\n")+"\n"; got != want {
		t.Errorf("hooks after the start: %q, want %q", got, want)
	}
	other := p.start(t, named("other"))
	if got := other.sh(t, "ls /made 2>&1; true"); !strings.Contains(got, "No such file") {
		t.Errorf("a container without hooks has %q", got)
	}

	c.stop(t, 0)
	want := strings.Join(hookStages, "\n") + "\n"
	eventually(t, "poststop hook runs when the container has exited", func() bool { return h.read(file) == want })
	c.remove(t)
	if got := h.read(file); got != want {
		t.Errorf("hooks after the removal: %q, want %q", got, want)
	}
	if left, err := os.ReadDir(h.path("state", "hooks")); err != nil || len(left) > 0 {
		t.Errorf("bundles left: %v, %v", left, err)
	}
}

// testFailingHook has each kind of hook before the start fail.
func testFailingHook(t *testing.T, h *hookNode) {
	for _, stage := range []string{"prestart", "createRuntime", "createContainer", "startContainer"} {
		t.Run(stage, func(t *testing.T) {
			h.define(t, stage, "echo broken >&2; exit 3", 10)
			h.define(t, "poststop", h.note("failing-"+stage, "poststop"), 10)
			p := h.pod(t)
			c := p.create(t, hooked)
			err := failure(t, h.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id})
			wantCode(t, err, codes.FailedPrecondition, stage+" hook /bin/sh (file "+filepath.Join(h.hooks, stage+".json")+"): hook failed: exit code 3: broken")
			c.wantEnd(t, 128, "StartError")
			c.remove(t)
			if got := h.read("failing-" + stage); got != "poststop\n" {
				t.Errorf("poststop hooks ran: %q", got)
			}
		})
	}
}

// testFailingLater has hooks after the start fail: the container does not care.
func testFailingLater(t *testing.T, h *hookNode) {
	h.define(t, "poststart", "exit 3", 10)
	h.define(t, "poststop", "while :; do :; done", 1)
	c := h.pod(t).start(t, hooked)
	c.sh(t, "true")
	c.stop(t, 0)
	c.remove(t)
	for _, text := range []string{"poststart hook /bin/sh", "exit code 3", "poststop hook /bin/sh", "killed after 1s"} {
		if !strings.Contains(h.Log(), text) {
			t.Errorf("the log lacks %q", text)
		}
	}
}

func testMissingHook(t *testing.T, h *hookNode) {
	definition := `{"version": "1.0.0", "hook": {"path": "/no/such/hook"}, "when": {"annotations": {"hooks": "on"}}, "stages": ["createRuntime"]}`
	for name, content := range map[string]string{"missing.json": definition, "broken.json": "{"} {
		path := filepath.Join(h.hooks, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path) })
	}

	p := h.pod(t)
	p.start(t).sh(t, "true") // it is not meant
	r := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(named("bad"), hooked), SandboxConfig: p.cfg}
	wantCode(t, failure(t, h.Runtime.CreateContainer, r), codes.FailedPrecondition, "/no/such/hook (file "+h.hooks+"/missing.json): invalid hook: the program does not exist")
	if !strings.Contains(h.Log(), h.hooks+"/broken.json") {
		t.Error("the log does not name the broken file")
	}
}

// testLostHooks loses the runtime-spec of a container, which has its hooks, while no
// daemon runs: the container can be removed all the same.
func testLostHooks(t *testing.T, h *hookNode) {
	h.define(t, "poststop", h.note("lost", "ran"), 20)
	for name, lose := range map[string]func(string) error{
		"missing": os.Remove, "damaged": func(file string) error { return os.WriteFile(file, []byte("{"), 0o600) },
	} {
		p := h.pod(t, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = name })
		c := p.start(t, hooked)
		h.Kill()
		if err := lose(h.path("root", "pods", p.id, c.id+".json")); err != nil {
			t.Fatal(err)
		}
		h.begin(t)

		c.stop(t, 0)
		c.remove(t)
		p.remove(t)
	}
}

// testPoststopOnce disturbs the daemon or its keeper while a poststop hook runs:
// it runs to its end, once.
func testPoststopOnce(t *testing.T, h *hookNode, disturb func(*testing.T)) {
	file := fmt.Sprintf("once-%d", time.Now().UnixNano())
	h.define(t, "poststop", h.note(file, "begin")+"; echo to stderr >&2; sleep 1; echo to stderr >&2; "+h.note(file, "end"), 20)
	c := h.pod(t).start(t, hooked)
	c.stop(t, 0)
	eventually(t, "the hook begins", func() bool { return h.read(file) != "" })
	disturb(t)
	c.remove(t)
	if got := h.read(file); got != "begin\nend\n" {
		t.Errorf("the hook noted %q", got)
	}
	if left := h.processes(t, file); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
}

// TestCDI injects devices with edits of every kind.
func TestCDI(t *testing.T) {
	h := newHookNode(t)
	for name, change := range podKinds() {
		h.run(t, name, func(t *testing.T) { testCDI(t, h, change) })
	}
	h.run(t, "unknown", func(t *testing.T) {
		write(t, filepath.Join(h.cdi, "broken.yaml"), "cdiVersion: [")
		p := h.pod(t)
		r := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(device("vendor.com/gpu=none")), SandboxConfig: p.cfg}
		wantCode(t, failure(t, h.Runtime.CreateContainer, r), codes.InvalidArgument, `unknown CDI device "vendor.com/gpu=none"`, h.cdi, "broken.yaml")
	})

	h.run(t, "FIFOs", func(t *testing.T) {
		for _, fifo := range []string{filepath.Join(h.cdi, "fifo.yaml"), filepath.Join(h.hooks, "fifo.json")} {
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(fifo) })
		}
		testCDI(t, h, func(*runtimeapi.PodSandboxConfig) {})
	})
	h.run(t, "Intel RDT", func(t *testing.T) {
		write(t, filepath.Join(h.cdi, "rdt.yaml"), `cdiVersion: "1.1.0"
kind: vendor.com/cache
devices: [{name: "0", containerEdits: {intelRdt: {closID: none-of-this-name}}}]
`)
		p := h.pod(t)
		r := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(device("vendor.com/cache=0")), SandboxConfig: p.cfg}
		wantCode(t, failure(t, h.Runtime.CreateContainer, r), codes.FailedPrecondition, "lacks Intel RDT", "CDI device")
	})
	h.run(t, "paths", func(t *testing.T) {
		write(t, filepath.Join(h.cdi, "paths.yaml"), `cdiVersion: "1.1.0"
kind: vendor.com/path
devices:
- {name: up, containerEdits: {deviceNodes: [{path: /dev/../../../../tmp/crisp-escaped, hostPath: /dev/null}]}}
- {name: proc, containerEdits: {deviceNodes: [{path: /dev/../proc/crisp, hostPath: /dev/null}]}}
- {name: root, containerEdits: {mounts: [{hostPath: /etc, containerPath: /x/../.., options: [ro, rbind]}]}}
- {name: relative, containerEdits: {mounts: [{hostPath: /etc, containerPath: ../etc, options: [ro, rbind]}]}}
- {name: below, containerEdits: {mounts: [{hostPath: /etc, containerPath: /proc/x, options: [ro, rbind]}]}}
- {name: option, containerEdits: {mounts: [{hostPath: /etc, containerPath: /x, options: [ro, rbind, unheard]}]}}
- {name: missing, containerEdits: {mounts: [{hostPath: /none/of/this, containerPath: /x, options: [ro, rbind]}]}}
- {name: none, containerEdits: {additionalGids: [4294967295]}}
- {name: unmapped, containerEdits: {additionalGids: [70000]}}
`)
		c := h.pod(t).start(t, device("vendor.com/path=up"))
		if _, err := os.Lstat("/tmp/crisp-escaped"); err == nil {
			t.Error("a device is outside of the container")
		}
		if got := c.sh(t, "stat -c '%t %T' /tmp/crisp-escaped"); got != "1 3" {
			t.Errorf("the device is %q", got)
		}
		for name, want := range map[string]codes.Code{
			"proc": codes.InvalidArgument, "root": codes.InvalidArgument, "relative": codes.InvalidArgument,
			"none": codes.InvalidArgument, "unmapped": codes.InvalidArgument,
			"below": codes.FailedPrecondition, "option": codes.FailedPrecondition, "missing": codes.FailedPrecondition,
		} {
			p := h.pod(t, userNamespace(300000))
			r := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(device("vendor.com/path=" + name)), SandboxConfig: p.cfg}
			wantCode(t, failure(t, h.Runtime.CreateContainer, r), want, "vendor.com/path="+name)
		}
	})
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
}

// device requests CDI devices.
func device(names ...string) change {
	return func(c *runtimeapi.ContainerConfig) {
		for _, name := range names {
			c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: name})
		}
	}
}

func testCDI(t *testing.T, h *hookNode, change func(*runtimeapi.PodSandboxConfig)) {
	file := fmt.Sprintf("cdi-%d", time.Now().UnixNano())
	write(t, filepath.Join(h.log, "library"), "library\n")
	spec := fmt.Sprintf(`cdiVersion: "1.1.0"
kind: vendor.com/gpu
containerEdits:
  env: [ALL=1]
  hooks: [{hookName: createContainer, path: /bin/sh, args: [sh, -c, %q], timeout: 5}]
devices:
- name: "0"
  containerEdits:
    env: [GPU=0]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/full, fileMode: 432}]
    mounts: [{hostPath: %q, containerPath: /lib/gpu, options: [ro, nosuid, nodev, bind]}]
    additionalGids: [4242]
- name: "1"
  containerEdits: {env: [GPU1=1], deviceNodes: [{path: /dev/gpu1, hostPath: /dev/zero, permissions: r}]}
`, h.note(file, "hook"), filepath.Join(h.log, "library"))
	write(t, filepath.Join(h.cdi, "vendor.yaml"), spec)

	c := h.pod(t, change).start(t, device("vendor.com/gpu=0"), func(c *runtimeapi.ContainerConfig) {
		c.Annotations = map[string]string{"cdi.k8s.io/plugin": "vendor.com/gpu=1,vendor.com/gpu=0"}
	})
	if got := c.sh(t, "echo $ALL $GPU $GPU1; cat /lib/gpu; id -G"); !strings.HasPrefix(got, "1 0 1\nlibrary\n") || !slices.Contains(strings.Fields(got), "4242") {
		t.Errorf("the container sees %q", got)
	}
	if r := c.exec(t, "sh", "-c", "echo x >/dev/gpu0"); r.ExitCode == 0 || !strings.Contains(string(r.Stderr), "No space left") {
		t.Errorf("write to /dev/full: %v", r)
	}
	if got := c.sh(t, "head -c 4 /dev/gpu1 | wc -c; stat -c '%u:%g %a' /dev/gpu0"); got != "4\n0:0 660" {
		t.Errorf("devices: %q", got)
	}
	if got := h.read(file); got != "hook\n" {
		t.Errorf("hooks of the specification: %q, want one", got)
	}
}
