package client

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// TestKillMembers kills a process group as on kernels that cannot signal one by
// its leader's descriptor, and nothing else.
func TestKillMembers(t *testing.T) {
	testkit.Leaks(t)
	cmd := exec.Command("sh", "-c", "sleep 4322 & sleep 4322 & echo $! ; wait")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "4322")
	for _, c := range []*exec.Cmd{cmd, other} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = other.Process.Kill()
		_ = other.Wait() // killed
	})

	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	member, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}

	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	leader := os.NewFile(uintptr(fd), "pidfd")
	defer leader.Close()
	if err := killMembers(leader); err != nil {
		t.Fatal(err)
	}

	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the leader ended with %v, want it killed", err)
	}
	for end := time.Now().Add(10 * time.Second); isMember(member, cmd.Process.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a member of the group is left")
		}
	}
	if err := other.Process.Signal(unix.Signal(0)); err != nil || isMember(other.Process.Pid, cmd.Process.Pid) {
		t.Errorf("a process outside the group: %v", err)
	}

	if err := killMembers(leader); err != nil {
		t.Errorf("a group that is gone: %v", err)
	}
}
