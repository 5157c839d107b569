package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/network/netdev"
	"crisp/network/netns"
	"crisp/test/testkit"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// Clients that each run one pod after the other, of which each keeps a few. Together they
// use most of the addresses, so that each of these is given out again and again.
const (
	crowdClients = 32
	crowdRounds  = 63
	crowdStay    = 3
	crowdSubnet  = "10.251.7.0/25"
	crowdIPv6    = "fd51:7::/121"
)

// crowd notes who has which address and host port.
type crowd struct {
	n      *node
	rounds int // of each client
	mu     sync.Mutex
	users  map[netip.Addr]string // by address, "" for one that is free again
	most   int                   // how many pods there were at once

	pods, uses atomic.Int64
}

// TestCrowdOnOwnNetwork runs and removes 2,016 whole pods (fewer on a slow machine), with
// host ports, by 32 clients on crisp's own network: no address is used twice at once, as seen in the pods, none is
// lost, and neither rules nor interfaces become more.
func TestCrowdOnOwnNetwork(t *testing.T) {
	for _, mode := range []string{"routed", "bridge"} {
		t.Run(mode, func(t *testing.T) {
			testkit.Root(t)
			if _, err := exec.LookPath("nft"); err != nil {
				testkit.Skip(t, "nft", err.Error())
			}
			n := &node{testkit.Daemon(t, lab.Options{NoRegistry: true, NoNetwork: true})}
			if err := n.Configure(crowdNetwork(n, mode)); err != nil {
				t.Fatal(err)
			}
			first := n.pod(t, func(c *runtimeapi.PodSandboxConfig) {
				c.Metadata.Name, c.PortMappings = "first", hostPorts(9000)
			})

			before := n.netState(t)
			c := crowd{n: n, rounds: pace.Load(crowdRounds), users: map[netip.Addr]string{}}
			began := time.Now()
			c.run(t)
			t.Logf("%d pods, up to %d at once, in %v; %d addresses were used %d times", c.pods.Load(), c.most, time.Since(began), len(c.users), c.uses.Load())
			if c.pods.Load() != int64(crowdClients*c.rounds) || c.most < crowdClients || int(c.uses.Load()) < 2*len(c.users) {
				t.Error("these are not as many as they should be")
			}

			if left := call(t, n.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}).Items; len(left) != 1 || left[0].Id != first.id {
				t.Errorf("pods are left: %v", left)
			}
			if leases := n.Leases(); len(leases) != 2 {
				t.Errorf("leases are left: %v", leases)
			}
			// Interfaces are deleted in the background.
			for end := time.Now().Add(pace.Scale(callTime)); n.netState(t) != before; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the node had\n%s\nand has\n%s", before, n.netState(t))
				}
			}
			first.remove(t)
		})
	}
}

// crowdNetwork is a configuration of crisp's own network with few addresses.
func crowdNetwork(n *node, mode string) map[string]any {
	ranges := [][]map[string]string{{{"subnet": crowdSubnet}}, {{"subnet": crowdIPv6}}}
	return map[string]any{"cniVersion": "1.1.0", "name": "crowd", "plugins": []map[string]any{{
		"type": "crisp-net", "mode": mode, "bridge": n.Bridge(), "ipMasq": true, "capabilities": map[string]bool{"portMappings": true},
		"ipam": map[string]any{"type": "host-local", "dataDir": n.IPAM(), "ranges": ranges},
	}}}
}

func hostPorts(port int32) []*runtimeapi.PortMapping {
	return []*runtimeapi.PortMapping{
		{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: port}, {Protocol: runtimeapi.Protocol_UDP, ContainerPort: 80, HostPort: port},
	}
}

