package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/lab"
)

// TestPodCIDR waits for the node's part of a cluster's networks before it runs pods, and
// refuses that of another cluster.
func TestPodCIDR(t *testing.T) {
	testkit.Leaks(t)
	n := &node{testkit.Daemon(t, lab.Options{NoRegistry: true, NoNetwork: true, Config: `cluster_cidrs = ["10.250.0.0/16"]`})}
	ready := func() *runtimeapi.RuntimeCondition {
		t.Helper()
		for _, c := range call(t, n.Runtime.Status, &runtimeapi.StatusRequest{}).Status.Conditions {
			if c.Type == runtimeapi.NetworkReady {
				return c
			}
		}
		t.Fatal("there is no condition of the network")
		return nil
	}
	pass := func(cidr string) error {
		_, err := try(t, n.Runtime.UpdateRuntimeConfig, &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}

	if c := ready(); c.Status || !strings.Contains(c.Message, "cluster_cidrs") || !strings.Contains(c.Message, "kubelet") {
		t.Errorf("before the pod CIDR is known, the network is %v", c)
	}
	_, err := try(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(t)})
	wantCode(t, err, codes.Unavailable, "cluster_cidrs")
	wantCode(t, pass("10.249.3.0/24"), codes.InvalidArgument, "10.249.3.0/24", "cluster_cidrs")
	if err := pass("10.250.3.0/24"); err != nil {
		t.Fatal(err)
	}

	// kubelet does not repeat it to the next daemon.
	for range 2 {
		if c := ready(); !c.Status {
			t.Errorf("with a pod CIDR, the network is %v", c)
		}
		p := n.pod(t)
		ip := call(t, n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id}).Status.Network.GetIp()
		if addr, err := netip.ParseAddr(ip); err != nil || !netip.MustParsePrefix("10.250.3.0/24").Contains(addr) {
			t.Errorf("a pod has the address %q", ip)
		}
		p.remove(t)
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
