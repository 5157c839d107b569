package client

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// TestProcessesAreOrdinary starts a keeper from a thread with every inheritable
// attribute changed, and expects the defaults in its processes.
func TestProcessesAreOrdinary(t *testing.T) {
	testkit.Root(t)
	dir := stateDir(t)
	script := strings.Join([]string{
		"grep -E '^(Cpus_allowed_list|SigBlk|SigIgn|THP_enabled|NoNewPrivs):' /proc/self/status",
		"cut -d' ' -f19,41 /proc/self/stat", "cat /proc/self/personality /proc/self/coredump_filter /proc/self/timerslack_ns",
		"umask", "grep -E 'core file|stack size|Max processes|file size' /proc/self/limits | tr -s ' '",
	}, "; ")

	output := func(c *Client, id string) string {
		sh := newShell(t, id, script)
		sh.start(t, c)
		awaitExit(t, c, id)
		var got strings.Builder
		for line := range strings.Lines(string(sh.read(t))) {
			_, content, _ := strings.Cut(line, " F ")
			got.WriteString(content)
		}

		forget(t, c, id)
		return got.String()
	}

	plain := connectTest(t, stateDir(t))
	defer plain.Close()
	want := output(plain, "plain")
	var c *Client
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		odd(t)
		var core unix.Rlimit
		if err := unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{Max: unix.RLIM_INFINITY}, &core); err != nil {
			t.Error(err)
		}

		c = connectTest(t, dir)
		if err := unix.Prlimit(0, unix.RLIMIT_CORE, &core, nil); err != nil {
			t.Error(err)
		}
	}()

	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("no keeper")
	}

	if t.Failed() || c == nil {
		t.FailNow()
	}
	defer c.Close()
	if got := output(c, "odd"); got != want {
		t.Errorf("processes of a keeper that was set up print\n%s\nwant\n%s", got, want)
	}
}

// odd changes every inheritable attribute of the calling thread.
func odd(t *testing.T) {
	t.Helper()
	const (
		noRandom  = 0x0040000
		batch     = 3
		ioProcess = 1
		idle      = 3 << 13
	)

	var first unix.CPUSet
	first.Set(0)
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: batch, Nice: 7}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		t.Error(err)
	}

	unix.Umask(0o077)
	for name, err := range map[string]error{
		"directory": unix.Chdir("/proc"), "affinity": unix.SchedSetaffinity(0, &first), "policy": unix.SchedSetAttr(0, &attr, 0),
		"slack":      unix.Prctl(unix.PR_SET_TIMERSLACK, 1_000_000, 0, 0, 0),
		"securebits": unix.Prctl(unix.PR_SET_SECUREBITS, 1<<4, 0, 0, 0), // keep capabilities
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	for name, call := range map[string][]uintptr{
		"personality": {unix.SYS_PERSONALITY, noRandom, 0, 0}, "I/O priority": {unix.SYS_IOPRIO_SET, ioProcess, 0, idle},
		"memory policy": {unix.SYS_SET_MEMPOLICY, unix.MPOL_LOCAL, 0, 0},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			t.Errorf("%s: %v", name, errno)
		}
	}
}
