package own

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"crisp/network/own/rules"
)

// TestAllow lets through the sysctls that the node's administrator allows.
func TestAllow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "allowlist.conf")
	wanted := map[string]string{"net.core.somaxconn": "1"}
	if err := allow(file, wanted); err != nil {
		t.Errorf("without a file: %v", err)
	}
	for text, ok := range map[string]bool{
		"": false, "^net.core.*$\n": true, "\n  ^net\\.ipv4\\..*$\n\n^net.core.somaxconn$": true, "^net\\.ipv4\\..*$\n": false, "(\n": false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := allow(file, wanted); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v, want success %v", text, err, ok)
		}
	}
}

// chained makes a call of a plugin after that of a pod's interface.
func (n *node) chained(command, kind string, p *pod, fields map[string]any) error {
	n.t.Helper()
	conf := map[string]any{"cniVersion": "1.1.0", "name": "test", "type": kind}
	if p.raw != nil {
		conf["prevResult"] = p.raw
	}
	for k, v := range fields {
		conf[k] = v
	}
	data, err := json.Marshal(conf)
	if err != nil {
		n.t.Fatal(err)
	}
	_, err = n.plugin.Call(n.t.Context(), Call{Type: kind, Command: command, ID: p.id, NetNS: p.path, IfName: "eth0", Config: data})
	return err
}

// TestIngressPolicies keeps the stricter policy of a bridge, refuses it where there is no
// bridge, and tells when it is lost.
func TestIngressPolicies(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		p := n.add(n.pod("one", nil))
		defer n.del(p)
		policy := func(name string) map[string]any { return map[string]any{"ingressPolicy": name} }
		if n.conf["mode"] == ModeRouted {
			if err := n.chained("ADD", TypeFirewall, p, policy("isolated")); codeOf(err) != types.ErrInvalidNetworkConfig || !strings.Contains(details(err).Error(), "bridge") {
				t.Errorf("without a bridge: %v", details(err))
			}
			return
		}

		for _, name := range []string{"isolated", "same-bridge", "isolated"} {
			if err := n.chained("ADD", TypeFirewall, p, policy(name)); err != nil {
				t.Fatal(details(err))
			}
			if err := n.chained("CHECK", TypeFirewall, p, policy(name)); err != nil {
				t.Error(details(err))
			}
		}
		table := n.nft("list", "table", "inet", rules.TableName)
		for _, set := range []string{"set policed {", "set together {", "set apart {"} {
			if strings.Count(table, set) != 1 {
				t.Errorf("want %q once in\n%s", set, table)
			}
		}
		if at := strings.Index(table, "@apart drop"); at < 0 || at > strings.Index(table, "@together accept") {
			t.Errorf("rules are\n%s", table)
		}

		n.nft("flush", "set", "inet", rules.TableName, "apart")
		if err := n.chained("CHECK", TypeFirewall, p, policy("isolated")); codeOf(err) != 104 {
			t.Errorf("without an element: %v", details(err))
		}
		n.nft("flush", "ruleset")
		if err := n.chained("CHECK", TypeFirewall, p, policy("same-bridge")); codeOf(err) != 104 {
			t.Errorf("flushed: %v", details(err))
		}
		if err := n.chained("CHECK", TypeFirewall, p, nil); err != nil {
			t.Errorf("without a policy: %v", details(err))
		}
	})
}

// TestChainedNeed refuses plugins that are the first of their chain, or follow one that
// made no pair of interfaces.
func TestChainedNeed(t *testing.T) {
	n := newNode(t, ModeRouted)
	p := n.pod("one", nil)
	limits := map[string]any{"ingressRate": 8000, "ingressBurst": 8000}
	for kind, fields := range map[string]map[string]any{TypeBandwidth: limits, TypeTuning: nil, TypeFirewall: nil, TypePortmap: nil} {
		for _, command := range []string{"ADD", "CHECK"} {
			if err := n.chained(command, kind, p, fields); codeOf(err) != types.ErrInvalidNetworkConfig || !strings.Contains(details(err).Error(), "must follow another plugin") {
				t.Errorf("%s of %s: %v", command, kind, details(err))
			}
		}
		// DEL of what was never made.
		if err := n.chained("DEL", kind, p, fields); err != nil {
			t.Errorf("DEL of %s: %v", kind, details(err))
		}
	}

	p.raw = json.RawMessage(`{"cniVersion":"1.1.0","interfaces":[{"name":"lo"}],"ips":[{"address":"10.77.0.2/24"}]}`)
	// A pair whose other end is not the node's.
	n.inside(p.ns, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "other"})
	})
	if err := n.chained("ADD", TypeBandwidth, p, limits); codeOf(err) != types.ErrInvalidNetworkConfig || !strings.Contains(details(err).Error(), "pair (veth)") {
		t.Errorf("without a pair: %v", details(err))
	}
}

// TestTuningLetsGo detaches a pod that keeps its interface from being restored.
func TestTuningLetsGo(t *testing.T) {
	n := newNode(t, ModeRouted)
	p := n.add(n.pod("one", nil))
	dir := t.TempDir()
	fields := map[string]any{"dataDir": dir, "mtu": 1300}
	if err := n.chained("ADD", TypeTuning, p, fields); err != nil {
		t.Fatal(details(err))
	}
	file := filepath.Join(dir, "one_eth0.json")
	if err := os.WriteFile(file, []byte(`{"mtu":1,"mac":"01:00:00:00:00:00"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.chained("DEL", TypeTuning, p, fields); err != nil {
		t.Error(details(err))
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the file is left")
	}

	// And one whose interface and namespace are gone.
	if err := n.chained("ADD", TypeTuning, p, fields); err != nil {
		t.Fatal(details(err))
	}
	n.inside(p.ns, func() error { return withLink("eth0", netlink.LinkDel) })
	if err := n.chained("DEL", TypeTuning, p, fields); err != nil {
		t.Error(details(err))
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.path = "/nowhere"
	if err := n.chained("DEL", TypeTuning, p, fields); err != nil {
		t.Error(details(err))
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	n.del(p)
}
