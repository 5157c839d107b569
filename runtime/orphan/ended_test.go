package orphan

import (
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// TestEnded looks at processes that run, are stopped, are zombies, and are gone.
func TestEnded(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid

	for _, send := range []unix.Signal{0, unix.SIGSTOP} {
		if err := unix.Kill(pid, send); err != nil {
			t.Fatal(err)
		}
		if send == unix.SIGSTOP {
			awaitStopped(t, pid)
		}
		if Ended(pid) {
			t.Errorf("a process has ended, with signal %d", send)
		}
	}

	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitZombie(t, pid)
	if !Ended(pid) {
		t.Error("a zombie has not ended")
	}
	_ = cmd.Wait()
	if !Ended(pid) {
		t.Error("a reaped process has not ended")
	}
}

// TestEndedThread has a process whose first thread is a zombie while others run.
func TestEndedThread(t *testing.T) {
	const role = "CRISP_TEST_END_FIRST_THREAD"
	if os.Getenv(role) != "" {
		endFirstThread()
	}

	cmd := exec.Command("/proc/self/exe", "-test.run=^TestEndedThread$")
	cmd.Env = append(os.Environ(), role+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})

	pid := cmd.Process.Pid
	waitZombie(t, pid)
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if Ended(pid) {
			t.Fatal("a process whose first thread alone is a zombie has ended")
		}
	}

	in.Close()
	for end := time.Now().Add(30 * time.Second); !Ended(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it has not ended, though its last thread has")
		}
	}
}

// endFirstThread ends the first thread of this process, which ends with its input.
func endFirstThread() {
	for range 100 {
		go func() {
			leaveFirstThread(func() {})
			select {}
		}()
	}
	awaitInput()
}

func awaitInput() {
	leaveFirstThread(awaitInput)
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// leaveFirstThread gives the caller a thread of its own, which it ends if it is the
// first one; another goroutine does the rest then.
func leaveFirstThread(rest func()) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		go rest()
		_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
	}
}

// TestEndedInit kills the first process of a PID namespace with a zombie that its
// parent does not reap: it stays, without being a zombie.
func TestEndedInit(t *testing.T) {
	testkit.Root(t)
	first := exec.Command("sleep", "1000")
	first.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	pid := first.Process.Pid
	parent := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--pid", "sleep", "1000")
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}

	for end := time.Now().Add(30 * time.Second); childOf(parent.Process.Pid) == 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if err := unix.Kill(parent.Process.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitStopped(t, parent.Process.Pid)
	if Ended(pid) {
		t.Error("it has ended while it runs")
	}

	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); !Ended(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it has not ended")
		}
	}
	if isZombie(pid) {
		t.Error("it is a zombie already: its namespace has nothing that waits")
	}
	if err := unix.Kill(parent.Process.Pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	_, _ = parent.Wait(), first.Wait()
}
