package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/runtime/plan"
	"crisp/test/testkit"
	"crisp/test/testkit/pace"
)

// frozenGroup returns an open, frozen v2 cgroup.
func frozenGroup(t *testing.T) *os.File {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		root += "/unified"
	}

	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		testkit.Skip(t, "cgroup version 2 mounted", "there is no cgroup to clone into")
	}
	dir, err := os.MkdirTemp(root, "crisp-frozen-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})

	if err := os.WriteFile(dir+"/cgroup.freeze", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })

	return f
}

// TestFrozenDelaysNoOther starts many processes in a frozen cgroup, with and
// without a second one that joins others: they delay no other request, and can
// be cancelled.
func TestFrozenDelaysNoOther(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	group := frozenGroup(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	ctx, giveUp := context.WithCancel(testContext(t))
	defer giveUp()
	var wg sync.WaitGroup
	ends := make(chan error, 12)
	for i := range cap(ends) {
		p := newProgram(fmt.Sprintf("exec in frozen %d", i))
		p.Inputs = append(p.Inputs, plan.Input{Name: "cgroup"})
		p.Clone.Cgroup = 0
		if i%2 == 1 {
			p.fork()
			p.Steps[len(p.Steps)-1].Exposed = true
		}

		p.exec("/bin/true")
		r := Request{ID: fmt.Sprintf("frozen-%d", i), Kind: Exec, Plan: &p.Plan, Files: []*os.File{group}}
		wg.Go(func() {
			_, err := c.Start(ctx, r)
			ends <- err
		})
	}

	time.Sleep(pace.Scale(300 * time.Millisecond)) // until they are cloned

	const others = 20
	begin := time.Now()
	for i := range others {
		id := fmt.Sprintf("web-%d", i)
		newShell(t, id, "exit 3").start(t, c)
		if x := awaitExit(t, c, id); x.Code != 3 {
			t.Errorf("exit %+v", x)
		}
		forget(t, c, id)
		listAll(t, c)
	}

	if took := time.Since(begin) / others; took > pace.Scale(100*time.Millisecond) {
		t.Errorf("a start next to a frozen container takes %v", took)
	}

	begin = time.Now()
	giveUp()
	wg.Wait()
	if took := time.Since(begin); took > pace.Scale(time.Second) {
		t.Errorf("to cancel took %v", took)
	}

	for range cap(ends) {
		if err := <-ends; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want that it was cancelled", err)
		}
	}

	awaitChildless(t, c)
	if procs, err := os.ReadFile(group.Name() + "/cgroup.procs"); err != nil || len(procs) > 0 {
		t.Errorf("left in the group: %q, %v", procs, err)
	}
}

// TestGroupKillSparesKeeper kills everything in the cgroup that a process is
// cloned into, as the kernel does with memory.oom.group: the keeper survives.
func TestGroupKillSparesKeeper(t *testing.T) {
	testkit.Root(t)
	testkit.Leaks(t)
	group := frozenGroup(t)
	c := connectTest(t, stateDir(t))
	defer c.Close()

	p := newProgram("start container web")
	p.Inputs = append(p.Inputs, plan.Input{Name: "cgroup"})
	p.Clone.Cgroup = 0
	p.exec("/bin/true")

	done := make(chan error, 1)
	go func() {
		_, err := c.Start(testContext(t), Request{ID: "web", Kind: Container, Plan: &p.Plan, Files: []*os.File{group}})
		done <- err
	}()

	time.Sleep(pace.Scale(100 * time.Millisecond))

	// Processes that share memory with the OOM victim would be killed with it.
	child := childOf(t, group)
	keeper := parentOf(t, child)
	if !kcmp(keeper, keeper) || kcmp(keeper, child) {
		t.Error("a process in the container's cgroup shares the keeper's memory")
	}

	if err := os.WriteFile(group.Name()+"/cgroup.kill", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("a process that was killed has started")
	}

	newShell(t, "other", "exit 5").start(t, c)
	if x := awaitExit(t, c, "other"); x.Code != 5 {
		t.Errorf("exit %+v", x)
	}
	forget(t, c, "other")
}

// childOf returns the process in a cgroup.
func childOf(t *testing.T, group *os.File) int {
	t.Helper()
	data, err := os.ReadFile(group.Name() + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(data), &pid); err != nil {
		t.Fatalf("process in the group: %v", err)
	}
	return pid
}

// parentOf returns the parent of a process: here the keeper.
func parentOf(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var parent int
		if n, _ := fmt.Sscanf(line, "PPid: %d", &parent); n == 1 {
			return parent
		}
	}
	t.Fatalf("process %d has no parent", pid)
	return 0
}

// kcmp reports whether two processes share their memory.
func kcmp(a, b int) bool {
	const kcmpVM = 1
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	return errno == 0 && r == 0
}
