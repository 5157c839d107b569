package keeper

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestProbeEndsWithItsParent has a process start the probe for the limit on
// open files and kill itself, as a keeper may be killed just then.
func TestProbeEndsWithItsParent(t *testing.T) {
	const child = "CRISP_TEST_PROBE"
	if os.Getenv(child) != "" {
		runtime.LockOSThread()
		p, err := startProbe()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(p.Pid)
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}

	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), child+"=1")
	out, _ := cmd.Output()
	if cmd.ProcessState.Exited() {
		t.Fatalf("the child was not killed: %v: %s", cmd.ProcessState, out)
	}

	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(pid, unix.SIGKILL)

	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || strings.Contains(string(status), "\nState:\tZ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the probe still runs: %s", status)
		}
	}
}
