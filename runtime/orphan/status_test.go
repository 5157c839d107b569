package orphan

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

func pidfdOf(t *testing.T, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestStatus asks about a process that runs, that is a zombie, and that is gone.
func TestStatus(t *testing.T) {
	for script, want := range map[string]unix.WaitStatus{"exit 7": 7 << 8, "exit 255": 255 << 8, "kill -9 $$": 9} {
		cmd := exec.Command("sh", "-c", "read x; "+script)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}

		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := cmd.Process.Pid
		pidfd := pidfdOf(t, pid)
		if got, known := Status(pid, pidfd); known {
			t.Errorf("%s: one that runs ended with %#x", script, got)
		}
		in.Close()
		waitZombie(t, pid)

		if got, known := Status(pid, pidfd); !known || got != want {
			t.Errorf("%s: the zombie ended with %#x, %v, want %#x", script, got, known, want)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%s: ended well", script)
		}

		if got, known := Status(pid, pidfd); known && got != want {
			t.Errorf("%s: one that is gone ended with %#x, want %#x", script, got, want)
		}
	}
}

// TestSpent ends the first process of a PID namespace in which there is a
// process whose parent does not reap it.
func TestSpent(t *testing.T) {
	testkit.Root(t)
	first := exec.Command("sleep", "1000")
	first.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}

	pid := first.Process.Pid
	pidfd := pidfdOf(t, pid)
	parent := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--pid", "sleep", "1000")
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}

	child := 0
	for end := time.Now().Add(30 * time.Second); child == 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		child = childOf(parent.Process.Pid)
	}

	for _, send := range []struct {
		pid int
		sig unix.Signal
	}{{parent.Process.Pid, unix.SIGSTOP}, {pid, unix.SIGKILL}} {
		if _, spent := Spent(pid, pidfd); spent {
			t.Error("a process is spent that runs")
		}
		if err := unix.Kill(send.pid, send.sig); err != nil {
			t.Fatal(err)
		}
	}

	waitZombie(t, child)
	var status unix.WaitStatus
	var spent bool
	for end := time.Now().Add(30 * time.Second); !spent && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		status, spent = Spent(pid, pidfd)
	}

	if !spent || status.Signal() != unix.SIGKILL || isZombie(pid) {
		t.Errorf("spent %v, status %#x, zombie %v", spent, status, isZombie(pid))
	}
	if err := unix.Kill(parent.Process.Pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}

	// Both were killed.
	_ = parent.Wait()
	_ = first.Wait()
	if _, spent := Spent(pid, pidfd); spent {
		t.Error("a process is spent that is gone")
	}
}

// childOf is a child of a process, 0 without one.
func childOf(pid int) (child int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err == nil {
		fmt.Sscan(string(data), &child)
	}
	return child
}
