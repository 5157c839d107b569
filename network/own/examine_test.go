package own

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"crisp/network/netns"
	"crisp/network/own/link"
)

// examine examines the node, on which the pods given are attached.
func (n *node) examine(change func(*Examination), pods ...*pod) []Finding {
	n.t.Helper()
	e := Examination{
		Configs: [][]byte{n.request("CHECK", nil).Config},
		Attached: func() ([]Call, error) {
			var calls []Call
			for _, p := range pods {
				calls = append(calls, n.request("CHECK", p))
			}
			return calls, nil
		},
		Hold:    func(context.Context, string) (func(), bool) { return func() {}, true },
		Private: func(dir string) bool { return dir == n.leases },
		Foreign: func(string, string) bool { return false },
	}

	if change != nil {
		change(&e)
	}
	findings, err := n.plugin.Examine(n.t.Context(), e)
	if err != nil {
		n.t.Fatal(err)
	}
	return findings
}

func repair(e *Examination) { e.Repair = true }

// wrong returns the findings that are not OK, a line each.
func wrong(findings []Finding) (lines []string) {
	for _, f := range findings {
		if f.Level != LevelOK {
			lines = append(lines, fmt.Sprintf("%s %s: %s. %s repaired=%v", f.Level, f.About, f.Text, f.Advice, f.Repaired))
		}
	}
	return lines
}

// wantWrong expects one finding for each text, in any order, and no other.
func wantWrong(t *testing.T, what string, findings []Finding, texts ...string) {
	t.Helper()
	lines := wrong(findings)
	if len(lines) != len(texts) {
		t.Errorf("%s: %d findings, want %d:\n%s", what, len(lines), len(texts), strings.Join(lines, "\n"))
		return
	}
	for _, text := range texts {
		if !strings.Contains(strings.Join(lines, "\n"), text) {
			t.Errorf("%s: nothing says %q:\n%s", what, text, strings.Join(lines, "\n"))
		}
	}
}

// TestExamineFlushed flushes the packet filter under pods, and has it repaired.
func TestExamineFlushed(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		web := n.add(n.pod("web", mappings(mapping(8080, 80, "tcp", ""))))
		client := n.add(n.pod("client", nil))
		n.serve(web.ns, 80)
		n.serve(n.outside, 9000)
		wantWrong(t, "intact", n.examine(nil, web, client))

		n.nft("flush", "ruleset")
		if reaches(n.outside, nodeV4+":8080") {
			t.Fatal("the host port works without rules")
		}
		findings := n.examine(nil, web, client)
		wantWrong(t, "flushed", findings, "FAIL network test: the table crisp-net has lost its rules", "FAIL pod web: the table crisp-net has lost its host ports")
		wantWrong(t, "repair", n.examine(repair, web, client), "repaired=true", "repaired=true")
		wantWrong(t, "repaired", n.examine(nil, web, client))

		if _, err := ask(n.outside, "tcp", nodeV4+":8080"); err != nil {
			t.Errorf("host port after the repair: %v", err)
		}
		if seen, err := ask(client.ns, "tcp", outsideV4+":9000"); err != nil || seen != nodeV4 {
			t.Errorf("outside after the repair: seen as %q, %v", seen, err)
		}
		n.del(web)
		n.del(client)
		n.clean()
	})
}

// TestExamineChanged changes how pods are masqueraded while one runs: the rules are
// those of the present configuration if it has any, and a repair leaves them.
func TestExamineChanged(t *testing.T) {
	for key, value := range map[string]any{"ipMasq": false, "nonMasqueradeCIDRs": []string{"198.51.100.0/24"}} {
		bothModes(t, func(t *testing.T, n *node) {
			old := n.add(n.pod("old", mappings(mapping(8080, 80, "tcp", ""))))
			before := n.request("CHECK", old)
			n.conf[key] = value
			recent := n.add(n.pod("recent", nil))
			both := func(e *Examination) {
				repair(e)
				e.Attached = func() ([]Call, error) { return []Call{before, n.request("CHECK", recent)}, nil }
			}

			wantWrong(t, "changed", n.examine(both))
			n.nft("flush", "ruleset")
			wantWrong(t, "flushed", n.examine(both), "repaired=true", "repaired=true")
			wantWrong(t, "repaired", n.examine(both))
			n.del(old)
			n.del(recent)
			n.clean()
		})
	}
}

