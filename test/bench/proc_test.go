package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	p, err := parseStat("42 (a (b) 1) S 7 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 9\n")
	if want := (process{42, 7, time.Second}); err != nil || p != want {
		t.Errorf("got %+v, %v, want %+v", p, err, want)
	}
	for _, bad := range []string{"", "42", "42 (x) S 7", "x (x) S 7 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestDescendants(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	all, err := descendants()
	if err != nil || !slices.ContainsFunc(all, func(p process) bool { return p.pid == cmd.Process.Pid && p.parent == os.Getpid() }) {
		t.Errorf("%d is not among %v (%v)", cmd.Process.Pid, all, err)
	}
	_, _ = cmd.Process.Kill(), cmd.Wait() // it is only to go
}

// TestNames tells two processes of one program apart by a directory that only one names.
func TestNames(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "1m", "0s")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	t.Cleanup(func() { _ = cmd.Process.Kill() })

	p := process{pid: cmd.Process.Pid}
	// Its descriptors are closed, which Start waits for, before it has its arguments.
	for end := time.Now().Add(10 * time.Second); !p.names("1m") && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}

	for dir, want := range map[string]bool{"": true, "1m": true, "/tmp/other": false} {
		if got := p.names(dir); got != want {
			t.Errorf("%q: %t, want %t", dir, got, want)
		}
	}
}

func TestParseBusy(t *testing.T) {
	const text = "cpu  100 200 300 9999 9999 1 2 3 50 60\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
	if got, err := parseBusy(text); err != nil || got != 606*tick {
		t.Errorf("got %v, %v, want %v", got, err, 606*tick)
	}
	if _, err := parseBusy("intr 1\n"); err == nil {
		t.Error("another file was read")
	}
}

func TestKiB(t *testing.T) {
	if got := kib("Slab:  100 kB\nPssx: 1 kB\nPss:    7 kB\nEmpty:\n", "Slab", "Pss", "Empty"); got != 107 {
		t.Errorf("got %d, want 107", got)
	}
}

func TestChargedMemory(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}

	if _, ok := chargedIn(root, "/none"); ok {
		t.Error("a group that is not there has memory")
	}
	write("memory/one/memory.kmem.usage_in_bytes", "4096\n")

	if got, ok := chargedIn(root, "/one"); !ok || got != 4 {
		t.Errorf("version 1: got %d, %t", got, ok)
	}
	write("two/memory.stat", "anon 1\nkernel 8192\nkernel_stack 5\n")

	if got, ok := chargedIn(root, "/two"); !ok || got != 8 {
		t.Errorf("version 2: got %d, %t", got, ok)
	}
}
