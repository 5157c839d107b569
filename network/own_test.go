package network_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crisp/network"
	"crisp/network/netns"
	"crisp/test/testkit"
)

// TestEitherTakesOver attaches pods with one implementation, and lets the other one
// attach more in the same subnet: no address is assigned twice, and pods are detached
// by what attached them.
func TestEitherTakesOver(t *testing.T) {
	for _, first := range []string{reference, ownBridge} {
		t.Run(first, func(t *testing.T) {
			m := newMachine(t, reference)
			m.configure(first)
			second := reference
			if first == reference {
				second = ownBridge
			}

			var pods []network.Attachment
			seen := map[string]bool{}
			for i := range 6 {
				if i == 3 {
					m.configure(second)
				}
				pod, _ := m.pod(fmt.Sprint("pod", i))
				for _, ip := range m.attach(pod).IPs {
					if seen[ip.String()] {
						t.Errorf("%s is assigned twice", ip)
					}
					seen[ip.String()] = true
				}
				pods = append(pods, pod)
			}

			for _, pod := range pods {
				m.detach(pod)
			}
			m.clean()
		})
	}
}

// TestOwnRefusesUnknownFields reports a configuration that nothing could be attached
// with before a pod is started.
func TestOwnRefusesUnknownFields(t *testing.T) {
	m := newMachine(t, ownBridge)
	if err := m.net.Ready(); err != nil {
		t.Fatal(err)
	}

	path := filepath.Join(m.confDir, "10-test.conflist")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), `"ipMasq"`, `"ipMask"`, 1))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}

	for name, err := range map[string]error{"ready": m.net.Ready(), "status": m.net.Status(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), "ipMask") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// BenchmarkAttach measures ADD and DEL of pods with a host port, with few and with
// many other pods, by the reference plugins and by the own network: the median in
// milliseconds, and the tenth and ninetieth percentile.
func BenchmarkAttach(b *testing.B) {
	for _, kind := range []string{reference, ownBridge, ownRouted} {
		others := []int{10, 1000}
		if kind == reference {
			others = []int{10, 100} // a thousand would take minutes
		}
		for _, others := range others {
			b.Run(fmt.Sprintf("%s/%d", kind, others), func(b *testing.B) { benchmarkAttach(b, kind, others) })
		}
	}
}

func benchmarkAttach(b *testing.B, kind string, others int) {
	m := newMachine(b, kind)
	if kind == reference {
		if _, err := exec.LookPath("iptables"); err != nil {
			testkit.Skip(b, "iptables", err.Error())
		}
	}

	number := 0
	next := func() network.Attachment {
		number++
		pod, _ := m.pod(fmt.Sprint("pod", number))
		pod.PortMappings = []network.PortMapping{{Protocol: "TCP", ContainerPort: 80, HostPort: int32(20000 + number)}}
		return pod
	}
	for range others {
		m.quietly(next(), m.attachQuietly)
	}

	var adds, dels []time.Duration
	for b.Loop() {
		pod := next()
		adds = append(adds, m.quietly(pod, m.attachQuietly))
		dels = append(dels, m.quietly(pod, func(a network.Attachment) error { return m.net.Detach(b.Context(), a) }))
	}
	for name, times := range map[string][]time.Duration{"ADD": adds, "DEL": dels} {
		slices.Sort(times)
		for _, percent := range []int{10, 50, 90} {
			b.ReportMetric(float64(times[(len(times)-1)*percent/100].Microseconds())/1000, fmt.Sprintf("%s-p%d-ms", name, percent))
		}
	}
}

func (m *machine) attachQuietly(a network.Attachment) error {
	_, err := m.net.Attach(m.t.Context(), a)
	return err
}

// quietly measures f inside the node.
func (m *machine) quietly(a network.Attachment, f func(network.Attachment) error) time.Duration {
	m.t.Helper()
	var took time.Duration
	err := netns.Do(m.host, func() error {
		began := time.Now()
		err := f(a)
		took = time.Since(began)
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return took
}
