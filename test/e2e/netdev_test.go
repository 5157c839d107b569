package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// onNode reports whether the node has a network device.
func onNode(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// TestNetDevices lends a device of the node to pods by CDI.
func TestNetDevices(t *testing.T) {
	const host, inside = "crispe2e1", "net1"
	h := newHookNode(t)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host}, PeerName: "crispe2e2"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName(host); err != nil {
			t.Errorf("the node has lost its device: %v", err)
		} else if err := netlink.LinkDel(link); err != nil {
			t.Error(err)
		}
	})

	define := func(name, in string) {
		write(t, filepath.Join(h.cdi, name+".yaml"), fmt.Sprintf(`cdiVersion: "1.1.0"
kind: vendor.com/%s
devices: [{name: "0", containerEdits: {netDevices: [{hostInterfaceName: %s, name: %q}]}}]
`, name, host, in))
	}
	define("nic", inside)
	define("taken", "eth0")

	for name, change := range podKinds() {
		h.run(t, name, func(t *testing.T) {
			p := h.pod(t, change)
			c := p.start(t, device("vendor.com/nic=0"))
			if out := c.sh(t, "cat /sys/class/net/net1/operstate || cat /proc/net/dev"); onNode(host) || strings.Contains(out, "No such") {
				t.Errorf("on the node %v, the container sees %q", onNode(host), out)
			}

			// Another container, a dead daemon, and another pod.
			second := p.start(t, device("vendor.com/nic=0"), func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "second" })
			second.remove(t)
			other := h.pod(t)
			r := &runtimeapi.CreateContainerRequest{PodSandboxId: other.id, Config: other.config(device("vendor.com/nic=0")), SandboxConfig: other.cfg}
			wantCode(t, failure(t, h.Runtime.CreateContainer, r), codes.FailedPrecondition, host, "no such network device on the node")
			h.Kill()
			if err := h.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if out := c.sh(t, "grep -c net1 /proc/net/dev"); out != "1" || onNode(host) {
				t.Errorf("after a restart the container has %q, the node %v", out, onNode(host))
			}

			c.remove(t)
			p.remove(t)
			if !onNode(host) {
				t.Error("the node did not get its device back")
			}
		})
	}

	h.run(t, "refused", func(t *testing.T) {
		p := h.pod(t)
		r := &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(device("vendor.com/taken=0")), SandboxConfig: p.cfg}
		wantCode(t, failure(t, h.Runtime.CreateContainer, r), codes.FailedPrecondition, "eth0", "another network device has this name")
		p = h.pod(t, func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		})
		r = &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: p.config(device("vendor.com/nic=0")), SandboxConfig: p.cfg}
		wantCode(t, failure(t, h.Runtime.CreateContainer, r), codes.InvalidArgument, "no network of its own")
		if !onNode(host) {
			t.Error("a refused container has taken the device")
		}
	})
}
