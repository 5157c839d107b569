package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/orphan"
	"crisp/runtime/procstat"
	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// unreaped is the first process of a PID namespace, in a group, and one outside
// whose child in the namespace is a zombie that it does not reap.
type unreaped struct{ first, parent *exec.Cmd }

// abandon starts both, and stops the parent so that it cannot reap.
func abandon(t *testing.T, dir string) unreaped {
	t.Helper()
	group, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()

	first := exec.Command("sleep", "1000")
	first.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	parent := exec.Command("nsenter", "--target", strconv.Itoa(first.Process.Pid), "--pid", "sleep", "1000")
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	u := unreaped{first, parent}
	t.Cleanup(u.reap)

	child := 0
	waitFor(t, "a child", func() bool {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", parent.Process.Pid))
		if err == nil {
			fmt.Sscan(string(data), &child)
		}
		return child != 0
	})
	if err := errors.Join(unix.Kill(parent.Process.Pid, unix.SIGSTOP), writeFile(dir, "cgroup.procs", strconv.Itoa(child))); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the parent to stop", func() bool {
		s, err := procstat.Read(parent.Process.Pid)
		return err == nil && s.State == 'T'
	})

	return u
}

// reap kills the first process, has the parent reap, which ends with its child, and returns
// when both are gone.
func (u unreaped) reap() {
	if u.parent.ProcessState != nil {
		return
	}
	_, _ = u.first.Process.Kill(), u.parent.Process.Signal(unix.SIGCONT)
	_ = u.parent.Wait()
	_ = u.first.Wait()
}

// TestDefunct kills and removes a group with a process that ends and stays.
func TestDefunct(t *testing.T) { eachNode(t, testDefunct) }

func testDefunct(t *testing.T, n *Node) {
	g := create(t, n, "", "defunct", nil)
	dir := g.unifiedDir()
	if dir == "" {
		testkit.Skip(t, "cgroup2", "no unified hierarchy is mounted")
	}
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, dirPerm); err != nil {
		t.Fatal(err)
	}
	u := abandon(t, below)
	pid := u.first.Process.Pid
	live := run(t, g, "exec sleep 1000")
	waitFor(t, "a process in the group", func() bool { pids, err := g.Pids(); return err == nil && len(pids) > 0 })

	if g.defunct(t.Context()) {
		t.Error("all processes have ended, says the kernel, while all run")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the namespace's first process", func() bool { return orphan.Ended(pid) })
	if g.defunct(t.Context()) {
		t.Error("all processes have ended, says the kernel, while one runs")
	}

	ctx, cancel := context.WithTimeout(t.Context(), pace.Scale(20*time.Second))
	defer cancel()
	if err := g.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	_ = live.wait()
	if !g.defunct(ctx) {
		t.Error("not all processes have ended, but all were killed")
	}

	removeDefunct(t, ctx, g)
	u.reap()
	if g.defunct(ctx) {
		t.Error("a group without processes has some that have ended")
	}
	waitFor(t, "an empty group", func() bool {
		some, err := g.Populated(ctx)
		return !some && (err == nil || errors.Is(err, ErrNotFound))
	})
	if err := g.Remove(ctx); err != nil {
		t.Errorf("remove once all are reaped: %v", err)
	}
}

// removeDefunct removes a group with such processes only, which the kernel's version decides
// on.
func removeDefunct(t *testing.T, ctx context.Context, g *Group) {
	t.Helper()
	keeps := testkit.KernelAtLeast(t, 6, 19)
	some, err := g.Populated(ctx)
	if err != nil || g.node.v2 && some != keeps {
		t.Errorf("with processes that have ended the group is populated: %v, %v, want %v", some, err, keeps)
	}

	began := time.Now()
	err = g.Remove(ctx)
	if keeps && !errors.Is(err, ErrDefunct) || !keeps && err != nil {
		t.Errorf("remove with processes that have ended: %v", err)
	}
	if took := time.Since(began); took > pace.Scale(5*time.Second) {
		t.Errorf("that took %v", took)
	}
	if keeps != g.Exists() {
		t.Errorf("the group exists: %v, want %v", g.Exists(), keeps)
	}
}
