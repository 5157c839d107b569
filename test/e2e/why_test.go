package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/admin"
	"crisp/test/testkit/lab"
)

// TestWhy asks for the reasons of everything that keeps a pod from running.
func TestWhy(t *testing.T) {
	plugin := newPlugin(t)
	n := newNode(t, lab.Options{PluginDir: plugin.dir})
	n.run(t, "network fails", func(t *testing.T) { testWhyFailed(t, n, plugin) })
	n.run(t, "plugin hangs", func(t *testing.T) { testWhyWaits(t, n, plugin) })
	n.run(t, "containers", func(t *testing.T) { testWhyEnds(t, n) })
	n.run(t, "stop", func(t *testing.T) { testWhyStops(t, n) })
	n.run(t, "pull", func(t *testing.T) { testWhyPull(t, n) })
	n.run(t, "nothing", func(t *testing.T) {
		n.refused(t, 6, "there is no pod or container", "why", "nothing")
		n.pod(t, podNamed("idle"))
		wantLines(t, n.crisp(t, "why", "idle"), "^pod e2e/idle, [0-9a-f]{12}, created .* ready$", "^containers: nobody has asked for a container", "^what happened last:$", "pod created$", "pod started$")
	})
}

// testWhyFailed has the creation of a pod fail, which leaves no record.
func testWhyFailed(t *testing.T, n *node, p plugin) {
	p.set(t, "fail-ADD")
	cfg := n.podConfig(t)
	cfg.Metadata.Name = "failing"
	if _, err := try(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg}); err == nil {
		t.Fatal("the pod runs")
	}
	for _, name := range []string{"failing", "e2e/failing"} {
		wantLines(t, n.crisp(t, "why", name), "^there is no pod of that name now$",
			`^failed: run pod failed \d+s ago at "attach network": .*the plugin fails on request`, "^    what to do: a network plugin .*", "run pod failed$")
	}

	// Once it has succeeded, the failure is only a part of the past.
	p.clear("fail-ADD")
	n.podOf(t, cfg)
	if out := n.crisp(t, "why", "failing"); strings.Contains(out, "\nfailed:") || !strings.Contains(out, "run pod failed") {
		t.Errorf("afterwards: %s", out)
	}
}

// testWhyWaits asks while a network plugin hangs.
func testWhyWaits(t *testing.T, n *node, p plugin) {
	p.set(t, "hold-ADD")
	cfg := n.podConfig(t)
	cfg.Metadata.Name = "hanging"
	done := make(chan error, 1)
	go func() {
		r, err := n.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
		if err == nil {
			_, err = n.Runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId})
		}
		done <- err
	}()

	var out string
	eventually(t, "the plugin's call", func() bool {
		s := finish(t, n.command(t, "why", "hanging"))
		out = s.out
		return s.code == 0 && strings.Contains(out, "waiting for somebody")
	})
	wantLines(t, out, `^under way: run pod, for \d+s; for \d+s: attach network$`, `^    network plugin \(ADD\), process \d+: /bin/sh `+filepath.Join(p.dir, "bridge")+": ",
		`^    network plugin bridge \(ADD\) runs for \d+s, and has printed: waiting for somebody$`)
	var report admin.Report
	if err := json.Unmarshal([]byte(n.crisp(t, "why", "hanging", "-o", "json")), &report); err != nil || len(report.Operations) != 1 || report.Operations[0].Stage != "attach network" {
		t.Errorf("as JSON: %+v, %v", report, err)
	}

	p.clear("hold-ADD")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// testWhyPull asks why a pod has no container whose image cannot be pulled, or was not.
func testWhyPull(t *testing.T, n *node) {
	p := n.pod(t, podNamed("imageless"))
	pull := func(ref string) error {
		_, err := try(t, n.Images.PullImage, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, SandboxConfig: p.cfg})
		return err
	}
	const missing = "registry.k8s.io/nothing-of-that-name:1"
	if pull(missing) == nil {
		t.Fatal("an image that does not exist was pulled")
	}
	out := n.crisp(t, "why", "imageless")
	wantLines(t, out, `^failed: pull image `+missing+` failed \d+s ago: .*404`, "^    what to do: check the ", `pull image `+missing+` failed$`)
	if strings.Contains(out, "nobody has asked") {
		t.Errorf("that a pull failed is not the only reason: %s", out)
	}

	// Kubelet does not create a container before, others may.
	cfg := p.config(func(c *runtimeapi.ContainerConfig) { c.Image.Image = missing })
	if _, err := try(t, n.Runtime.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.cfg}); err == nil {
		t.Fatal("a container has an image that does not exist")
	}
	out = n.crisp(t, "why", "imageless")
	wantLines(t, out, `^failed: create container main failed .*image not found locally`, "^    what to do: pull the image")
	if strings.Contains(out, "nobody has asked") {
		t.Errorf("somebody has asked for a container: %s", out)
	}

	// A pull that succeeds is told of only after one that failed.
	if err := pull(busybox); err != nil {
		t.Fatal(err)
	}
	if out := n.crisp(t, "why", "imageless"); strings.Contains(out, busybox) {
		t.Errorf("a pull is no news: %s", out)
	}
}