// otherFamily is damage that IPv4 does not suffer from.
const otherFamily = "bridge address of IPv6"

// TestExamineBroken breaks each part of an attachment, and has it repaired.
func TestExamineBroken(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		p := n.add(n.pod("web", mappings(mapping(8080, 80, "tcp", ""))))
		n.serve(p.ns, 80)
		end := link.Name("web", "eth0")
		lease := filepath.Join(n.leases, "test", p.addr(true))
		routed := n.conf["mode"] == ModeRouted

		for name, test := range map[string]struct {
			damage func() error
			text   string
			skip   bool
		}{
			"forwarding": {damage: func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) }, text: "net.ipv4.ip_forward is 0"},
			"lease":      {damage: func() error { return os.Remove(lease) }, text: "no lease says that it has [" + p.addr(true)},
			"down":       {damage: func() error { return withLink(end, netlink.LinkSetDown) }, text: "interface " + end + " is down"},
			"route": {skip: !routed, text: "lost the route to " + p.addr(true), damage: func() error {
				return netlink.RouteDel(&netlink.Route{Dst: netlink.NewIPNet(p.result.IPs[0].Address.IP), Scope: netlink.SCOPE_LINK})
			}},
			"port":           {skip: routed, damage: func() error { return withLink(end, netlink.LinkSetNoMaster) }, text: end + " is detached"},
			"bridge":         {skip: routed, damage: func() error { return withLink(DefaultBridge, netlink.LinkDel) }, text: "the node has no interface " + DefaultBridge},
			"bridge down":    {skip: routed, damage: func() error { return withLink(DefaultBridge, netlink.LinkSetDown) }, text: "the bridge " + DefaultBridge + " is down"},
			"bridge address": {skip: routed, damage: func() error { return withoutAddr(DefaultBridge, "10.77.0.1/24") }, text: "has lost the address 10.77.0.1/24"},
			otherFamily:      {skip: routed, damage: func() error { return withoutAddr(DefaultBridge, "fd77::1/64") }, text: "has lost the address fd77::1/64"},
		} {
			if test.skip {
				continue
			}
			n.inside(n.host, test.damage)
			found := strings.Join(wrong(n.examine(nil, p)), "\n")
			if !strings.Contains(found, test.text) || !strings.Contains(found, "FAIL") {
				t.Errorf("%s: found %q", name, found)
			}
			if name != "lease" && name != otherFamily && reaches(n.outside, nodeV4+":8080") {
				t.Errorf("%s: the host port still works", name)
			}

			n.examine(repair, p)
			wantWrong(t, name+", repaired", n.examine(nil, p))
			for _, to := range []string{nodeV4 + ":8080", "[" + nodeV6 + "]:8080"} {
				// A port of a bridge needs a moment.
				worked := false
				for end := time.Now().Add(5 * time.Second); !worked && time.Now().Before(end); {
					worked = reaches(n.outside, to)
				}
				if !worked {
					t.Errorf("%s, repaired: %s does not work", name, to)
				}
			}
		}
	})
}

// withoutAddr removes an address.
func withoutAddr(name, text string) error {
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		return err
	}
	return withLink(name, func(l netlink.Link) error { return netlink.AddrDel(l, addr) })
}

// TestExamineLimits finds bandwidth limits that are lost, and has them set again.
func TestExamineLimits(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		p := n.add(n.pod("slow", map[string]any{"bandwidth": map[string]any{"ingressRate": 8_000_000, "egressRate": 4_000_000}}))
		wantWrong(t, "intact", n.examine(nil, p))
		for device, text := range map[string]string{
			link.Name("slow", "eth0"): "has lost its bandwidth limit", link.QueueName("slow", "eth0"): "has lost its bandwidth limit",
		} {
			n.inside(n.host, func() error {
				return withLink(device, func(l netlink.Link) error {
					return netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT}})
				})
			})
			if _, err := n.call("CHECK", p, nil); codeOf(err) != 104 {
				t.Errorf("CHECK: %v", err)
			}
			wantWrong(t, "lost", n.examine(nil, p), "FAIL pod slow: network of the pod was changed: interface "+device+" "+text)
			wantWrong(t, "repair", n.examine(repair, p), "repaired=true")
			wantWrong(t, "repaired", n.examine(nil, p))
		}

		n.inside(n.host, func() error { return withLink(link.QueueName("slow", "eth0"), netlink.LinkDel) })
		wantWrong(t, "repair", n.examine(repair, p), "repaired=true")
		wantWrong(t, "repaired", n.examine(nil, p))
		n.del(p)
		n.clean()
	})
}

