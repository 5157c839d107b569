// Package ordinary starts programs with default process attributes, independent
// of those of the starting process.
//
// A program inherits attributes of its parent that are not meant for it, such
// as a daemon's CPU affinity or OOM score. Package spawn resets them for
// containers; this package is for the node's own programs, such as network
// plugins.
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
	// umask is the usual one of a node.
	umask = 0o022
	// slack is the kernel's default timer slack, in nanoseconds.
	slack = 50_000
)

// ErrTied is a command that is to be killed with the thread that started it.
var ErrTied = errors.New("a command with Pdeathsig is killed at once, because the thread that starts it exits")

// Start starts a command like [exec.Cmd.Start], in the network namespace of the
// thread that calls it, with all CPUs of the cgroup, the default priorities and
// umask, a session keyring of its own and no protection from the OOM killer. A
// command without a directory runs in /. The service manager's variables for
// the daemon are removed from the command's environment.
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
		return fmt.Errorf("start %s: open network namespace: %w", cmd.Path, err)
	}
	defer network.Close()

	started := make(chan error, 1)
	go func() {
		// The changes affect only this thread, which exits with this goroutine
		// as it is not unlocked.
		runtime.LockOSThread()
		started <- start(cmd, network)
	}()

	return <-started
}

// isServices reports whether a variable is the service manager's for the daemon.
func isServices(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	return slices.Contains([]string{
		"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID", "JOURNAL_STREAM",
	}, name)
}

func start(cmd *exec.Cmd, network *os.File) error {
	// A new thread may have the network namespace of another one. Without the
	// privilege to enter namespaces all threads have the same.
	if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("start %s: enter network namespace: %w", cmd.Path, err)
	}
	if err := unix.Unshare(unix.CLONE_FS); err == nil {
		unix.Umask(umask)
	}
	resetAttributes()
	if err := cmd.Start(); err != nil {
		return err
	}
	expose(cmd.Process.Pid)
	return nil
}

// resetAttributes gives the thread default attributes. Those that the kernel
// does not permit to change, or lacks, are not changed.
func resetAttributes() {
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

// expose removes a process's protection from the OOM killer. It may have exited.
func expose(pid int) {
	name := "/proc/" + strconv.Itoa(pid) + "/oom_score_adj"
	if score, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(score), "-") {
		_ = os.WriteFile(name, []byte("0"), 0)
	}
}
