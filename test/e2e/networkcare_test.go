package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// TestNetworkCare has the daemon repair the network of a pod, and collect a lease of no
// pod when it starts; the command finds the same from outside.
func TestNetworkCare(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	n := &node{testkit.Daemon(t, lab.Options{
		NoRegistry: true, Own: "routed",
		Config: "network_check_interval = \"1s\"\nnetwork_sole_runtime = true\n",
	})}
	id := call(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u"}, Linux: &runtimeapi.LinuxPodSandboxConfig{},
	}}).PodSandboxId
	leases, err := filepath.Glob(filepath.Join(n.Dir, "ipam/*/*.*.*.*"))
	if err != nil || len(leases) != 1 {
		t.Fatalf("leases are %q, %v", leases, err)
	}

	var shown []struct{ HostInterface string }
	if err := json.Unmarshal(n.network(t, 0, "show", "-o", "json"), &shown); err != nil || len(shown) != 1 {
		t.Fatalf("shown is %+v, %v", shown, err)
	}
	end, err := netlink.LinkByName(shown[0].HostInterface)
	if err == nil {
		err = netlink.LinkSetDown(end)
	}
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the interface is up again", func() bool {
		l, err := netlink.LinkByName(shown[0].HostInterface)
		return err == nil && l.Attrs().OperState == netlink.OperUp
	})

	orphan := filepath.Join(filepath.Dir(leases[0]), "192.0.2.77")
	if err := os.WriteFile(orphan, []byte("a-pod-that-was-lost\r\neth0"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.network(t, 0, "check")
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, "the lease of no pod is released", func() bool { _, err := os.Stat(orphan); return err != nil })
	if _, err := os.Stat(leases[0]); err != nil {
		t.Errorf("the pod's lease: %v", err)
	}
	call(t, n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
}

// network runs crisp network and returns what it prints.
func (n *node) network(t *testing.T, code int, args ...string) []byte {
	t.Helper()
	flags := []string{"--config", filepath.Join(n.Dir, "config.toml"), "--root", filepath.Join(n.Dir, "root"), "--cni-conf-dir", filepath.Join(n.Dir, "net.d")}
	cmd := exec.CommandContext(t.Context(), n.program(t), append(append([]string{"network"}, args...), flags...)...)
	out, err := cmd.Output()
	if cmd.ProcessState.ExitCode() != code {
		t.Fatalf("crisp network %v: %v: %s", args, err, out)
	}
	return out
}

// program is the daemon's program.
func (n *node) program(t *testing.T) string {
	t.Helper()
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", n.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// within waits for something.
func within(t *testing.T, what string, holds func() bool) {
	t.Helper()
	const patience = 15 * time.Second
	for end := time.Now().Add(pace.Scale(patience)); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
