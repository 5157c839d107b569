package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/lab"
)

// TestNetworkSysctls gives a pod settings of its interface, and some of all interfaces that
// plugins change for the one they make, by either network.
func TestNetworkSysctls(t *testing.T) {
	for name, o := range map[string]lab.Options{"plugins": {}, "own network": {Own: "routed"}} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, o)
			set := func(sysctls map[string]string) func(*runtimeapi.PodSandboxConfig) {
				return func(cfg *runtimeapi.PodSandboxConfig) { cfg.Linux.Sysctls = sysctls }
			}
			p := n.pod(t, set(map[string]string{
				"net.ipv4.conf.eth0.rp_filter": "2", "net/ipv4/conf/eth0/arp_announce": "1\n", "net.ipv4.neigh.eth0.gc_stale_time": "77",
				"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv4.conf.all.arp_ignore": "1", "net.core.somaxconn": "1234",
			}))
			const script = "cd /proc/sys/net; cat ipv4/conf/eth0/rp_filter ipv4/conf/eth0/arp_announce ipv4/neigh/eth0/gc_stale_time" +
				" ipv6/conf/eth0/disable_ipv6 ipv4/conf/all/arp_ignore core/somaxconn"
			if got := strings.Fields(p.output(t, script)); strings.Join(got, " ") != "2 1 77 1 1 1234" {
				t.Errorf("settings are %q", got)
			}

			for sysctl, value := range map[string]string{"net.ipv4.conf.eth7.rp_filter": "1", "net.ipv4.conf.eth0.rp_filter": "much", "net.ipv4.conf.eth0.none": "1"} {
				cfg := n.podConfig(t)
				cfg.Metadata.Name, cfg.Linux.Sysctls = "refused", map[string]string{sysctl: value}
				_, err := try(t, n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg})
				if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), strings.ReplaceAll(sysctl, ".", "/")) {
					t.Errorf("%s=%s: %v", sysctl, value, err)
				}
			}
			if list := call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items; len(list) != 1 {
				t.Errorf("pods are %v", list)
			}
		})
	}
}
