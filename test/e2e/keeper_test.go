package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