// netState is what must not grow: how many rules, elements of pods and interfaces there
// are.
func (n *node) netState(t *testing.T) string {
	t.Helper()
	rules, err := exec.CommandContext(t.Context(), "nft", "list", "table", "inet", "crisp-net").Output()
	if err != nil {
		t.Fatalf("list rules: %v", err)
	}
	links, err := netdev.Dump(netlink.LinkList)
	if err != nil {
		t.Fatalf("list interfaces: %v", err)
	}
	return fmt.Sprintf("%d lines of rules, %d elements, %d interfaces", strings.Count(string(rules), "\n"), strings.Count(string(rules), "comment"), len(links))
}

// run is all clients.
func (c *crowd) run(t *testing.T) {
	var clients sync.WaitGroup
	for client := range crowdClients {
		clients.Go(func() {
			var present []string
			for round := range c.rounds {
				id, err := c.enter(t, client, round)
				if err != nil {
					t.Error(err)
					return
				}

				if present = append(present, id); len(present) < crowdStay && round < c.rounds-1 {
					continue
				}
				for _, id := range present {
					if err := c.leave(t, id); err != nil {
						t.Error(err)
						return
					}
				}
				present = nil
			}
		})
	}
	clients.Wait()
}

// enter runs a pod, and looks inside which addresses it has.
func (c *crowd) enter(t *testing.T, client, round int) (string, error) {
	cfg := c.n.podConfig(t)
	cfg.Metadata.Name = fmt.Sprintf("pod-%d-%d", client, round)
	cfg.Metadata.Uid = cfg.Metadata.Name
	cfg.PortMappings = hostPorts(int32(10000 + client*crowdStay + round%crowdStay))
	r, err := try(t, c.n.Runtime.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return "", fmt.Errorf("run %s: %w", cfg.Metadata.Name, err)
	}
	c.pods.Add(1)

	st, err := try(t, c.n.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: r.PodSandboxId})
	if err != nil {
		return "", err
	}
	told := []string{st.Status.Network.GetIp()}
	for _, more := range st.Status.Network.GetAdditionalIps() {
		told = append(told, more.Ip)
	}
	has, err := addressesIn(c.n.path("state", "netns", "crisp-"+r.PodSandboxId[:20]))
	if err != nil {
		return "", fmt.Errorf("look into %s: %w", cfg.Metadata.Name, err)
	}
	for _, addr := range has {
		if !slices.Contains(told, addr.String()) || len(has) != 2 || len(told) != 2 {
			return "", fmt.Errorf("%s has the addresses %v, and by its status %v", cfg.Metadata.Name, has, told)
		}
	}
	return r.PodSandboxId, c.take(r.PodSandboxId, has)
}

// take notes the addresses of a pod.
func (c *crowd) take(id string, addrs []netip.Addr) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, addr := range addrs {
		if other := c.users[addr]; other != "" {
			return fmt.Errorf("%s is used by the pods %s and %s", addr, other, id)
		}
		c.users[addr] = id
		c.uses.Add(1)
	}

	present := 0
	for _, user := range c.users {
		if user != "" {
			present++
		}
	}
	c.most = max(c.most, present/2)
	return nil
}

// leave removes a pod, which has its addresses until then.
func (c *crowd) leave(t *testing.T, id string) error {
	c.mu.Lock()
	for addr, user := range c.users {
		if user == id {
			c.users[addr] = ""
		}
	}
	c.mu.Unlock()
	if _, err := try(t, c.n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop pod %s: %w", id, err)
	}
	if _, err := try(t, c.n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove pod %s: %w", id, err)
	}
	return nil
}

// addressesIn lists the addresses of eth0 in a pinned network namespace, without the
// link-local ones.
func addressesIn(pin string) (addrs []netip.Addr, err error) {
	ns, err := netns.Open(pin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()

	err = netns.Do(ns, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		list, err := netdev.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(eth0, unix.AF_UNSPEC) })
		for _, a := range list {
			if addr, ok := netip.AddrFromSlice(a.IP); ok && !a.IP.IsLinkLocalUnicast() {
				addrs = append(addrs, addr.Unmap())
			}
		}
		return err
	})
	return addrs, err
}
