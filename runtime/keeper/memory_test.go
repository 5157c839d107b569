package keeper

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/runtime/wire"
)

func TestOOMKills(t *testing.T) {
	file := filepath.Join(t.TempDir(), "memory.events")
	for text, want := range map[string]int64{
		"low 0\nhigh 1\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n": 2,
		"low 0\noom_kill 0\n": 0,
		"":                    0,
		"oom_kill many\n":     0,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := oomKills(file); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}

	if got := oomKills(file + ".gone"); got != 0 {
		t.Errorf("a group that is gone: got %d", got)
	}
}

// TestMemoryEvents looks up the cgroup of this process in the unified hierarchy.
func TestMemoryEvents(t *testing.T) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}

	want := ""
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && path != "/" {
			want = "/sys/fs/cgroup" + path + "/memory.events"
		}
	}

	if got := memoryEvents(os.Getpid()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := memoryEvents(1 << 30); got != "" {
		t.Errorf("a process that is not there: got %q", got)
	}
}

// TestWatchMemory expects the counter of a running container, none after its
// PID may have been reused, and none for other kinds.
func TestWatchMemory(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}

	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)

	watch := func(kind wire.Kind, pid int) string {
		e := &entry{kind: kind, proc: newProc(pid, pidfd)}
		e.watchMemory()
		return e.events
	}

	want := memoryEvents(cmd.Process.Pid)
	if got := watch(wire.Container, cmd.Process.Pid); got != want {
		t.Errorf("a container: got %q, want %q", got, want)
	}

	if got := watch(wire.Exec, cmd.Process.Pid); got != "" {
		t.Errorf("a command: got %q", got)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()

	if got := watch(wire.Container, os.Getpid()); got != "" {
		t.Errorf("a container that is reaped: got %q", got)
	}
	(&entry{kind: wire.Container}).watchMemory() // without a process there is nothing to watch
}