// testWhyEnds asks for the ends of containers.
func testWhyEnds(t *testing.T, n *node) {
	p := n.pod(t, podNamed("web"))
	p.start(t, named("fine"))
	p.start(t, named("done"), sh("exit 0")).wait(t)
	p.start(t, named("failing"), sh("exit 3")).wait(t)
	killed := p.start(t, named("killed"))
	killed.signal(t, unix.SIGKILL)
	killed.wait(t)
	p.start(t, named("hungry"), sh("exec dd if=/dev/zero of=/dev/null bs=200M"), memory(20<<20)).wantEnd(t, 137, "OOMKilled")
	wrong := p.create(t, named("wrong"), func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/nothing"} })
	if _, err := try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: wrong.id}); err == nil {
		t.Error("a program that does not exist was started")
	}

	wantLines(t, n.crisp(t, "why", "web"),
		`^pod e2e/web, .*, ready$`,
		`^container fine: running for \d+s as process \d+$`,
		`^container done: ended \d+s ago after \d+s: its program succeeded$`,
		`^container failing: .*its program failed with code 3\.`, "crisp logs",
		`^container killed: .*it was killed \(SIGKILL\) although it had memory left`, "terminationGracePeriodSeconds",
		`^container hungry: .*out of memory|lack of memory \(OOM\): its cgroup /\S+ has a limit of 20\.0 MiB`, "resources.limits.memory",
		`^container wrong: could not be started, .*exec "/nothing"`, "what to do: check the command: the image has no such program",
		"^what happened last:$", `container hungry stopped: OOMKilled \(137\)$`, "start container wrong failed$")
	out := n.crisp(t, "why", "web/failing")
	if strings.Contains(out, "hungry") || !strings.Contains(out, "code 3") {
		t.Errorf("of one container: %s", out)
	}
}

// testWhyStops asks while a container does not stop.
func testWhyStops(t *testing.T, n *node) {
	p := n.pod(t, podNamed("stubborn"))
	c := p.start(t, named("app"), sh("trap '' TERM; while :; do sleep 1; done"))
	done := make(chan error, 1)
	go func() {
		_, err := n.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 5})
		done <- err
	}()
	var out string
	eventually(t, "the stop", func() bool { out = n.crisp(t, "why", "stubborn"); return strings.Contains(out, "under way") })
	wantLines(t, out, `^under way: stop container app, for \d+s; for \d+s: wait up to 5s for the exit after signal 15 \(SIGTERM\)$`, `^    process \d+: sh -c trap.*: sleeping$`)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestDebug looks into a daemon by its socket and by a signal.
func TestDebug(t *testing.T) {
	n := newNode(t, lab.Options{})
	p := n.pod(t, podNamed("web"), func(c *runtimeapi.PodSandboxConfig) { c.Annotations = map[string]string{"a": "annotated-secret"} })
	c := p.start(t, named("app"), func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "TOKEN", Value: []byte("environment-secret")}}
	})

	var state admin.State
	text := n.crisp(t, "debug", "state")
	if err := json.Unmarshal([]byte(text), &state); err != nil || !state.Ready || len(state.Pods) != 1 || state.Pods[0].Containers[0].ID != c.id || state.Goroutines < 5 || state.Descriptors < 5 {
		t.Errorf("the state is %+v, %v", state, err)
	}
	if strings.Contains(text, "-secret") {
		t.Errorf("the state has secrets: %s", text)
	}
	wantLines(t, n.crisp(t, "debug", "goroutines"), `^goroutine \d+ \[`, "main.main")
	if out := n.crisp(t, "debug", "profile", "heap"); !strings.HasPrefix(out, "\x1f\x8b") {
		t.Errorf("the profile begins with %.20q", out)
	}
	if s := finish(t, n.command(t, "debug", "profile", "none")); s.code != 1 {
		t.Errorf("a profile that does not exist: %+v", s)
	}

	st, err := os.Stat(n.path("state", admin.Socket))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", st.Mode(), err)
	}

	if err := unix.Kill(n.PID(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the dump", func() bool { return strings.Contains(n.Log(), "msg=Goroutine ") })
	time.Sleep(100 * time.Millisecond)
	wantLines(t, n.Log(), `msg="State of the daemon" version=`, `msg="State of a pod" pod=e2e/web `+".*"+c.id, `msg=Goroutine stack=.*main\.main`)
	if strings.Contains(n.Log(), "-secret") {
		t.Error("the log has secrets")
	}
	n.crisp(t, "ps") // it goes on
}
