package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
	"crisp/test/testkit/pace"
)

func TestExecSync(t *testing.T) {
	n := newNode(t, lab.Options{})
	p := n.pod(t)
	c := p.start(t)
	n.run(t, "result", func(t *testing.T) {
		r := c.exec(t, "sh", "-c", "echo out; echo err >&2; exit 42")
		if r.ExitCode != 42 || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" {
			t.Errorf("got %v", r)
		}
		if r := c.exec(t, "sh", "-c", "kill -9 $$"); r.ExitCode != 137 {
			t.Errorf("a killed command has exit code %d, want 137", r.ExitCode)
		}
	})

	n.run(t, "missing command", func(t *testing.T) {
		err := failure(t, n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"/nope"}})
		if err == nil || !strings.Contains(err.Error(), "/nope") || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("got %v", err)
		}
	})

	n.run(t, "timeout", func(t *testing.T) { testExecTimeout(t, p) })
	n.run(t, "background child", func(t *testing.T) { testBackgroundChild(t, p) })
	n.run(t, "much output", func(t *testing.T) { testMuchOutput(t, c) })
	n.run(t, "identity", func(t *testing.T) { testExecIdentity(t, n) })
	n.run(t, "many", func(t *testing.T) { testManyExecs(t, n, c) })
}

func testExecTimeout(t *testing.T, p *pod) {
	c := p.start(t, named("timeout"))
	began := time.Now()
	cmd := []string{"sh", "-c", "sleep 4321 & sleep 4321"}
	err := failure(t, c.p.n.Runtime.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: cmd, Timeout: 1})
	wantCode(t, err, codes.DeadlineExceeded)

	if took := time.Since(began); took < time.Second || took > pace.Scale(15*time.Second) {
		t.Errorf("it took %v, want a second", took)
	}
	for _, p := range inventory.Descendants(c.p.n.keeper(t)) {
		if line := slurp(fmt.Sprintf("/proc/%d/cmdline", p.PID)); strings.Contains(line, "4321") {
			t.Errorf("process %v is left of the command", p)
		}
	}
	c.remove(t) // with its zombies, which its first process does not reap
}

// testBackgroundChild leaves a process with the command's output open.
func testBackgroundChild(t *testing.T, p *pod) {
	c := p.start(t, named("background"))
	began := time.Now()
	r := c.exec(t, "sh", "-c", "sleep 1000 & echo done")
	if took := time.Since(began); took > pace.Scale(15*time.Second) || string(r.Stdout) != "done\n" {
		t.Errorf("it took %v and said %q", took, r.Stdout)
	}
	if got := c.sh(t, "pgrep -c sleep"); got != "2" {
		t.Errorf("%s processes sleep, want the container's and the one in the background", got)
	}
	c.remove(t)
}

// testMuchOutput exceeds kubelet's maximum message size.
func testMuchOutput(t *testing.T, c *container) {
	const most = maxAnswer - 64
	for script, want := range map[string][2]int{
		"head -c 20971520 /dev/zero":                                 {most, 0},
		"head -c 20971520 /dev/zero >&2":                             {0, most},
		"head -c 20971520 /dev/zero >&2; head -c 20971520 /dev/zero": {most / 2, most / 2},
		"echo x >&2; head -c 1048576 /dev/zero; exit 3":              {1 << 20, 2},
	} {
		r := c.exec(t, "sh", "-c", script)
		if got := [2]int{len(r.Stdout), len(r.Stderr)}; got != want {
			t.Errorf("%q: got %d bytes, want %d", script, got, want)
		}
	}
}

// seen prints the attributes of a process, without its process ID and others
// that must differ.
const seen = `id; pwd; env | grep -v -e '^SHLVL=' -e '^_=' | sort; umask; ulimit -a
grep -v -e '^Pid' -e '^Tgid' -e '^NSpid' -e '^NStgid' -e '^PPid' -e '^NSpgid' -e '^NSsid' -e ctxt -e '^Vm' -e '^Rss' -e '^Sig' -e '^Shd' /proc/self/status
cat /proc/self/cgroup /proc/self/oom_score_adj /proc/self/attr/current 2>&1
for ns in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$ns; done`

// testExecIdentity compares a command's privileges with those of the
// container's first process.
func testExecIdentity(t *testing.T, n *node) {
	for name, change := range map[string]change{
		"plain": func(*runtimeapi.ContainerConfig) {},
		"user": func(c *runtimeapi.ContainerConfig) {
			c.WorkingDir = "/var/www"
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b c")}}
			sc := c.Linux.SecurityContext
			sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 33}, &runtimeapi.Int64Value{Value: 34}
			sc.SupplementalGroups, sc.NoNewPrivs = []int64{5, 6}, true
			sc.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}, AddCapabilities: []string{"NET_BIND_SERVICE"}, DropCapabilities: []string{"ALL"}}
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
			c.Linux.Resources.OomScoreAdj = 500
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := n.pod(t).start(t, sh(seen+"\nexec sleep 1000"), change)

			want := c.sh(t, seen)
			eventually(t, "the container has printed its attributes", func() bool { return strings.Contains(slurp(c.logFile()), "uts:") })
			got := c.logged(t)
			if got != want+"\n" {
				t.Errorf("the command differs from the container's first process.\nfirst process:\n%s\ncommand:\n%s", got, want)
			}
		})
	}
}

// testManyExecs runs commands until leaks would show.
func testManyExecs(t *testing.T, n *node, c *container) {
	const many = 300
	for range 20 {
		c.exec(t, "true")
	}

	before := n.inventory(t)
	usual, huge := residentMemory(t, n.keeper(t))
	for range many {
		if r := c.exec(t, "true"); r.ExitCode != 0 {
			t.Fatalf("exit code %d", r.ExitCode)
		}
	}

	eventually(t, "there is no more than before", func() bool { return len(n.inventory(t)) <= len(before) })
	usualNow, hugeNow := residentMemory(t, n.keeper(t))
	if usualNow-usual > 1<<20 || hugeNow-huge > 2<<20 {
		t.Errorf("the keeper grew by %d bytes, and %d in huge pages", usualNow-usual, hugeNow-huge)
	}

	for name, pid := range map[string]int{"keeper": n.keeper(t), "daemon": n.PID()} {
		if got := threads(t, pid); got > 40 {
			t.Errorf("the %s has %d threads", name, got)
		}
	}

	if got := n.goroutines(t); got > 60 {
		t.Errorf("the daemon has %d goroutines:\n%s", got, n.Log())
	}
}

// goroutines makes the daemon exit with a list of its goroutines, counts them,
// and starts the next daemon.
func (n *node) goroutines(t *testing.T) int {
	t.Helper()
	if err := unix.Kill(n.PID(), unix.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}

	// The log has the lists of earlier calls, too.
	log := n.Log()
	count := strings.Count(log[max(0, strings.LastIndex(log, "SIGQUIT")):], "\ngoroutine ")
	if count == 0 {
		t.Error("the daemon printed no goroutines")
	}
	n.begin(t)
	return count
}
