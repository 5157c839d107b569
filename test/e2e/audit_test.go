package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
	lines := func(want int) (ends []audit.Record) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d lines", want), func() bool {
			ends = slices.DeleteFunc(audited(path), func(r audit.Record) bool { return r.Result == "begin" || r.Call == audit.Start })
			return len(ends) >= want
		})
		return ends
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
	testAuditKilled(t, n, c, path)
}

// audited are the lines of an audit log, without one that is being written.
func audited(path string) (list []audit.Record) {
	for line := range strings.Lines(slurp(path)) {
		var r audit.Record
		if json.Unmarshal([]byte(line), &r) == nil {
			list = append(list, r)
		}
	}
	return list
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

// testAuditKilled kills the daemon during calls of each kind, and expects that their
// beginnings are in the log, and then that of another daemon.
func testAuditKilled(t *testing.T, n *node, c *container, path string) {
	under := map[string]string{audit.Exec: "sleep 1000", audit.ExecSync: "sleep 1001", audit.Attach: "", audit.PortForward: ""}
	var clients sync.WaitGroup
	t.Cleanup(clients.Wait)
	c.sh(t, "nc -l -p 81 -e sleep 1000 >/dev/null 2>&1 &") // another port than before: connections that repeat are only counted
	eventually(t, "it listens", func() bool { return strings.Contains(c.sh(t, "cat /proc/net/tcp /proc/net/tcp6"), ":0051 ") })
	exec, attach := n.command(t, "exec", "web", "sleep", "1000"), n.command(t, "attach", "web")
	clients.Go(func() { finish(t, exec) })
	clients.Go(func() { finish(t, attach) })
	clients.Go(func() {
		if _, err := try(t, n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sleep", "1001"}}); err == nil {
			t.Error("a call outlasts the daemon")
		}
	})
	address, stop, ended := c.p.forward(t, 81)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	before := len(audited(path))
	open := func() map[string]audit.Record {
		sessions := map[string]audit.Record{}
		for _, r := range audited(path) {
			if r.Result == "begin" {
				sessions[r.Session] = r
			} else {
				delete(sessions, r.Session)
			}
		}
		return sessions
	}
	eventually(t, "all have begun", func() bool { return len(open()) == len(under) })
	n.Kill()
	close(stop)
	<-ended // with an error, or as asked
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}

	for _, r := range open() {
		if command, ok := under[r.Call]; !ok || strings.Join(r.Command, " ") != command || r.PodID != c.p.id || r.Caller == nil {
			t.Errorf("a call has no end: %+v", r)
		}
		delete(under, r.Call)
	}
	if len(under) > 0 {
		t.Errorf("calls are missing that had begun: %v", under)
	}
	if !slices.ContainsFunc(audited(path)[before:], func(r audit.Record) bool { return r.Call == audit.Start }) {
		t.Error("the next daemon does not say when it has begun")
	}
}
