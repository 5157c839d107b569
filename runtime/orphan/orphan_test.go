package orphan

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crisp/test/testkit"
)

// orphanOf runs a shell that leaves a child behind, and returns the child.
func orphanOf(t *testing.T, script string) (pid int, pidfd *os.File) {
	t.Helper()
	if err := Adopt(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })

	out, err := exec.Command("sh", "-c", "{ "+script+"; } >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}

	pid, err = strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}

	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close() })
	return pid, f
}

func run(t *testing.T, r *Reaper) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func TestExitOfAnOrphanIsKnown(t *testing.T) {
	pid, pidfd := orphanOf(t, "sleep 0.3; exit 7")
	r := New()
	run(t, r)
	o, err := r.Watch(pid, pidfd)
	if err != nil {
		t.Fatal(err)
	}

	if again, err := r.Watch(pid, pidfd); err != nil || again != o {
		t.Errorf("watching twice gives %p and %v, want %p", again, err, o)
	}
	select {
	case <-o.Done:
	case <-time.After(30 * time.Second):
		t.Fatal("the exit was not noticed")
	}

	if !o.Known || o.Status.ExitStatus() != 7 {
		t.Errorf("known %v, status %d, want 7", o.Known, o.Status.ExitStatus())
	}
	if isZombie(pid) {
		t.Error("it was not reaped")
	}
}

func TestReleasedIsNotWatched(t *testing.T) {
	pid, pidfd := orphanOf(t, "sleep 0.2; exit 7")
	r := New()
	o, err := r.Watch(pid, pidfd)
	if err != nil {
		t.Fatal(err)
	}

	r.Release(o)
	r.Release(o) // again does nothing
	run(t, r)
	waitZombie(t, pid)

	select {
	case <-o.Done:
		t.Error("its exit is reported")
	case <-time.After(5 * pollPeriod):
	}

	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		t.Errorf("it was reaped: %v", err)
	}
}

func TestOthersChildrenAreLeftAlone(t *testing.T) {
	// A child that os/exec waits for: a zombie between two scans.
	cmd := exec.Command("sh", "-c", "exit 3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}

	waitZombie(t, cmd.Process.Pid)
	never := func(int) bool { return false }
	first := reapUnclaimed(nil, never)
	if !first[cmd.Process.Pid] {
		t.Errorf("the first scan found %v", first)
	}

	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("wait: %v", err)
	}
}

func TestUnclaimedZombiesAreReaped(t *testing.T) {
	pid, _ := orphanOf(t, "sleep 0.2")
	waitZombie(t, pid)
	never := func(int) bool { return false }
	if watched := reapUnclaimed(map[int]bool{pid: true}, func(p int) bool { return p == pid }); watched[pid] || !isZombie(pid) {
		t.Error("a watched process was touched")
	}
	reapUnclaimed(reapUnclaimed(nil, never), never)
	if isZombie(pid) {
		t.Error("it was not reaped by the second scan")
	}
}

func waitZombie(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !isZombie(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not exit", pid)
		}
	}
}

// TestScanSoon expects a child of another PID namespace to be reaped soon, and
// not one that os/exec may have started.
func TestScanSoon(t *testing.T) {
	testkit.Root(t)
	own, _ := orphanOf(t, "sleep 0.2")
	out, err := exec.Command("unshare", "--pid", "sh", "-c", "sleep 0.2 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}

	foreign, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}

	waitZombie(t, own)
	waitZombie(t, foreign)
	r := New()
	run(t, r)
	r.ScanSoon()

	for end := time.Now().Add(sweepPeriod - soonPeriod); isZombie(foreign) || unix.Kill(foreign, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("an unclaimed child is still a zombie")
		}
	}

	if !isZombie(own) {
		t.Error("a child that os/exec may wait for was reaped soon")
	}
	_, _ = unix.Wait4(own, nil, 0, nil) // clean up
}
