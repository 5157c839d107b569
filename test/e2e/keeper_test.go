package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// TestKeeperDies kills the parent of all containers, with the daemon alive.
func TestKeeperDies(t *testing.T) {
	n := newNode(t, lab.Options{})
	n.run(t, "under many writers", func(t *testing.T) { testKeeperKilledOften(t, n) })
	n.run(t, "logs, exits and sessions", func(t *testing.T) { testKeeperKilled(t, n) })
	n.run(t, "the daemon too", func(t *testing.T) { testBothKilled(t, n) })
	n.run(t, "stopped", func(t *testing.T) { testKeeperStopped(t, n) })
	n.run(t, "under commands", func(t *testing.T) { testKeeperKilledUnderCommands(t, n) })
	n.run(t, "under an attached client", func(t *testing.T) { testKeeperKilledUnderAttached(t, n) })
	n.run(t, "under commands, with a parent that does not reap", func(t *testing.T) {
		// The next keeper's parent is this process, which inherits its
		// children.
		n.Kill()
		n.begin(t)
		c := testKeeperKilledUnderCommands(t, n)

		// Since Linux 6.19 its cgroup stays until the commands are reaped, here by
		// the listing of processes. The next daemon knows.
		if left := inventory.Cgroups(c.id); len(left) > 0 != testkit.KernelAtLeast(t, 6, 19) {
			t.Errorf("before the commands are reaped there are the cgroups %q", left)
		}
		n.Kill()
		n.begin(t)
		eventually(t, "the container's cgroup is removed once the commands are reaped", func() bool {
			inventory.Descendants(os.Getpid())
			return len(inventory.Cgroups(c.id)) == 0
		})
	})
}

// testKeeperStopped has the daemon say of a keeper that is there and does not answer.
func testKeeperStopped(t *testing.T, n *node) {
	ready := func() *runtimeapi.RuntimeCondition {
		return call(t, n.Runtime.Status, &runtimeapi.StatusRequest{}).Status.Conditions[0]
	}
	p := n.pod(t, podNamed("waits"))
	keeper := n.keepers(t)[0]
	if err := unix.Kill(keeper, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(keeper, unix.SIGCONT) })

	says := fmt.Sprintf("the keeper has not answered for \\d+s \\(process %d, state T", keeper)
	eventually(t, "crisp why says so", func() bool {
		return regexp.MustCompile("(?m)^keeper: " + says).MatchString(n.crisp(t, "why", "waits"))
	})
	if out, _ := n.command(t, "doctor").Output(); !regexp.MustCompile("FAIL.*no container can be started: " + says).Match(out) {
		t.Errorf("the doctor says\n%s", out)
	}
	eventually(t, "kubelet learns of it", func() bool { return !ready().Status })
	if c := ready(); c.Reason != "KeeperSilent" || !strings.Contains(c.Message, fmt.Sprint(keeper)) {
		t.Errorf("the condition is %v", c)
	}

	if err := unix.Kill(keeper, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it answers again", func() bool { return ready().Status })
	p.start(t)
	if out := n.crisp(t, "why", "waits"); strings.Contains(out, "keeper") {
		t.Errorf("it is said to be silent:\n%s", out)
	}
}

// killKeeper kills the keeper of the node and waits for another one.
func (n *node) killKeeper(t *testing.T) {
	t.Helper()
	old := n.keepers(t)
	if len(old) != 1 {
		t.Fatalf("%d keepers, want one", len(old))
	}
	if err := unix.Kill(old[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.awaitKeeper(t, old)
}

// awaitKeeper waits until there is a keeper other than the killed ones, which
// may be visible for a moment, and the runtime is ready.
func (n *node) awaitKeeper(t *testing.T, killed []int) {
	t.Helper()
	eventually(t, "there is another keeper and the runtime is ready", func() bool {
		now := n.keepers(t)
		st := call(t, n.Runtime.Status, &runtimeapi.StatusRequest{}).Status
		return len(now) == 1 && !slices.Contains(killed, now[0]) && st.Conditions[0].Status
	})
}

// keepers are the pids of the keepers of the node's state directory.
func (n *node) keepers(t *testing.T) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}

	want := []byte("crisp-keeper\x00" + n.path("state"))
	var pids []int
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil || !bytes.HasPrefix(data, want) {
			continue
		}

		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}

	return pids
}

func testKeeperKilled(t *testing.T, n *node) {
	p := n.pod(t)
	const count = "i=0; while :; do echo $i; i=$((i+1)); done"
	counting := p.start(t, named("counting"), sh(count))
	waiting := p.start(t, named("waiting"), sh("trap 'exit 7' TERM; while :; do sleep 0.1; done"))
	shared := n.pod(t, attempt(1), sharedPID)
	quiet := shared.start(t)
	pid := counting.pid(t)

	n.killKeeper(t)

	for _, c := range []*container{counting, waiting, quiet} {
		if st := c.status(t); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container %s is %v", st.Metadata.Name, st.State)
		}
		if got := string(c.exec(t, "echo", "there").Stdout); got != "there\n" {
			t.Errorf("exec says %q", got)
		}
	}

	if now := counting.pid(t); now != pid {
		t.Errorf("the container's process is %d, was %d", now, pid)
	}
	if st := shared.status(t); st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod with a shared PID namespace is %v", st.State)
	}

	size := func() int { return len(slurp(counting.logFile())) }
	from := size()
	eventually(t, "the log grows with the next keeper", func() bool { return size() > from+1<<20 })
	counting.stop(t, 0)
	wantWholeCount(t, parse(t, []byte(slurp(counting.logFile()))))

	waiting.stop(t, 10)
	st := waiting.wait(t)
	if testkit.KernelAtLeast(t, 6, 15) && st.ExitCode != 7 {
		t.Errorf("exit code %d, want 7", st.ExitCode)
	} else if st.ExitCode != 7 && st.ExitCode != 255 {
		t.Errorf("exit code %d, want 7 or 255", st.ExitCode)
	}
	p.start(t, named("afterwards"), sh("exit 0")).wantEnd(t, 0, "Completed")
}

// testBothKilled requires correct reports about containers that lost both
// holders.
func testBothKilled(t *testing.T, n *node) {
	p := n.pod(t)
	running := p.start(t, named("running"))
	go7 := filepath.Join(t.TempDir(), "go")
	ended := p.start(t, named("ended"), mount(filepath.Dir(go7), "/signal"), sh("until [ -e /signal/go ]; do sleep 0.05; done; exit 7"))
	keeper := n.keepers(t)[0]
	n.Kill()
	if err := os.WriteFile(go7, nil, 0o644); err != nil {
		t.Fatal(err)
	}

	eventually(t, "the keeper records the exit", func() bool {
		_, err := os.Stat(n.path("state", "exits", ended.id))
		return err == nil
	})

	if err := unix.Kill(keeper, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.begin(t)
	ended.wantEnd(t, 7, "Error")
	running.wantEnd(t, 255, "Unknown")

	if st := p.status(t); st.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod is %v", st.State)
	}
	if left, err := os.ReadDir(n.path("state", "exits")); err != nil || len(left) > 0 {
		t.Errorf("exit records left: %v, %v", left, err)
	}
}

// wantWholeCount requires the numbers from 0 on, each once.
func wantWholeCount(t *testing.T, lines []line) {
	t.Helper()
	for i, l := range lines {
		if n, err := strconv.Atoi(l.content); err != nil || n != i || l.partial {
			t.Fatalf("line %d of %d says %q (partial %v)", i, len(lines), l.content, l.partial)
		}
	}
}
