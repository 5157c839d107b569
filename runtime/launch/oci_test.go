package launch

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crisp/runtime/plan"
)

// bundleSpec is a container without a pod, as in a config.json.
func bundleSpec(t testing.TB, script string) *specs.Spec {
	t.Helper()
	root, err := lower()
	if err != nil {
		t.Fatal(err)
	}
	s := (&lab{}).spec(script)
	s.Root, s.Hostname = &specs.Root{Path: root, Readonly: true}, "alone"
	s.Mounts[4] = specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=64k"}}
	for _, n := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
		setNamespace(s, n, "")
	}
	return s
}

func TestContainerWithoutPod(t *testing.T) {
	for name, own := range map[string]bool{"host ids": false, "own ids": true} {
		t.Run(name, func(t *testing.T) {
			b := newLab(t)
			s := bundleSpec(t, "hostname; echo $$; ls /sys/class/net; ifconfig lo | grep -c 127.0.0.1; cat /proc/sys/net/ipv4/ip_forward; ls -A /sys/firmware; wc -l </proc/self/uid_map; touch /dev/shm/x && echo shm; id -u")
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
			if own {
				setNamespace(s, specs.UserNamespace, "")
				s.Linux.UIDMappings, s.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: 0, Size: 1000}, {ContainerID: 1000, HostID: 100000, Size: 1000}}, podMap
			}

			want := "alone\n1\nlo\n1\n1\n1\nshm\n0\n"
			if own {
				want = "alone\n1\nlo\n1\n1\n2\nshm\n0\n"
			}
			if got := b.bundle(s); got != want {
				t.Errorf("container printed %q, want %q", got, want)
			}
		})
	}
}

// TestBundleFile runs what crisp plan would print.
func TestBundleFile(t *testing.T) {
	b := newLab(t)
	s := bundleSpec(t, "echo ran; readlink /proc/self/ns/net")
	dir := t.TempDir()
	setNamespace(s, specs.NetworkNamespace, "/proc/self/ns/net")

	config, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}

	p, err := plan.FromOCI(config, dir, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}

	var text strings.Builder
	if err := p.Print(&text); err != nil || !strings.Contains(text.String(), `"/bin/sh"`) {
		t.Errorf("plan does not print: %v\n%s", err, text.String())
	}

	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := b.bundle(s); got != "ran\n"+host+"\n" {
		t.Errorf("container printed %q", got)
	}
}

// bundle runs a container without a pod.
func (b *lab) bundle(s *specs.Spec) string {
	b.t.Helper()
	r := Request{Name: "start bundle", Spec: s}
	b.show(&r)
	c, err := b.launch(r, b.l.Container)
	if err != nil {
		b.t.Fatal(err)
	}
	out, _ := c.wait()
	return out
}
