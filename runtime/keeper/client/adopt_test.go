package client

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// becomeSubreaper makes this process the parent of the children of a dead
// keeper that it started.
func becomeSubreaper(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	})
}

// wantExit7 expects exit code 7 for a process that the test reaped. Where the
// kernel does not report it, a keeper that looked too late reports 255.
func wantExit7(t *testing.T, x Exit) {
	t.Helper()
	if x.Code != 7 && (x.Code != 255 || tellsExit(t)) {
		t.Errorf("exit %+v, want code 7", x)
	}
}

// tellsExit reports whether the kernel reports exit statuses by pidfd.
func tellsExit(t *testing.T) bool {
	t.Helper()
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	return unix.IoctlPidfdInfo(fd, &info) == nil && testkit.KernelAtLeast(t, 6, 15)
}

// TestAdopt kills a keeper with SIGKILL while a container writes, and has the
// next one continue.
func TestAdopt(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	becomeSubreaper(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	defer c.Close()

	stop := filepath.Join(t.TempDir(), "stop")
	sh := newShell(t, "web", "i=0; while [ ! -e "+stop+" ]; do i=$((i+1)); echo $i; done; echo end >&2; exit 7")
	defer sh.close()
	stdinR, stdinW := pipe(t)
	defer closeFiles(stdinR, stdinW)

	sh.req.Keep = []Named{{"stdin", stdinW}}
	st, err := c.Start(testContext(t), sh.req)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()

	closeFiles(sh.req.Files...)
	eventually(t, "output", func() bool { return len(sh.read(t)) > 10000 })
	if err := c.keeper.Process.Kill(); err != nil {
		t.Fatal(err)
	}

	<-c.Done()

	next := connectTest(t, dir)
	defer next.Close()
	a := Adoption{ID: "web", Kind: Container, Started: *st, Log: sh.req.Log, Keep: sh.req.Keep}
	if err := next.Adopt(testContext(t), a); err != nil {
		t.Fatal(err)
	}
	sh.req.Log.Close()

	if err := next.Adopt(testContext(t), Adoption{ID: "web", Kind: Sandbox}); !errors.Is(err, ErrExists) {
		t.Errorf("adopt twice: error %v", err)
	}
	if err := next.Forget(testContext(t), "web"); !errors.Is(err, ErrRunning) {
		t.Errorf("forget an adopted process that lives: error %v", err)
	}

	if err := next.keeper.Process.Signal(unix.SIGTERM); err != nil { // it exits after the container
		t.Fatal(err)
	}
	list := listAll(t, next)
	if len(list) != 1 || list[0].Pid != st.Pid || list[0].PidFD == nil || list[0].Kept["stdin"] == nil || !list[0].StartedAt.Equal(st.StartedAt) {
		t.Errorf("listed %+v", list)
	}

	before := len(sh.read(t))
	eventually(t, "log continues", func() bool { return len(sh.read(t)) > before })
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	var status unix.WaitStatus
	if _, err := unix.Wait4(st.Pid, &status, 0, nil); err != nil || status.ExitStatus() != 7 {
		t.Fatalf("status %v, error %v", status, err)
	}

	exit := awaitExit(t, next, "web")
	if wantExit7(t, exit); exit.Pid != st.Pid {
		t.Errorf("exit %+v, want process %d", exit, st.Pid)
	}

	checkCounted(t, sh.read(t))
	if !strings.Contains(string(sh.read(t)), " stderr F end\n") {
		t.Error("log lacks its end")
	}

	<-next.Done() // now it can exit
	if exits, err := ReadExits(dir); err != nil || len(exits) != 1 || exits[0].Code != exit.Code {
		t.Errorf("exit records %+v, error %v", exits, err)
	}
}

// checkCounted checks that stdout has the numbers from 1 on.
func checkCounted(t *testing.T, log []byte) {
	t.Helper()
	last := 0
	for line := range strings.Lines(string(log)) {
		_, content, ok := strings.Cut(line, " stdout F ")
		if !ok {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSpace(content)); err != nil || n != last+1 {
			t.Fatalf("%q follows %d", content, last)
		}
		last++
	}

	if last == 0 {
		t.Error("nothing is counted")
	}
}

func TestAdoptSandbox(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	dir := stateDir(t)
	c := connectTest(t, dir)
	defer c.Close()

	p := newProgram("make sandbox pod")
	p.Clone.Flags = unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	p.gate()
	st, err := c.Start(testContext(t), Request{ID: "pod", Kind: Sandbox, Plan: &p.Plan, Hold: true})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()

	forget(t, c, "pod")
	if err := c.Adopt(testContext(t), Adoption{ID: "pod", Kind: Sandbox, Started: *st}); err != nil {
		t.Fatal(err)
	}

	list := listAll(t, c)
	if len(list) != 1 || list[0].Pid != 0 {
		t.Fatalf("listed %+v", list)
	}

	checkNamespaces(t, list[0].Namespaces, "net", "uts")
	forget(t, c, "pod")
	for name, a := range map[string]Adoption{
		"id":            {ID: "../pod", Kind: Sandbox},
		"kind":          {ID: "pod"},
		"pid only":      {ID: "pod", Kind: Container, Started: Started{Pid: 1}},
		"log unwritten": {ID: "pod", Kind: Container, Log: &LogConfig{}},
	} {
		if err := c.Adopt(testContext(t), a); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
