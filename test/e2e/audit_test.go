package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/audit"
	"crisp/test/testkit/lab"
)

// TestAudit expects a line for whatever is done in a container on request, and nothing
// of it anywhere else.
func TestAudit(t *testing.T) {
	const secret = "s3cr3t-v4lue"
	path := filepath.Join(t.TempDir(), "audit", "audit.log")
	n := newNode(t, lab.Options{Config: fmt.Sprintf("log_level = \"trace\"\naudit_log = %q\n", path)})
	lines := func(want int) []audit.Record {
		t.Helper()
		var list []audit.Record
		eventually(t, fmt.Sprintf("%d lines", want), func() bool {
			list = nil
			for line := range strings.Lines(slurp(path)) {
				var r audit.Record
				if err := json.Unmarshal([]byte(line), &r); err != nil {
					return false
				}
				list = append(list, r)
			}
			return len(list) >= want
		})
		return list
	}
	n.pull(t, nginx)
	p := n.pod(t, podNamed("web"))
	c := p.start(t, named("app"), func(c *runtimeapi.ContainerConfig) { c.Image.Image, c.Command = nginx, nil })
	eventually(t, "the server listens", func() bool { return strings.Contains(c.sh(t, "cat /proc/net/tcp"), ":0050 ") })
	before := len(lines(2)) // those of this question, and of the pod that warms up

	c.sh(t, ": "+secret)
	c.sh(t, ": "+secret) // is counted
	if s := finish(t, n.command(t, "exec", "web", "sh", "-c", "exit 7 # \n{}")); s.code != 7 {
		t.Errorf("exec: %+v", s)
	}
	eventually(t, "a line of each command", func() bool { return len(lines(before+2)) == before+2 })
	address, stop, ended := p.forward(t, 80)
	fetch(t, address)
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}

	got := lines(before + 3)[before:]
	for i, r := range got {
		if r.Namespace != "e2e" || r.Pod != "web" || r.PodID != p.id || r.Caller == nil || r.Caller.UID != 0 || r.Caller.Program == "" {
			t.Errorf("line %d is %+v of %+v", i, r, r.Caller)
		}
	}
	sync, exec, forward := got[0], got[1], got[2]
	if sync.Call != audit.ExecSync || sync.Caller.PID != os.Getpid() || sync.Container != "app" || sync.ContainerID != c.id || sync.Result != "ok" || strings.Join(sync.Command, " ") != "sh -c : "+secret {
		t.Errorf("a synchronous command: %+v", sync)
	}
	if exec.Call != audit.Exec || exec.Result != "exit" || *exec.ExitCode != 7 || !strings.HasPrefix(exec.Client, "127.0.0.1:") || exec.Command[2] != `exit 7 # \u000a{}` || !strings.HasSuffix(exec.Caller.Program, "/crisp") {
		t.Errorf("a command: %+v", exec)
	}
	if forward.Call != audit.PortForward || forward.Port != 80 || forward.Result != "ok" || forward.Client == "" || forward.Container != "" {
		t.Errorf("a connection: %+v", forward)
	}
	if len(got) != 3 {
		t.Errorf("%d lines, want 3: %+v", len(got), got)
	}

	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", st.Mode(), err)
	}
	if strings.Contains(n.Log(), secret) {
		t.Error("the log has the secret")
	}
	for name, text := range n.support(t) {
		if strings.Contains(text, secret) {
			t.Errorf("%s of the archive has the secret", name)
		}
	}
	testAuditMoved(t, n, c, path)
}

// testAuditMoved moves the file away, as logrotate does, and reloads the daemon.
func testAuditMoved(t *testing.T, n *node, c *container, path string) {
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(n.PID(), unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another file", func() bool { _, err := os.Stat(path); return err == nil })
	c.sh(t, ": after")
	eventually(t, "a line in it", func() bool { return strings.Contains(slurp(path), `: after"`) })
}
