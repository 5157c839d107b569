package ordinary

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

const helper = "CRISP_TEST_ORDINARY"

func TestMain(m *testing.M) {
	if os.Getenv(helper) == "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/bin/sh", "-c", status)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr

	start := Start
	if os.Getenv(helper) == "as it is" {
		start = (*exec.Cmd).Start
	}
	if err := errors.Join(start(cmd), cmd.Wait()); err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
}

// status prints the inheritable attributes of a process.
const status = `grep Cpus_allowed_list /proc/self/status | tr -d '\t'; nice; umask; cat /proc/$$/oom_score_adj /proc/$$/timerslack_ns; ionice; pwd`

// TestStartInheritsNothing starts a program from a process that is pinned to
// one CPU, has a nice value and a low OOM score, and so on.
func TestStartInheritsNothing(t *testing.T) {
	testkit.Root(t)
	for _, tool := range []string{"taskset", "nice", "ionice"} {
		if _, err := exec.LookPath(tool); err != nil {
			testkit.Skip(t, tool, err.Error())
		}
	}

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}

	spared, sparing := "0", ""
	if exec.Command("choom", "-n", "-500", "true").Run() == nil { // it takes a capability that some containers lack
		spared, sparing = "-500", "choom -n -500 -- "
	}

	run := func(how string) string {
		cmd := exec.Command("taskset", "-c", "0", "nice", "-n", "7", "ionice", "-c", "3", "sh", "-c", "umask 077; exec "+sparing+self)
		cmd.Env = append(os.Environ(), helper+"="+how)
		cmd.Dir = t.TempDir()
		cmd.Stderr = os.Stderr

		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if got := run("as it is"); !strings.HasPrefix(got, "Cpus_allowed_list:0\n7\n0077\n"+spared+"\n") || !strings.Contains(got, "\nidle\n") {
		t.Fatalf("the parent is not set up: %q", got)
	}

	cpus, err := exec.Command("sh", "-c", `cat /sys/devices/system/cpu/online`).Output()
	if err != nil {
		t.Fatal(err)
	}

	want := "Cpus_allowed_list:" + string(bytes.TrimSpace(cpus)) + "\n0\n0022\n0\n50000\nnone: prio 0\n/\n"
	if got := run("ordinary"); got != want {
		t.Errorf("the program has %q, want %q", got, want)
	}
}

// TestStartLeavesThisProcessAlone checks all threads afterwards.
func TestStartLeavesThisProcessAlone(t *testing.T) {
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	cmd := exec.Command("/bin/true")
	if err := errors.Join(Start(cmd), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	if now := unix.Umask(0o027); now != 0o027 {
		t.Errorf("umask is %#o now", now)
	}
	if cmd.Dir != "/" {
		t.Errorf("it ran in %q", cmd.Dir)
	}
}

func TestStartRefusesWhatWouldEndAtOnce(t *testing.T) {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := Start(cmd); !errors.Is(err, ErrTied) {
		t.Errorf("got %v, want %v", err, ErrTied)
	}
	if err := Start(exec.Command("/nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want %v", err, os.ErrNotExist)
	}
}

// TestStartStaysInItsNetwork: a caller may have another network namespace than
// other threads of its process.
func TestStartStaysInItsNetwork(t *testing.T) {
	testkit.Root(t)
	runtime.LockOSThread() // and never unlocked: the thread exits with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}

	want, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}

	var out bytes.Buffer
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	if err := errors.Join(Start(cmd), cmd.Wait()); err != nil {
		t.Fatal(err)
	}

	if got := strings.TrimSpace(out.String()); got != want {
		t.Errorf("the program is in %s, the caller in %s", got, want)
	}
}
