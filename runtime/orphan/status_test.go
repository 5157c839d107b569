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

	"crisp/runtime/procstat"
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

// TestStatus gets the status of a running process, a zombie, and one that was reaped.
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
			t.Errorf("%s: status %#x while it runs", script, got)
		}
		in.Close()
		waitZombie(t, pid)

		if got, known := Status(pid, pidfd); !known || got != want {
			t.Errorf("%s: zombie has status %#x, %v, want %#x", script, got, known, want)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%s: no error", script)
		}

		if got, known := Status(pid, pidfd); known && got != want {
			t.Errorf("%s: once reaped it has status %#x, want %#x", script, got, want)
		}
	}
}

// TestDefunct kills the init of a PID namespace with a zombie that its parent
// does not reap.
func TestDefunct(t *testing.T) {
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
		if _, defunct := Defunct(pid, pidfd); defunct {
			t.Error("a running process is defunct")
		}
		if err := unix.Kill(send.pid, send.sig); err != nil {
			t.Fatal(err)
		}
		if send.sig == unix.SIGSTOP {
			awaitStopped(t, send.pid) // or it could still reap its child
		}
	}

	waitZombie(t, child)
	var status unix.WaitStatus
	var defunct bool
	for end := time.Now().Add(30 * time.Second); !defunct && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		status, defunct = Defunct(pid, pidfd)
	}

	if !defunct || status.Signal() != unix.SIGKILL || isZombie(pid) {
		t.Errorf("defunct %v, status %#x, zombie %v", defunct, status, isZombie(pid))
	}
	if err := unix.Kill(parent.Process.Pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}

	// Both were killed.
	_ = parent.Wait()
	_ = first.Wait()
	if _, defunct := Defunct(pid, pidfd); defunct {
		t.Error("a reaped process is defunct")
	}
}

func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if stat, err := procstat.Read(pid); err == nil && stat.State == 'T' {
			return
		}
	}
	t.Fatalf("process %d does not stop", pid)
}

// childOf is a child of a process, 0 without one.
func childOf(pid int) (child int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err == nil {
		fmt.Sscan(string(data), &child)
	}
	return child
}
