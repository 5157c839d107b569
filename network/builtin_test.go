package network_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"crisp/network"
	"crisp/network/netns"
	"crisp/network/own"
)

// serve changes which reference types the machine's network serves itself.
func (m *machine) serve(types ...string) {
	m.t.Helper()
	m.net.Close()
	m.builtins = types
	err := netns.Do(m.host, func() error {
		var err error
		m.net, err = network.Open(m.options())
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(m.net.Close)
}

// write installs a network configuration.
func (m *machine) write(conf string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.confDir, "10-test.conflist"), []byte(conf), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// TestBuiltinsTakeOver detaches pods that the programs attached, after crisp has begun to
// serve their types, and the other way round: what attached a pod checks and detaches it,
// also where the configuration's version passes no result on.
func TestBuiltinsTakeOver(t *testing.T) {
	for _, version := range []string{"1.1.0", "0.3.1"} {
		for _, first := range []string{"programs", "own"} {
			t.Run(version+"/"+first, func(t *testing.T) {
				m := newMachine(t, reference)
				m.write(strings.Replace(fmt.Sprintf(bridgeChain, m.leases), "1.1.0", version, 1))
				m.takeOver(first == "own", version != "0.3.1")
			})
		}
	}
}

// takeOver attaches a pod by crisp's own code or not, and detaches it after the opposite is
// configured. checks says that the configuration's version has CHECK.
func (m *machine) takeOver(served, checks bool) {
	m.t.Helper()
	before, after := []string(nil), own.ReferenceTypes()
	if served {
		before, after = after, before
	}
	m.serve(before...)
	pod, ns := m.pod("before")
	port := echo(m.t, ns)
	pod.PortMappings = []network.PortMapping{{ContainerPort: int32(port), HostPort: 18080}}
	result := m.attach(pod)

	m.serve(after...)
	calls := m.plugins()
	if err := netns.Do(m.host, func() error { return m.net.CheckPod(m.t.Context(), pod.ID) }); err != nil {
		m.t.Errorf("CHECK: %v", err)
	}
	if err := talk(m.host, "10.77.0.1:18080"); err != nil {
		m.t.Errorf("host port after the change: %v", err)
	}
	if found := m.check(network.Check{}); len(found) > 0 {
		m.t.Errorf("found %+v", found)
	}
	m.detach(pod)
	want := []string{"portmap DEL", "bridge DEL"}
	if checks {
		want = slices.Concat([]string{"bridge CHECK", "portmap CHECK", "bridge CHECK", "portmap CHECK"}, want)
	}
	if served {
		want = nil
	}
	if got := calls(); !slices.Equal(got, want) {
		m.t.Errorf("programs were called for %q, want %q", got, want)
	}
	if err := talkQuickly(m.host, "10.77.0.1:18080"); err == nil {
		m.t.Error("the host port works after DEL")
	}

	other, _ := m.pod("after")
	if second := m.attach(other); second.IPs[0] == result.IPs[0] {
		m.t.Errorf("%s is assigned again at once", second.IPs[0])
	}
	m.detach(other)
	m.clean()
}

// TestBuiltinsDetachProgramsPods detaches a pod that the program bridge attached, as
// crisp-net does that is installed in its place: the pod's interface and leases go.
func TestBuiltinsDetachProgramsPods(t *testing.T) {
	for _, version := range []string{"1.1.0", "0.3.1"} {
		for _, named := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/with result %v", version, named), func(t *testing.T) {
				m := newMachine(t, reference)
				kept, _ := m.pod("kept")
				gone, ns := m.pod("gone")
				conf := map[string]any{
					"cniVersion": version, "name": "test", "type": own.TypeBridge, "bridge": "br0", "isGateway": true,
					"ipam": map[string]any{"type": "host-local", "dataDir": m.leases, "subnet": "10.77.0.0/24"},
				}
				m.program("ADD", kept, conf)
				result := m.program("ADD", gone, conf)
				// What is not the plugin's is left, and a pod without a lease has nothing of it.
				foreign, foreignNS := m.pod("foreign")
				err := netns.Do(foreignNS, func() error {
					return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "theirs", PeerNamespace: netlink.NsFd(m.host.Fd())})
				})
				if err != nil {
					t.Fatal(err)
				}

				if named {
					conf["prevResult"] = json.RawMessage(result)
				}
				m.own("DEL", gone, conf)
				delete(conf, "prevResult")
				m.own("DEL", foreign, conf)
				if hasLink(ns, "eth0") == nil {
					t.Error("the pod's interface is left")
				}
				if err := errors.Join(hasLink(foreignNS, "eth0"), hasLink(m.host, "theirs")); err != nil {
					t.Errorf("a foreign interface: %v", err)
				}
				if _, err := os.Stat(filepath.Join(m.leases, "test", "10.77.0.2")); err != nil {
					t.Errorf("lease of the pod that stays: %v", err)
				}

				m.own("DEL", kept, conf)
				m.settled("br0", "theirs")
				m.released()
			})
		}
	}
}

// program calls the reference plugin of a configuration as a runtime does, and returns its
// answer.
func (m *machine) program(command string, a network.Attachment, conf map[string]any) []byte {
	m.t.Helper()
	data, err := json.Marshal(conf)
	if err != nil {
		m.t.Fatal(err)
	}

	var out []byte
	err = netns.Do(m.host, func() error {
		cmd := exec.CommandContext(m.t.Context(), filepath.Join(m.bins[0], conf["type"].(string)))
		cmd.Stdin = bytes.NewReader(data)
		cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + a.ID, "CNI_NETNS=" + a.NetNS, "CNI_IFNAME=eth0", "CNI_PATH=" + m.bins[0], "PATH=" + os.Getenv("PATH")}
		var err error
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		m.t.Fatalf("%s %s: %v: %s", command, a.ID, err, out)
	}
	return out
}

