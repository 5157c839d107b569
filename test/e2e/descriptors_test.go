package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"crisp/test/testkit/inventory"
	"crisp/test/testkit/lab"
)

// What a running command costs in descriptors: a pidfd in each process, and
// in the daemon the read ends of its output.
const (
	daemonPerCommand = 3
	keeperPerCommand = 1
)

// TestDescriptors counts what daemon and keeper hold for running commands, of
// which a client may start any number.
func TestDescriptors(t *testing.T) {
	const commands = 8
	n := newNode(t, lab.Options{})
	dir := t.TempDir()
	c := n.pod(t).start(t, mount(dir, "/signal"))
	run := func(i int) <-chan string {
		script := fmt.Sprintf("touch /signal/%d; until [ -e /signal/go ]; do sleep 0.05; done; echo done", i)
		return begin(func() string { return execSync(t, c, script) })
	}

	// The first one may open what stays open.
	results := []<-chan string{run(0)}
	eventually(t, "the first command runs", func() bool { return exists(dir, "0") })
	keeper := n.keeper(t)
	daemonBefore, keeperBefore := openFiles(n.PID()), openFiles(keeper)

	for i := range commands {
		results = append(results, run(i+1))
	}
	for i := range commands {
		eventually(t, "a command runs", func() bool { return exists(dir, fmt.Sprint(i+1)) })
	}

	// A command may run before those of its start are closed.
	perDaemon, perKeeper := 0, 0
	for range 100 {
		perDaemon, perKeeper = openFiles(n.PID())-daemonBefore, openFiles(keeper)-keeperBefore
		if perDaemon <= commands*daemonPerCommand && perKeeper <= commands*keeperPerCommand {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("%d commands: %d descriptors in the daemon, %d in the keeper", commands, perDaemon, perKeeper)
	if perDaemon > commands*daemonPerCommand || perKeeper > commands*keeperPerCommand {
		t.Errorf("%d commands hold %d descriptors in the daemon and %d in the keeper, want at most %d and %d each",
			commands, perDaemon, perKeeper, daemonPerCommand, keeperPerCommand)
	}

	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}

	for _, r := range results {
		if got := <-r; got != "done\n||0" {
			t.Errorf("a command ended with %q", got)
		}
	}
	eventually(t, "the descriptors are closed", func() bool {
		return openFiles(n.PID()) <= daemonBefore && openFiles(keeper) <= keeperBefore
	})
}

// openFiles counts the descriptors of a process.
func openFiles(pid int) int { return len(inventory.Names(fmt.Sprintf("/proc/%d/fd", pid))) }
