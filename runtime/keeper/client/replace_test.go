package client

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/test/testkit"
)

// TestReplace has a container's process clone another one as its sibling, which then
// is the container's: it is its exit that is reported, with its exit code.
func TestReplace(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	dir := t.TempDir()
	sh := newShell(t, "web", fmt.Sprintf("while [ ! -e %s/$$ ]; do sleep 0.01; done; echo from $$; exit 7", dir))
	// Both run the script; the keeper does not know of the second.
	fork := plan.Step{
		Name: "clone", Call: unix.SYS_CLONE, Save: plan.NoReg, CondReg: plan.NoReg,
		Args: []plan.Arg{num(unix.CLONE_PARENT | int64(unix.SIGCHLD)), num(0), num(0), num(0), num(0)},
	}
	sh.req.Plan.Steps = slices.Insert(sh.req.Plan.Steps, len(sh.req.Plan.Steps)-1, fork)
	r := sh.req
	r.Log = nil
	st, err := c.Start(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	closeFiles(sh.req.Files...)
	second := 0
	eventually(t, "the second process", func() bool {
		second = siblingOf(t, st.Pid, c.keeper.Process.Pid)
		return second != 0
	})

	other := newShell(t, "other", "exec sleep 1000").start(t, c)
	for name, test := range map[string]struct {
		id   string
		pid  int
		file *os.File
		want error
	}{
		"unknown id":        {"none", second, pidfdOf(t, second), ErrNotFound},
		"another's process": {"web", other.Pid, other.PidFD, ErrInvalid},
		"no child":          {"web", os.Getpid(), pidfdOf(t, os.Getpid()), ErrInvalid},
		"another pid":       {"web", second, st.PidFD, ErrInvalid},
	} {
		if err := c.Replace(testContext(t), adoption(test.id, test.pid, test.file, sh.req.Log)); !errors.Is(err, test.want) {
			t.Errorf("%s: error %v", name, err)
		}
	}

	if err := c.Replace(testContext(t), adoption("web", second, pidfdOf(t, second), sh.req.Log)); err != nil {
		t.Fatal(err)
	}
	sh.req.Log.Close()
	list, err := c.List(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.ID == "web" && e.Pid != second {
			t.Errorf("its process is %d, want %d", e.Pid, second)
		}
		e.Close()
	}

	// The end of the first is not that of the container.
	end := func(pid int) {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, pid), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	end(st.Pid)
	eventually(t, "the end of the first process", func() bool { return Signal(st.PidFD, 0) != nil || gone(st.Pid) })
	select {
	case x := <-c.Events():
		t.Errorf("reported: %+v", x)
	default:
	}
	end(second)
	if x := awaitExit(t, c, "web"); x.Pid != second || x.Code != 7 {
		t.Errorf("exit %+v, want code 7 of process %d", x, second)
	}
	if log := string(sh.read(t)); !strings.Contains(log, fmt.Sprintf("from %d", st.Pid)) || !strings.Contains(log, fmt.Sprintf("from %d", second)) {
		t.Errorf("log: %s", log)
	}
	if err := c.Replace(testContext(t), adoption("web", second, st.PidFD, nil)); err == nil {
		t.Error("a container that has ended got another process")
	}

	if err := Signal(other.PidFD, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitExit(t, c, "other")
	forget(t, c, "web")
	forget(t, c, "other")
}

func adoption(id string, pid int, pidfd *os.File, log *LogConfig) Adoption {
	return Adoption{ID: id, Kind: Container, Started: Started{Pid: pid, PidFD: pidfd}, Log: log}
}

func gone(pid int) bool {
	_, err := os.Stat("/proc/" + strconv.Itoa(pid))
	return err != nil
}

func pidfdOf(t *testing.T, pid int) *os.File {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close() })
	return f
}

// siblingOf finds another child of the keeper's, 0 if there is none.
func siblingOf(t *testing.T, pid, keeper int) int {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", keeper))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", keeper, task.Name()))
		if err != nil {
			continue
		}
		for _, child := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(child); err == nil && n != pid {
				return n
			}
		}
	}
	return 0
}
