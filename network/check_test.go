package network_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"crisp/network"
	"crisp/network/netns"
	"crisp/network/own"
)

// options are the options of the machine's network.
func (m *machine) options() network.Options {
	return network.Options{ConfDir: m.confDir, BinDirs: m.bins, CacheDir: m.cache, Own: true, CommonCache: m.common, Builtins: m.builtins}
}

// check examines the machine as another process does.
func (m *machine) check(how network.Check) []own.Finding {
	m.t.Helper()
	var found []own.Finding
	err := netns.Do(m.host, func() error {
		i, err := network.Inspect(m.options())
		if err != nil {
			return err
		}
		defer i.Close()
		found, err = i.Check(m.t.Context(), how)
		return err
	})
	if err != nil {
		m.t.Error(err)
	}
	return slices.DeleteFunc(found, func(f own.Finding) bool { return f.Level == own.LevelOK })
}

func (m *machine) flush() {
	m.t.Helper()
	err := netns.Do(m.host, func() error {
		out, err := exec.CommandContext(m.t.Context(), "nft", "flush", "ruleset").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		m.t.Error(err)
	}
}

// TestCheck examines and repairs pods from outside of the daemon, and by the daemon.
func TestCheck(t *testing.T) {
	for _, kind := range []string{ownBridge, ownRouted} {
		t.Run(kind, func(t *testing.T) {
			m := newMachine(t, kind)
			pod, ns := m.pod("web")
			port := echo(t, ns)
			pod.PortMappings = []network.PortMapping{{ContainerPort: int32(port), HostPort: 18080}}
			m.attach(pod)
			if found := m.check(network.Check{}); len(found) > 0 {
				t.Errorf("intact: %+v", found)
			}

			m.flush()
			if found := m.check(network.Check{}); len(found) != 2 {
				t.Errorf("flushed: %+v", found)
			}
			m.check(network.Check{Repair: true})
			if err := talk(m.host, "10.77.0.1:18080"); err != nil {
				t.Errorf("repaired: %v", err)
			}
			m.flush()
			if _, err := m.net.Check(t.Context(), network.Check{Repair: true}); err != nil {
				t.Error(err)
			}
			if err := talk(m.host, "10.77.0.1:18080"); err != nil {
				t.Errorf("repaired by the daemon: %v", err)
			}
			m.detach(pod)
			m.clean()
		})
	}
}

// TestCheckOthers asks the reference plugins.
func TestCheckOthers(t *testing.T) {
	m := newMachine(t, reference)
	pod, ns := m.pod("web")
	m.attach(pod)
	if found := m.check(network.Check{}); len(found) > 0 {
		t.Errorf("intact: %+v", found)
	}
	if err := netns.Do(ns, func() error { return exec.CommandContext(t.Context(), "ip", "address", "flush", "eth0").Run() }); err != nil {
		t.Fatal(err)
	}
	if found := m.check(network.Check{}); len(found) != 1 || found[0].Level != own.LevelFail || !strings.Contains(found[0].Text, "bridge") {
		t.Errorf("without addresses: %+v", found)
	}
	m.detach(pod)
}

// TestCheckLeavesOthersPods leaves what another runtime has recorded.
func TestCheckLeavesOthersPods(t *testing.T) {
	m := newMachine(t, ownRouted)
	pod, _ := m.pod("other")
	m.attach(pod)
	record := filepath.Join(m.cache, "attachments/other.json")
	text, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	if found := m.check(network.Check{}); len(found) != 2 {
		t.Errorf("without a record: %+v", found)
	}

	// As libcni writes it for containerd and CRI-O.
	cached, err := json.Marshal(map[string]string{"kind": "cniCacheV1", "containerId": "other", "ifName": "eth0", "networkName": "test"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(m.common, "results"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.common, "results/test-other-eth0"), cached, 0o600); err != nil {
		t.Fatal(err)
	}
	if found := m.check(network.Check{Repair: true, Sole: true}); len(found) > 0 {
		t.Errorf("a pod of another runtime: %+v", found)
	}

	if err := os.WriteFile(record, text, 0o600); err != nil {
		t.Fatal(err)
	}
	m.detach(pod)
	m.clean()
}

// TestCheckBesideTheDaemon repairs from outside, again and again, while the daemon
// attaches and detaches pods and somebody flushes the packet filter: nothing that is
// alive is removed, and nothing that is gone comes back.
func TestCheckBesideTheDaemon(t *testing.T) {
	for _, kind := range []string{ownBridge, ownRouted} {
		t.Run(kind, func(t *testing.T) {
			m := newMachine(t, kind)
			const clients, rounds = 4, 15
			pods := make([][]network.Attachment, clients)
			for c := range clients {
				for r := range rounds {
					pod, _ := m.pod(fmt.Sprintf("pod-%d-%d", c, r))
					pod.PortMappings = []network.PortMapping{{ContainerPort: 80, HostPort: int32(20000 + c)}}
					pods[c] = append(pods[c], pod)
				}
			}

			stop := make(chan struct{})
			var repairs, churn sync.WaitGroup
			repairs.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					m.flush()
					m.check(network.Check{Repair: true, Sole: true})
				}
			})
			for c := range clients {
				churn.Go(func() {
					for _, pod := range pods[c] {
						if _, err := m.net.Attach(t.Context(), pod); err != nil {
							t.Errorf("attach %s: %v", pod.ID, err)
						}
						if err := m.net.Detach(t.Context(), pod); err != nil {
							t.Errorf("detach %s: %v", pod.ID, err)
						}
					}
				})
			}
			churn.Wait()
			close(stop)
			repairs.Wait()

			if found := m.check(network.Check{}); len(found) > 0 {
				t.Errorf("at the end: %+v", found)
			}
			m.released()
		})
	}
}
