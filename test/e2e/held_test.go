package e2e

import (
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// holding makes a container hold something, see [hold], with a volume.
func holding(t *testing.T, name, volume string) change {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"/test/" + filepath.Base(self), "-test.run=^$"}
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: holdsEnv, Value: []byte(name)})
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: filepath.Dir(self), ContainerPath: "/test", Readonly: true}, &runtimeapi.Mount{HostPath: volume, ContainerPath: holdsDir})
	}
}

// TestRestoreHeld restores processes with each kind of thing that the kernel keeps for them.
func TestRestoreHeld(t *testing.T) {
	n := withCRIU(t, "")
	n.run(t, "pod", func(t *testing.T) { testRestoreHeld(t, n.pod(t)) })
	n.run(t, "user namespace", func(t *testing.T) { testRestoreHeld(t, n.pod(t, userNamespace(800000))) })
}

func testRestoreHeld(t *testing.T, p *pod) {
	n := p.n
	var names []string
	for _, holders := range []map[string]holder{holdersOfFiles(), holdersOfMemory(), holdersOfSockets(), holdersOfProcesses()} {
		names = append(names, slices.Sorted(maps.Keys(holders))...)
	}

	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	var all []*container
	for i, name := range names {
		c := p.start(t, named("c"+string(rune('a'+i/26))+string(rune('a'+i%26))), holding(t, name, dir))
		all = append(all, c)
	}
	var conn net.Conn
	eventually(t, "a connection", func() (ok bool) {
		var err error
		conn, err = net.Dial("tcp4", net.JoinHostPort(p.status(t).Network.Ip, outsidePort))
		return err == nil
	})
	defer conn.Close()
	for i, c := range all {
		eventually(t, names[i]+" is held", func() bool {
			out := c.logged(t)
			if strings.Contains(out, "cannot") {
				t.Fatalf("%s: %s", names[i], out)
			}
			return strings.Contains(out, "held")
		})
	}
	saved := p.save(t, all...)
	p.remove(t)

	q, restored := n.restore(t, p.again(t, saved, all...))
	for i, c := range restored {
		if _, err := try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: c.id}); err != nil {
			t.Errorf("%s: %v", names[i], err)
			restored[i] = nil
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "on"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, c := range restored {
		if c != nil {
			eventually(t, names[i]+" says whether it is kept", func() bool { return len(c.logged(t)) > 4 })
			if out := c.logged(t); out != "kept\n" {
				t.Errorf("%s: %s", names[i], out)
			}
		}
	}
	q.remove(t)
}

// TestUnsaveable has what cannot be saved, or saved and not restored: that is said, and the
// container that has it goes on.
func TestUnsaveable(t *testing.T) {
	n := withCRIU(t, "")
	for name, test := range map[string]struct{ save, restore string }{ // what the errors say
		"io_uring":                       {"an io_uring", ""},
		"userfaultfd":                    {"a userfaultfd", ""},
		"inotify of its own files":       {"Can't dump that handle", ""},
		"MPTCP socket":                   {"MPTCP", ""},
		"connection to a socket outside": {"to a process outside of the container, by the Unix socket", ""},
		"System V shared memory":         {"", "System V"},
		"packet socket":                  {"", "CAP_NET_RAW"},
		"raw socket":                     {"", "CAP_NET_RAW"},
	} {
		n.run(t, name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := net.Listen("unix", filepath.Join(dir, "socket"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				if conn, err := l.Accept(); err == nil {
					_, _ = io.Copy(io.Discard, conn) // until the container ends
				}
			}()
			p := n.pod(t)
			c := p.start(t, holding(t, name, dir))
			eventually(t, "it is held", func() bool { return c.logged(t) == "held\n" })

			r := &runtimeapi.CheckpointPodRequest{PodSandboxId: p.id, OutputPath: t.TempDir(), ContainerIds: []string{c.id}}
			_, err = try(t, n.Runtime.CheckpointPod, r)
			if test.save != "" {
				wantCode(t, err, codes.FailedPrecondition, test.save)
			} else if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "on"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it goes on", func() bool { return c.logged(t) == "held\nkept\n" })
			p.remove(t)
			if test.restore == "" {
				return
			}

			again, code := p.again(t, r.OutputPath, c), codes.FailedPrecondition
			if strings.HasPrefix(test.restore, "CAP_") {
				again.ContainerConfigs[0].Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"NET_RAW"}}
				code = codes.PermissionDenied
			}
			q, restored := n.restore(t, again)
			_, err = try(t, n.Runtime.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: restored[0].id})
			wantCode(t, err, code, test.restore)
			q.remove(t)
		})
	}
}