// withLink does something to an interface.
func withLink(name string, do func(netlink.Link) error) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return do(l)
}

// TestExamineHopeless finds what only a new pod repairs.
func TestExamineHopeless(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		thief, robbed := n.add(n.pod("thief", nil)), n.add(n.pod("robbed", nil))
		lease := filepath.Join(n.leases, "test", robbed.addr(true))
		if err := os.WriteFile(lease, []byte("another\r\neth0"), 0o600); err != nil {
			t.Fatal(err)
		}
		n.inside(thief.ns, func() error {
			return withLink("eth0", func(l netlink.Link) error {
				return netlink.AddrDel(l, &netlink.Addr{IPNet: &thief.result.IPs[0].Address})
			})
		})

		notPrivate := func(e *Examination) { e.Repair, e.Private = true, func(string) bool { return false } }
		wantWrong(t, "damaged", n.examine(notPrivate, thief, robbed),
			"FAIL pod thief: network of the pod was changed: eth0 has lost the address",
			"FAIL pod robbed: no lease says that it has ["+robbed.addr(true),
			"the pod another, of which this daemon knows nothing")
		if got, err := os.ReadFile(lease); err != nil || !strings.HasPrefix(string(got), "another") {
			t.Errorf("the lease of another pod is %q, %v", got, err)
		}

		// One address for two pods.
		copied := *thief
		copied.id = "copied"
		if found := strings.Join(wrong(n.examine(nil, thief, &copied)), "\n"); !strings.Contains(found, "which pod thief has as well") {
			t.Errorf("two pods with one address: %s", found)
		}
	})
}

// TestExamineOrphans finds and removes what is left of pods without a record, and leaves
// what may belong to another runtime.
func TestExamineOrphans(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		kept := n.add(n.pod("kept", mappings(mapping(8080, 80, "tcp", ""))))
		n.add(n.pod("orphan", mappings(mapping(8081, 80, "tcp", ""))))
		end := link.Name("orphan", "eth0")
		shared := func(e *Examination) { e.Repair, e.Private = true, func(string) bool { return false } }
		count := func() (leases, elements int) {
			return len(n.leased()), strings.Count(n.nft("list", "ruleset"), "test/"+end)
		}

		leases, elements := count()
		if found := strings.Join(wrong(n.examine(shared, kept)), "\n"); !strings.Contains(found, "orphan, of which this daemon knows nothing") || !strings.Contains(found, "--sole") {
			t.Errorf("in a directory that others use: %s", found)
		}
		foreign := func(e *Examination) {
			e.Repair, e.Sole = true, true
			e.Foreign = func(network, id string) bool { return network == "test" && id == "orphan" }
		}
		wantWrong(t, "of another runtime", n.examine(foreign, kept))
		wantWrong(t, "not asked to repair", n.examine(nil, kept), "orphan, which does not exist", "orphan, which does not exist")
		if l, e := count(); l != leases || e != elements || e == 0 {
			t.Errorf("%d leases of %d and %d elements of %d are left of a pod that is not certainly gone", l, leases, e, elements)
		}

		found := n.examine(repair, kept)
		wantWrong(t, "repair", found, "repaired=true", "repaired=true")
		if l, e := count(); l != leases/2 || e != 0 {
			t.Errorf("%d leases and %d elements after the repair", l, e)
		}
		wantWrong(t, "repaired", n.examine(nil, kept))
		n.serve(kept.ns, 80)
		if _, err := ask(n.outside, "tcp", nodeV4+":8080"); err != nil {
			t.Errorf("the pod that is kept: %v", err)
		}
		n.del(kept)
		n.clean()
	})
}