// own calls crisp's plugin in the same way.
func (m *machine) own(command string, a network.Attachment, conf map[string]any) {
	m.t.Helper()
	data, err := json.Marshal(conf)
	if err != nil {
		m.t.Fatal(err)
	}
	err = netns.Do(m.host, func() error {
		p, err := own.Open(false)
		if err != nil {
			return err
		}
		call := own.Call{Type: conf["type"].(string), Command: command, ID: a.ID, NetNS: a.NetNS, IfName: "eth0", Config: data}
		_, err = p.Call(m.t.Context(), call)
		return errors.Join(err, p.Close())
	})
	if err != nil {
		m.t.Fatalf("%s %s: %v", command, a.ID, err)
	}
}

// plugins has calls of the programs noted, in wrappers around them, and returns what was
// noted.
func (m *machine) plugins() func() []string {
	m.t.Helper()
	dir, real := m.t.TempDir(), m.bins[0]
	notes := filepath.Join(dir, "notes")
	for _, name := range []string{"bridge", "portmap"} {
		script := fmt.Sprintf("#!/bin/sh\necho %s $CNI_COMMAND >>%s\nexec %s\n", name, notes, filepath.Join(real, name))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			m.t.Fatal(err)
		}
	}

	m.bins = []string{dir, real}
	m.serve(m.builtins...)
	return func() (calls []string) {
		text, err := os.ReadFile(notes)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			calls = append(calls, strings.TrimSpace(line))
		}
		return calls
	}
}

// TestSoleLeavesBuiltinPods changes to crisp's own plugin, and has what no pod has
// removed: pods that the types of the reference plugins attached are pods, too.
func TestSoleLeavesBuiltinPods(t *testing.T) {
	m := newMachine(t, reference)
	m.serve(own.ReferenceTypes()...)
	pod, ns := m.pod("before")
	port := echo(t, ns)
	pod.PortMappings = []network.PortMapping{{ContainerPort: int32(port), HostPort: 18080}}
	result := m.attach(pod)

	m.configure(ownBridge)
	for _, f := range m.check(network.Check{Repair: true, Sole: true}) {
		if f.Repaired || strings.Contains(f.Text, "nothing") || strings.Contains(f.Text, "not exist") {
			t.Errorf("found %+v", f)
		}
	}
	if err := talk(m.host, "10.77.0.1:18080"); err != nil {
		t.Errorf("host port after the check: %v", err)
	}
	other, _ := m.pod("after")
	if second := m.attach(other); second.IPs[0] == result.IPs[0] {
		t.Errorf("%s is assigned twice", second.IPs[0])
	}
	m.detach(pod)
	m.detach(other)
	m.clean()
}

// TestBuiltinsRefuse refuses what is not served, with the field's name, before a pod is
// started.
func TestBuiltinsRefuse(t *testing.T) {
	m := newMachine(t, reference)
	m.serve(own.ReferenceTypes()...)
	if err := m.net.Ready(); err != nil {
		t.Fatal(err)
	}

	for field, change := range map[string][2]string{
		"vlan":                      {`"isGateway":true`, `"isGateway":true,"vlan":5`},
		"macspoofchk":               {`"isGateway":true`, `"isGateway":true,"macspoofchk":true`},
		"enabledad":                 {`"isGateway":true`, `"isGateway":true,"enabledad":true`},
		"forceAddress":              {`"isGateway":true`, `"isGateway":true,"forceAddress":true`},
		"disableContainerInterface": {`"isGateway":true`, `"isGateway":true,"disableContainerInterface":true`},
		"ipMask":                    {`"ipMasq":true`, `"ipMask":true`},
		"resolvConf":                {`"type":"host-local"`, `"type":"host-local","resolvConf":"/etc/resolv.conf"`},
		"dhcp":                      {`"type":"host-local"`, `"type":"dhcp"`},
		"conditionsV4":              {`"type":"portmap"`, `"type":"portmap","conditionsV4":["-d","1.2.3.4"]`},
		"markMasqBit":               {`"type":"portmap"`, `"type":"portmap","markMasqBit":5`},
		"snat":                      {`"type":"portmap"`, `"type":"portmap","snat":false`},
		"promiscuous":               {`"isGateway":true`, `"isGateway":true,"promiscMode":true`},
		"cniVersion":                {`"cniVersion":"1.1.0"`, `"cniVersion":"0.2.0"`},
	} {
		m.write(strings.Replace(fmt.Sprintf(bridgeChain, m.leases), change[0], change[1], 1))
		if err := m.net.Ready(); err == nil || !strings.Contains(err.Error(), field) || !errors.Is(err, network.ErrNotReady) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestBuiltinLoopback answers as the program does.
func TestBuiltinLoopback(t *testing.T) {
	var seen []error
	for _, types := range [][]string{nil, own.ReferenceTypes()} {
		m := newMachine(t, reference)
		m.serve(types...)

		m.write(fmt.Sprintf(strings.Replace(bridgeChain, `{"type":"portmap"`, `{"type":"loopback"},{"type":"portmap"`, 1), m.leases))
		pod, ns := m.pod("one")
		err := netns.Do(ns, func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(lo)
		})
		if err != nil {
			t.Fatal(err)
		}
		m.attach(pod)
		seen = append(seen, talkQuickly(ns, fmt.Sprint("127.0.0.1:", echo(t, ns))))
		m.detach(pod)
		m.clean()
	}
	if seen[0] != nil || seen[1] != nil {
		t.Errorf("127.0.0.1 of the pod: by the program %v, by crisp %v", seen[0], seen[1])
	}
}
