// Package ordinary starts programs as if nobody had set up the process that
// starts them.
//
// A program inherits much of its parent that was never meant for it: of a
// daemon on one CPU, or one that the kernel is to spare, these are the
// daemon's. What containers begin with, package spawn sees to; this is for the
// node's own programs, such as network plugins.
package ordinary

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// umask is what programs on a node expect.
	umask = 0o022
	// slack is the kernel's own for timers, in nanoseconds.
	slack = 50_000
)

// ErrTied is a command that is to end with the thread that started it.
var ErrTied = errors.New("a command with Pdeathsig ends at once: the thread that starts it does")

// Start starts a command like [exec.Cmd.Start], in the network namespace of the
// thread that calls it, with all CPUs of the cgroup, the
// usual priorities and umask, a session keyring of its own and no protection from
// a lack of memory. A command without a directory runs in /. What the service
// manager tells the daemon in its environment is left out of the command's.
func Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr != nil && cmd.SysProcAttr.Pdeathsig != 0 {
		return fmt.Errorf("start %s: %w", cmd.Path, ErrTied)
	}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}

	cmd.Env = slices.DeleteFunc(slices.Clone(cmd.Env), isServices)
	network, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("start %s: find the network: %w", cmd.Path, err)
	}
	defer network.Close()

	started := make(chan error, 1)
	go func() {
		// What is changed is the thread's, which ends with this goroutine as it
		// is not unlocked.
		runtime.LockOSThread()
		started <- start(cmd, network)
	}()

	return <-started
}

// isServices says of a variable that the service manager means the daemon by it.
func isServices(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	return slices.Contains([]string{
		"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID", "JOURNAL_STREAM",
	}, name)
}

func start(cmd *exec.Cmd, network *os.File) error {
	// A new thread has the namespaces of any other. Who may not enter one has not.
	if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("start %s: enter the network: %w", cmd.Path, err)
	}
	if err := unix.Unshare(unix.CLONE_FS); err == nil {
		unix.Umask(umask)
	}
	settle()
	if err := cmd.Start(); err != nil {
		return err
	}
	expose(cmd.Process.Pid)
	return nil
}

// settle makes the thread an ordinary one. What the kernel does not allow, or
// does not have, stays as it is.
func settle() {
	var all unix.CPUSet
	for i := range all {
		all[i] = ^all[i]
	}

	_ = unix.SchedSetaffinity(0, &all)
	// The policy SCHED_OTHER, nice 0.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0)
	const ioProcess = 1
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, ioProcess, 0, 0)
	_, _, _ = unix.Syscall(unix.SYS_PERSONALITY, 0, 0, 0)
	_, _, _ = unix.Syscall(unix.SYS_SET_MEMPOLICY, unix.MPOL_DEFAULT, 0, 0)
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, slack, 0, 0, 0)
	_ = unix.Prctl(unix.PR_SET_SECUREBITS, 0, 0, 0, 0)
	_, _ = unix.KeyctlJoinSessionKeyring("")
}

// expose takes a process's protection from a lack of memory away. It may be gone.
func expose(pid int) {
	name := "/proc/" + strconv.Itoa(pid) + "/oom_score_adj"
	if score, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(score), "-") {
		_ = os.WriteFile(name, []byte("0"), 0)
	}
}
