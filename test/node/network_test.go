//go:build node

package node

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crisp/network/own"
	"crisp/test/node/cluster"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

// pair is a cluster of both families with two nodes, whose network is up to the test.
type pair struct {
	*world
	nodes [2]*cluster.Node
	m     *cluster.Machine
	// cidrs are the pod CIDRs of the nodes.
	cidrs [2][]string
}

// newPair starts two nodes without a network configuration, and waits for their pod
// CIDRs.
func newPair(t *testing.T, config, plugins string) *pair {
	t.Helper()
	opt := lab.Options{NoNetwork: true, Config: config, PluginDir: plugins}
	p := &pair{world: newWorldOf(t, cluster.Options{Dual: true}, opt, nil, nil)}
	other, m := p.join(t, opt)
	p.nodes, p.m = [2]*cluster.Node{p.node, other}, m
	// The second daemon, which ends first, must not leave what it has not found.
	t.Cleanup(func() {
		if err := lab.RemoveLink(p.node.Lab.Bridge()); err != nil {
			t.Error(err)
		}
	})

	s := &space{t, p.world, "default"}
	for i, n := range p.nodes {
		s.eventually("the pod CIDRs of "+n.Name, func() error {
			out, err := s.try("get", "node", n.Name, "-o", "jsonpath={.spec.podCIDRs[*]}")
			if p.cidrs[i] = strings.Fields(out); err == nil && len(p.cidrs[i]) != 2 {
				err = fmt.Errorf("they are %q", out)
			}
			return err
		})
	}
	return p
}

// ready waits until both nodes are.
func (p *pair) ready(s *space) {
	s.Helper()
	s.wait("condition=Ready", "node/"+p.nodes[0].Name, "node/"+p.nodes[1].Name)
}

// command runs a program in the network namespace of a node.
func (p *pair) command(ctx context.Context, node int, args ...string) (string, error) {
	args = append(p.nodes[node].Below(), args...)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Two nodes' pods reach each other where there are routes between their pod CIDRs, and
// nothing else, with crisp's own network in both modes.
func TestOwnNetwork(t *testing.T) {
	all := []string{cluster.PodsV4, cluster.PodsV6}
	t.Run(own.ModeRouted, func(t *testing.T) {
		p := newPair(t, fmt.Sprintf("cluster_cidrs = %s\n", quotedList(all)), "")
		p.connect(t)
		p.tryOwn(t)
	})

	t.Run(own.ModeBridge, func(t *testing.T) {
		p := newPair(t, "default_network = false\n", "")
		p.connect(t)
		for i, n := range p.nodes {
			ranges := [][]map[string]string{{{"subnet": p.cidrs[i][0]}}, {{"subnet": p.cidrs[i][1]}}}
			err := n.Lab.Configure(map[string]any{
				"cniVersion": "1.1.0", "name": "pods",
				"plugins": []map[string]any{{
					"type": own.Type, "mode": own.ModeBridge, "bridge": n.Lab.Bridge(), "ipMasq": true, "nonMasqueradeCIDRs": all,
					"capabilities": map[string]bool{"portMappings": true},
					"ipam":         map[string]any{"type": "host-local", "dataDir": n.Lab.IPAM(), "ranges": ranges},
				}},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		p.tryOwn(t)
	})
}

// quotedList is a list in TOML.
func quotedList(words []string) string { return `["` + strings.Join(words, `", "`) + `"]` }

// connect adds the routes.
func (p *pair) connect(t *testing.T) {
	t.Helper()
	if err := p.m.Route(t.Context(), p.cidrs[0], p.cidrs[1]); err != nil {
		t.Fatal(err)
	}
}

// tryOwn tries all, also by crisp's own view of its network, at the end of which
// nothing is left of it.
func (p *pair) tryOwn(t *testing.T) {
	t.Run("pods", func(t *testing.T) { p.try(p.space(t), p.healthy) })
	p.empty(t)
	s := &space{t, p.world, "default"}
	for i, n := range p.nodes {
		s.eventually("nothing is left on "+n.Name, func() error {
			shown, err := p.crisp(i, "show")
			if err == nil && strings.Count(shown, "\n") != 1 {
				err = fmt.Errorf("crisp network show says\n%s", shown)
			}
			return err
		})
	}
	p.gone(s)
	p.healthy(s)
}

// crisp runs one of the daemon's commands for the network of a node.
func (p *pair) crisp(node int, command string) (string, error) {
	cache, err := lab.Find()
	if err != nil {
		return "", err
	}
	binary, err := cache.Crisp()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), pace.Scale(30*time.Second))
	defer cancel()
	dir := p.nodes[node].Lab.Dir
	return p.command(ctx, node, binary, "network", command, "--config", filepath.Join(dir, "config.toml"),
		"--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"), "--cni-conf-dir", filepath.Join(dir, "net.d"))
}

// healthy checks that crisp finds nothing wrong with its network.
func (p *pair) healthy(s *space) {
	s.Helper()
	for i, n := range p.nodes {
		if found, err := p.crisp(i, "check"); err != nil || strings.Contains(found, "FAIL") || strings.Contains(found, "WARN") {
			s.Errorf("crisp network check on %s: %v\n%s", n.Name, err, found)
		}
	}
}

// gone checks that nothing is left of pods, of which there are none any more.
func (p *pair) gone(s *space) {
	s.Helper()
	for i, n := range p.nodes {
		s.eventually("interfaces are gone from "+n.Name, func() error {
			out, err := p.command(s.Context(), i, "ip", "-o", "link", "show", "type", "veth")
			// The first node's is the cable between the two.
			if lines := strings.Count(out, "\n"); err == nil && lines != 1 {
				err = fmt.Errorf("%d are left: %s", lines-1, out)
			}
			return err
		})
		if leases := n.Lab.Leases(); len(leases) > 0 {
			s.Errorf("%s has leases of %v", n.Name, leases)
		}
	}
}
