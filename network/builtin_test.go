package network_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
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
