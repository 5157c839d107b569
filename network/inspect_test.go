package network_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"crisp/network"
	"crisp/network/netns"
	"crisp/network/own"
)

// inspect runs f with an inspector of the machine's records.
func (m *machine) inspect(f func(*network.Inspector) error) {
	m.t.Helper()
	err := netns.Do(m.host, func() error {
		i, err := network.Inspect(network.Options{ConfDir: m.confDir, CacheDir: m.cache})
		if err != nil {
			return err
		}
		defer i.Close()
		return f(i)
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// show lists attachments of a pod, of all for "".
func (m *machine) show(pod string) []own.State {
	m.t.Helper()
	var list []own.State
	m.inspect(func(i *network.Inspector) error {
		var err error
		list, err = i.Show(pod)
		return err
	})
	return list
}

// TestShow lists attachments as they are: with their host ports, and without what is
// lost.
func TestShow(t *testing.T) {
	for _, kind := range []string{ownBridge, ownRouted} {
		t.Run(kind, func(t *testing.T) {
			m := newMachine(t, kind)
			if list := m.show(""); len(list) > 0 {
				t.Fatalf("before the first pod: %+v", list)
			}
			web, _ := m.pod("web")
			web.PortMappings = []network.PortMapping{{ContainerPort: 80, HostPort: 8080}, {Protocol: "UDP", ContainerPort: 53, HostPort: 5353, HostIP: "192.0.2.1"}}
			other, _ := m.pod("other")
			result := m.attach(web)
			m.attach(other)

			if list := m.show(""); len(list) != 2 {
				t.Errorf("all are %+v", list)
			}
			v4, v6 := result.IPs[0], result.IPs[1]
			want := []string{"tcp *:8080 > " + v4.String() + ":80", "tcp *:8080 > [" + v6.String() + "]:80", "udp 192.0.2.1:5353 > " + v4.String() + ":53"}
			list := m.show("default/web")
			if len(list) != 1 {
				t.Fatalf("web is %+v", list)
			}
			s := list[0]
			if s.Namespace != "default" || s.Name != "web" || s.ID != "web" || s.Mode != kind || s.Network != "test" || s.NetNS != web.NetNS || !s.HostPresent || !s.AttachFinished {
				t.Errorf("web is %+v", s)
			}
			if !slices.Equal(s.HostPorts, want) || !slices.Equal(s.Addresses, []own.Address{{Address: v4, Leased: true}, {Address: v6, Leased: true}}) {
				t.Errorf("web is %+v, want ports %q", s, want)
			}
			if list := m.show("default/nothing"); len(list) > 0 {
				t.Errorf("a pod that does not exist is %+v", list)
			}

			if err := os.Remove(filepath.Join(m.leases, "test", v4.String())); err != nil {
				t.Fatal(err)
			}
			if a := m.show("web")[0].Addresses; a[0].Leased || !a[1].Leased {
				t.Errorf("without a lease of %s: %+v", v4, a)
			}
			m.detach(web)
			m.detach(other)
			if list := m.show(""); len(list) > 0 {
				t.Errorf("after the last pod: %+v", list)
			}
		})
	}
}

// TestInspectMakesNothing looks at a node on which crisp has never run.
func TestInspectMakesNothing(t *testing.T) {
	m := newMachine(t, ownBridge)
	m.cache = filepath.Join(t.TempDir(), "cni")
	if list := m.show(""); len(list) > 0 {
		t.Errorf("attachments are %+v", list)
	}
	if _, err := os.Stat(m.cache); err == nil {
		t.Error("the directory of records was made")
	}
}
