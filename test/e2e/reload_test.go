package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/collector"
	"crisp/test/testkit/lab"
)

// reload writes a drop-in, has the daemon read its configuration again, and returns
// what it logs about that.
func (n *node) reload(t *testing.T, config string) string {
	t.Helper()
	dir := n.path("config.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "reload.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	before := len(n.Log())
	if err := unix.Kill(n.PID(), unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reload", func() bool {
		log := n.Log()[before:]
		return strings.Contains(log, "Reloaded the configuration") || strings.Contains(log, "Could not reload")
	})
	return n.Log()[before:]
}

// TestReload changes what can change while pods run, and leaves the rest alone.
func TestReload(t *testing.T) {
	n := newNode(t, lab.Options{Config: "metrics_address = \"127.0.0.1:0\"\n"})
	running := n.pod(t, podNamed("running")).start(t)
	c := collector.Start(t)
	dirs := t.TempDir()
	seccomp := filepath.Join(dirs, "seccomp.json")
	if err := os.WriteFile(seccomp, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	log := n.reload(t, fmt.Sprintf("log_level = \"debug\"\ntracing_endpoint = %q\ntracing_sampling_rate_per_million = 1000000\npinned_images = [%q]\n"+
		"runtime_handlers = [\"other\"]\nseccomp_profile = %q\ndefault_capabilities = [\"CAP_KILL\"]\nmetrics_address = \"127.0.0.1:0\"\naudit_log = %q\n"+
		"stream_idle_timeout = \"1h\"\ncgroup_driver = \"\"\n", c.Address, busybox, seccomp, filepath.Join(dirs, "audit.log")))
	for _, want := range []string{`keys="[cgroup_driver stream_idle_timeout]"`, "changed=\"[log_level pinned_images runtime_handlers default_capabilities seccomp_profile audit_log tracing_endpoint tracing_sampling_rate_per_million]\""} {
		eventually(t, want, func() bool { return strings.Contains(n.Log(), want) })
	}
	if strings.Contains(log, "level=ERROR") {
		t.Errorf("the reload logs %s", log)
	}

	if im := call(t, n.Images.ImageStatus, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busybox}}).Image; !im.Pinned {
		t.Error("the image is not pinned")
	}
	cfg := n.podConfig(t)
	cfg.Metadata.Name = "new"
	p := &pod{n, call(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: "other"}).PodSandboxId, cfg}
	t.Cleanup(func() { p.remove(t) })
	runtimeDefault := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}
	if out := p.output(t, "grep CapEff /proc/self/status; mkdir /tmp/x && echo made || true", runtimeDefault); !strings.Contains(out, "0000000000000020") || strings.Contains(out, "made") {
		t.Errorf("a new container has %q", out)
	}
	if out := running.sh(t, "mkdir /tmp/y && echo made; grep CapEff /proc/self/status"); !strings.Contains(out, "made") || strings.Contains(out, "0000000000000020") {
		t.Errorf("a container that ran before has %q", out)
	}
	eventually(t, "spans", func() bool { return len(c.Spans()) > 0 })
	eventually(t, "the audit log", func() bool { return strings.Contains(slurp(filepath.Join(dirs, "audit.log")), "mkdir /tmp/y") })
	testReloadRefuses(t, n)
	testReloadMoves(t, n)
}

// testReloadRefuses keeps everything after a configuration that is wrong.
func testReloadRefuses(t *testing.T, n *node) {
	for config, want := range map[string]string{"log_levle = \"info\"\n": "did you mean", "seccomp_profile = \"/nowhere\"\n": "seccomp_profile"} {
		if log := n.reload(t, config); !strings.Contains(log, "keeping the old one") || !strings.Contains(log, want) {
			t.Errorf("with %q the log is %s", config, log)
		}
	}
	if st := call(t, n.Runtime.Status, &runtimeapi.StatusRequest{Verbose: true}); len(st.RuntimeHandlers) != 2 || !strings.Contains(st.Info["config"], `"other"`) {
		t.Errorf("the handlers are %v, the configuration %s", st.RuntimeHandlers, st.Info["config"])
	}
}

// testReloadMoves changes the address of metrics, and turns them off.
func testReloadMoves(t *testing.T, n *node) {
	address := func() string {
		all := regexp.MustCompile(`msg="Serving metrics" address=(\S+)`).FindAllStringSubmatch(n.Log(), -1)
		return all[len(all)-1][1]
	}
	old := address()
	n.reload(t, "metrics_address = \"localhost:0\"\n")
	if now := address(); now == old || scrape(t, now)["crisp_images"] != 1 {
		t.Errorf("metrics are at %s, and were at %s", now, old)
	}
	if r, err := http.Get("http://" + old + "/metrics"); err == nil {
		r.Body.Close()
		t.Errorf("metrics are still at %s", old)
	}

	n.reload(t, "metrics_address = \"\"\n")
	if log := n.Log(); !strings.Contains(log, `keys=[metrics_address]`) {
		t.Error("turning metrics off needs no restart")
	}
}