// TestExamineRemains finds single things that a crash or an administrator may leave.
func TestExamineRemains(t *testing.T) {
	bothModes(t, func(t *testing.T, n *node) {
		p := n.add(n.pod("web", mappings(mapping(8080, 80, "tcp", ""))))
		torn := filepath.Join(n.leases, "test", "10.77.0.99")
		if err := os.WriteFile(torn, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		wantWrong(t, "torn lease", n.examine(repair, p), "the lease of 10.77.0.99 has no owner")
		if _, err := os.Stat(torn); err == nil {
			t.Error("the torn lease is left")
		}

		// The interface and the leases are gone, the elements are not.
		n.inside(n.host, func() error { return withLink(link.Name("web", "eth0"), netlink.LinkDel) })
		for _, addr := range n.leased() {
			if err := os.Remove(filepath.Join(n.leases, "test", addr)); err != nil {
				t.Fatal(err)
			}
		}
		wantWrong(t, "elements", n.examine(repair), "lead to a pod that does not exist")

		// An interface without a lease may be another daemon's.
		q := n.add(n.pod("other", nil))
		for _, addr := range n.leased() {
			if err := os.Remove(filepath.Join(n.leases, "test", addr)); err != nil {
				t.Fatal(err)
			}
		}
		end := link.Name(q.id, "eth0")
		wantWrong(t, "interface", n.examine(repair), end+" was made for the pod other")
		wantWrong(t, "interface, sole", n.examine(func(e *Examination) { e.Repair, e.Sole = true, true }), "repaired=true")
		wantWrong(t, "repaired", n.examine(nil))
		n.clean()
	})
}

// TestExamineForeign loads rules of other programs, and compares what is said of them
// with what happens to packets.
func TestExamineForeign(t *testing.T) {
	const forward = `chain FORWARD { type filter hook forward priority 0; policy drop; `
	for name, test := range map[string]struct {
		rules string
		// drops says whether packets to outside are dropped, and text what is said.
		drops bool
		text  string
	}{
		"Docker": {rules: "table ip filter { chain DOCKER-USER { return; }; " + forward + `jump DOCKER-USER; iifname "docker0" accept; }; }`, drops: true,
			text: "FAIL network test: table ip filter, chain FORWARD: its policy drops packets from pods to outside. with Docker: iptables -I DOCKER-USER -s 10.77.0.0/24"},
		"Docker, accepted": {rules: "table ip filter { chain DOCKER-USER { ip saddr 10.77.0.0/24 accept; ip daddr 10.77.0.0/24 accept; }; " + forward + "jump DOCKER-USER; }; }"},
		"ufw": {rules: "table ip filter { chain ufw-reject-forward { reject; }; " + forward + "ct state established,related accept; jump ufw-reject-forward; }; }", drops: true,
			text: "chain ufw-reject-forward: rule 1 (handle"},
		"firewalld": {rules: "table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; ct state established accept; ct status dnat accept; reject with icmpx type admin-prohibited; }; }", drops: true,
			text: "firewall-cmd --permanent --zone=trusted --add-source=10.77.0.0/24"},
		"another interface": {rules: `table ip filter { chain FORWARD { type filter hook forward priority 0; iifname "tun*" drop; }; }`},
	} {
		for _, mode := range []string{ModeBridge, ModeRouted} {
			t.Run(name+"/"+mode, func(t *testing.T) {
				n := newNode(t, mode)
				p := n.add(n.pod("client", nil))
				defer n.del(p)
				n.serve(n.outside, 9000)
				n.filter(test.rules)

				if test.drops && reaches(p.ns, outsideV4+":9000") {
					t.Fatal("the rules drop nothing")
				}
				if !test.drops {
					if _, err := ask(p.ns, "tcp", outsideV4+":9000"); err != nil {
						t.Fatalf("to outside: %v", err)
					}
				}
				found := strings.Join(wrong(n.examine(nil, p)), "\n")
				if test.text == "" && found != "" || !strings.Contains(found, test.text) {
					t.Errorf("found\n%s\nwant %q", found, test.text)
				}
			})
		}
	}
}

// filter loads rules of nft in the node.
func (n *node) filter(rules string) {
	n.t.Helper()
	n.inside(n.host, func() error {
		cmd := exec.CommandContext(n.t.Context(), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
}

// reaches reports whether a connection is made within a moment.
func reaches(from *os.File, to string) bool {
	var conn net.Conn
	err := netns.Do(from, func() error {
		var err error
		conn, err = net.DialTimeout("tcp", to, 500*time.Millisecond)
		return err
	})
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// TestExamineEnded leaves alone a pod whose namespace is gone.
func TestExamineEnded(t *testing.T) {
	n := newNode(t, ModeRouted)
	p := n.add(n.pod("ended", mappings(mapping(8080, 80, "tcp", ""))))
	if err := netns.Unpin(p.path); err != nil {
		t.Fatal(err)
	}
	wantWrong(t, "ended", n.examine(repair, p), "WARN pod ended: its network namespace is gone")
	n.del(p)
	n.clean()
}
